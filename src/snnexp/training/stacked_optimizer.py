"""The optimizer of a stack: one PyTorch optimizer, whose parameter groups belong to members with equal settings."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from snnexp.errors import ConfigError
from snnexp.optimizers import learning_rates
from snnexp.training.stack_member import StackMember

OF_GROUPS = ("base_lrs", "_last_lr")
"""State entries of a schedule with one value per parameter group."""


class OptimizerGroup:
    """The parameter groups of members with equal optimizer settings.

    Args:
        members: adjacent members of the stack.
        weights: the weights of the stack.
        lengths: total steps and epochs.
    """

    optimizer: torch.optim.Optimizer
    schedule: Any

    def __init__(self, members: Sequence[StackMember], weights: Sequence[Tensor], lengths: tuple[int, int]) -> None:
        self.members, self.weights = members, weights
        self.where = slice(members[0].position, members[-1].position + 1)
        self.views = [nn.Parameter(weight.detach()[self.where], weight.requires_grad) for weight in weights]
        configuration = members[0].task.make_optimizer(self.views, *lengths)
        self.groups = configuration["optimizer"].param_groups
        self.own_settings = _settings(self.groups, configuration.get("lr_scheduler", {}).get("scheduler"))
        for group in self.groups:
            # the schedule of the stack starts from the initial rates of this one
            group["lr"] = group.pop("initial_lr", group["lr"])
        places = {id(view): place for place, view in enumerate(self.views)}
        self.order = [places[id(view)] for group in self.groups for view in group["params"]]
        """For each parameter of the groups, its index among the parameters of a task."""
        self.at = slice(0, 0)
        """Slice of these groups in the optimizer."""

    def assign_groups(self, configuration: dict[str, Any], begin: int) -> int:
        """Take the groups of an optimizer from index ``begin`` on; return the end index."""
        self.optimizer, self.schedule = (
            configuration["optimizer"],
            configuration.get("lr_scheduler", {}).get("scheduler"),
        )
        self.at = slice(begin, begin + len(self.groups))
        return self.at.stop

    def require_own_settings(self) -> None:
        """Require that the stacked optimizer updates a member like a separate optimizer.

        Raises:
            ConfigError: a setting is stored outside of the parameter groups.
        """
        if _settings(self.optimizer.param_groups[self.at], self.schedule) != self.own_settings:
            raise ConfigError("optimizer: its schedule depends on more than parameter groups, and cannot be stacked")

    def take_gradients(self) -> None:
        """Set the gradients of the views to slices of those of the weights."""
        for view, weight in zip(self.views, self.weights, strict=True):
            view.grad = None if weight.grad is None else weight.grad[self.where]

    def tensors(self) -> Iterator[Tensor]:
        """Yield all tensors that must stay finite, with the member axis first."""
        for view in self.views:
            yield view.detach()
            yield from (x for x in self.optimizer.state.get(view, {}).values() if isinstance(x, Tensor) and x.ndim)

    def rates(self) -> dict[str, float]:
        """Return the learning rates by name."""
        return learning_rates(self.optimizer.param_groups[self.at])

    def optimizer_state(self, member: StackMember) -> dict[Any, dict[str, Any]]:
        """Return the optimizer state of each parameter of a member's task."""
        place, weights = member.position - self.where.start, [*member.task.parameters()]
        return {
            weight: {
                kind: (value[place].view(weight.shape) if value.ndim else value) if isinstance(value, Tensor) else value
                for kind, value in self.optimizer.state[view].items()
            }
            for view, weight in zip(self.views, weights, strict=True)
            if view in self.optimizer.state
        }

    def state(self, member: StackMember) -> dict[str, Any]:
        """Return the optimizer state of a member for a checkpoint, in the format of a single run."""
        states, weights = self.optimizer_state(member), [*member.task.parameters()]
        own = [weights[place] for place in self.order]
        state = {
            index: {kind: each.clone() if isinstance(each, Tensor) else each for kind, each in states[weight].items()}
            for index, weight in enumerate(own)
            if weight in states
        }
        schedules = []
        if self.schedule is not None:
            schedule_state = self.schedule.state_dict()
            schedules = [{**schedule_state, **{name: schedule_state[name][self.at] for name in OF_GROUPS}}]
        return {"optimizer_states": [{"state": state, "param_groups": self._packed()}], "lr_schedulers": schedules}

    def _packed(self) -> list[dict[str, Any]]:
        """Return the groups with indices instead of parameters, as in ``state_dict``."""
        groups, index = [], 0
        for group in self.optimizer.param_groups[self.at]:
            end = index + len(group["params"])
            groups.append({**group, "params": [*range(index, end)]})
            index = end
        return groups

    def loaded_state(self) -> dict[str, Any]:
        """Return the stacked optimizer state from the members' checkpoints; that of paused members is arbitrary."""
        checkpoints = (member.start.checkpoint if member.is_training else None for member in self.members)
        contents = [None if checkpoint is None else checkpoint.content for checkpoint in checkpoints]
        known = next((content for content in contents if content is not None), None)
        if known is None:
            rates = {
                "base_lrs": [group.get("initial_lr", group["lr"]) for group in self.groups],
                "_last_lr": [group["lr"] for group in self.groups],
            }
            return {"optimizer_states": [{"state": {}, "param_groups": self._packed()}], "lr_schedulers": [rates]}
        states = [(content or known)["optimizer_states"][0] for content in contents]
        together = {
            index: {
                # the step count is equal for all members
                kind: torch.stack([state["state"][index][kind] for state in states]).view_as(self.views[place])
                if isinstance(value, Tensor) and kind != "step"
                else value
                for kind, value in states[0]["state"][index].items()
            }
            for index, place in enumerate(self.order)
            if index in states[0]["state"]
        }
        return {**known, "optimizer_states": [{**states[0], "state": together}]}


def _settings(groups: Sequence[dict[str, Any]], schedule: Any) -> str:
    """Return the settings that decide how groups are updated, as text to compare."""
    of_groups = [{name: value for name, value in sorted(group.items()) if name != "params"} for group in groups]
    schedule_state = {} if schedule is None else schedule.state_dict()
    return repr((of_groups, {name: value for name, value in sorted(schedule_state.items()) if name not in OF_GROUPS}))


def load_states(configuration: dict[str, Any], contents: Sequence[dict[str, Any]]) -> None:
    """Load states into an optimizer whose groups are those of ``contents``, in this order."""
    state: dict[int, Any] = {}
    groups: list[dict[str, Any]] = []
    index = 0
    for content in contents:
        own = content["optimizer_states"][0]
        state |= {index + place: entry for place, entry in own["state"].items()}
        groups += [{**group, "params": [index + place for place in group["params"]]} for group in own["param_groups"]]
        index += sum(len(group["params"]) for group in own["param_groups"])
    configuration["optimizer"].load_state_dict({"state": state, "param_groups": groups})
    if "lr_scheduler" in configuration:
        schedules = [content["lr_schedulers"][0] for content in contents]
        schedule_state = {name: value for own in schedules for name, value in own.items()}
        of_groups = {name: [value for own in schedules for value in own[name]] for name in OF_GROUPS}
        configuration["lr_scheduler"]["scheduler"].load_state_dict({**schedule_state, **of_groups})
