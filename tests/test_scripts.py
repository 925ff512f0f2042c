"""Training loops as public scripts write them in snnTorch, Norse, SpikingJelly and PyTorch, beside ``snnexp train``.

Start weights, batches and random numbers are those of the run; the losses of all steps must then be equal, and so must
what the script's own decoder says of the test samples. Networks are small: among millions of membranes, one is so near
to its threshold that rounding decides whether it fires.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import snntorch as snn
import snntorch.functional as SF
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from snntorch import surrogate, utils
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based import surrogate as SJ
from spikingjelly.activation_based.examples.lif_fc_mnist import SNN
from torch import Tensor, nn

from snnexp.experiment import compose, run
from snnexp.neurons import Leaky
from snnexp.record.run import Run
from snnexp.surrogates import ATan


class Batch(NamedTuple):
    """A batch as it comes in, and the random state in which it does."""

    x: Tensor
    y: Tensor
    random: Tensor


class Ours(Callback):
    """A run of what is typed, with its start weights and batches.

    Args:
        words: what is typed.
    """

    def __init__(self, *words: str) -> None:
        self.train: list[list[Batch]] = []
        self.val: list[list[Batch]] = []
        self.test: list[Batch] = []
        own = ["trainer=cpu", "logger=jsonl", "trainer.log_every_n_steps=1"]
        record = run(compose([*words, *own]), watching=[self])
        self.metrics = record.metrics
        self.losses = [row["train/loss"] for row in Run(record.path).metrics() if "train/loss" in row]

    def on_train_start(self, trainer: Any, task: Any) -> None:
        state = task.network.state_dict()
        self.start = {name.removeprefix("layers."): value.clone() for name, value in state.items()}

    def on_train_epoch_start(self, *arguments: Any) -> None:
        self.train.append([])
        self.val.append([])

    def on_train_batch_start(self, trainer: Any, task: Any, batch: Any, *index: int) -> None:
        self.train[-1].append(Batch(*batch, torch.get_rng_state()))

    def on_validation_batch_start(self, trainer: Any, task: Any, batch: Any, *index: int) -> None:
        self.val[-1].append(Batch(*batch, torch.get_rng_state()))

    def on_test_batch_start(self, trainer: Any, task: Any, batch: Any, *index: int) -> None:
        self.test.append(Batch(*batch, torch.get_rng_state()))

    def give(self, modules: Mapping[str, nn.Module]) -> None:
        """Copy the start weights into modules of a script, by their names here."""
        for name, module in modules.items():
            for key, parameter in module.named_parameters():
                parameter.data.copy_(self.start[f"{name}.{key}"])

    def trained(
        self,
        loss_of: Callable[[Tensor, Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
        after_epoch: Callable[[Sequence[Batch]], object] = lambda val: None,
        clip: float | None = None,
    ) -> list[float]:
        """The losses of a script's training."""
        losses = []
        for epoch, val in zip(self.train, self.val, strict=True):
            for x, y, random in epoch:
                torch.set_rng_state(random)
                loss = loss_of(x, y)
                optimizer.zero_grad()
                loss.backward()
                if clip is not None:
                    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
                    assert nn.utils.clip_grad_norm_(weights, clip) > clip
                optimizer.step()
                losses.append(loss.item())
            after_epoch(val)
        assert len({*losses}) > len(losses) / 2
        return losses

    @torch.no_grad()
    def accuracy(self, predict: Callable[[Tensor], Tensor]) -> float:
        """The fraction of test labels that a script finds; some are found, and some are not."""
        right = []
        for x, y, random in self.test:
            torch.set_rng_state(random)
            right.append((predict(x) == y).flatten())
        found = torch.cat(right).float().mean().item()
        assert 0 < found < 1
        return found


def close(values: float | Sequence[float]) -> Any:
    return pytest.approx(values, rel=1e-5)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def clouds(classes: int, *shape: int, samples: int = 48, spread: float = 0.5) -> tuple[Tensor, Tensor]:
    """Samples around a centre for each class, between 0 and 1, and their labels."""
    random = torch.Generator().manual_seed(0)
    y = torch.arange(samples) % classes
    centres = torch.rand(classes, *shape, generator=random)
    return (centres[y] + spread * torch.randn(samples, *shape, generator=random)).clamp(0, 1), y


def save(**splits: tuple[Tensor, Tensor]) -> list[str]:
    """Write a file for each split; returns what is typed to read them."""
    for name, (x, y) in splits.items():
        np.savez(f"{name}.npz", inputs=x.numpy(), labels=y.numpy())
    return ["data=arrays", *(f"data.{name}={name}.npz" for name in splits), "data.batch_size=8"]


def halves(samples: tuple[Tensor, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Two of three samples for the training, and the third for the test."""
    x, y = samples
    cut = len(y) * 2 // 3
    return {"train": (x[:cut], y[:cut]), "test": (x[cut:], y[cut:])}


def unroll(x: Tensor, num_steps: int, *layers: nn.Module) -> tuple[Tensor, Tensor]:
    """The loop of snnTorch's Tutorial 5: spikes and membranes of the last layer for an input at all steps."""
    states = {module: module.reset_mem() for module in layers if isinstance(module, snn.Leaky)}
    spikes, membrane = [], []
    for _ in range(num_steps):
        signal = x
        for module in layers:
            if module in states:
                signal, states[module] = module(signal, states[module])
            else:
                signal = module(signal)
        spikes.append(signal)
        membrane.append(states[layers[-1]])
    return torch.stack(spikes), torch.stack(membrane)


def weights(*modules: nn.Module) -> list[nn.Parameter]:
    return [parameter for module in modules for parameter in module.parameters()]


def test_mnist_mlp(tiny_mnist: Path) -> None:
    """snnTorch, Tutorial 5: the sum over steps of the cross-entropy of the membrane, decoded by spike counts."""
    ours = Ours("experiment=mnist_leaky", "network.hidden=[32]", "data.batch_size=8", "trainer.max_epochs=2")
    fc1, lif1, fc2, lif2 = nn.Linear(784, 32), snn.Leaky(beta=0.95), nn.Linear(32, 10), snn.Leaky(beta=0.95)
    ours.give({"hidden1.synapse": fc1, "readout.synapse": fc2})

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        return unroll(x.flatten(1), 25, fc1, lif1, fc2, lif2)

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        _, membrane = forward(x)
        loss = torch.zeros(1)
        for step in range(25):
            loss += nn.CrossEntropyLoss()(membrane[step], y)
        return loss

    adam = torch.optim.Adam(weights(fc1, fc2), lr=5e-4, betas=(0.9, 0.999))
    assert ours.losses == close(ours.trained(loss_of, adam))
    assert ours.metrics["test/accuracy"] == close(ours.accuracy(lambda x: forward(x)[0].sum(0).max(1)[1]))


def test_regression_from_csv() -> None:
    """snnTorch: columns scaled to [0, 1] as in training; the squared error is summed over steps, ours is the mean."""
    random = np.random.default_rng(0)
    columns = [f"x{index}" for index in range(21)]
    for name, rows in (("train", 40), ("test", 16)):
        x = random.normal(size=(rows, 21)) * np.logspace(-2, 3, 21)
        table = np.column_stack([x, np.tanh(x[:, 0] * 100) + 0.1 * random.normal(size=rows)])
        np.savetxt(f"{name}.csv", table, delimiter=",", header=",".join([*columns, "y"]), comments="")
    words = ["data=csv", "data.train=train.csv", "data.test=test.csv", "data.target=y", "data.scale=minmax"]
    words += ["data.batch_size=8", "network.hidden=[30]", "num_steps=25", "loss=mse_membrane", "trainer.max_epochs=2"]
    ours = Ours(*words, "neuron.beta=0.9")

    x, y = np.split(np.loadtxt("train.csv", delimiter=",", skiprows=1), [21], axis=1)
    low, high = x.min(0), x.max(0)
    scaled = torch.tensor((x - low) / (high - low), dtype=torch.float32)
    values = torch.tensor(y, dtype=torch.float32)
    fc1, lif1, fc2, lif2 = nn.Linear(21, 30), snn.Leaky(beta=0.9), nn.Linear(30, 1), snn.Leaky(beta=0.9)
    ours.give({"hidden1.synapse": fc1, "readout.synapse": fc2})

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        rows = [int((values == value).nonzero()[0, 0]) for value in y]
        torch.testing.assert_close(x, scaled[rows])
        _, membrane = unroll(scaled[rows], 25, fc1, lif1, fc2, lif2)
        return sum((nn.MSELoss()(step, y) for step in membrane), torch.zeros(()))

    # Adam takes the same steps, but for its eps, whatever factor its gradients have
    adam = torch.optim.Adam(weights(fc1, fc2), lr=1e-3)
    assert [25 * loss for loss in ours.losses] == close(ours.trained(loss_of, adam))

    x, y = np.split(np.loadtxt("test.csv", delimiter=",", skiprows=1), [21], axis=1)
    with torch.no_grad():
        scaled = torch.tensor((x - low) / (high - low), dtype=torch.float32)
        _, membrane = unroll(scaled, 25, fc1, lif1, fc2, lif2)
    errors = membrane - torch.tensor(y)
    assert ours.metrics["test/l1"] == close(errors.abs().mean().item())
    assert ours.metrics["test/loss"] == close(errors.square().mean().item())


def test_population_code() -> None:
    """snnTorch, population tutorial: counts of all neurons of a class, where ours are the mean over them."""
    x, y = clouds(2, 12)
    files = save(**halves((4 * x, y)))
    population = ["decoder=population", "decoder.size=5", "loss=mse_count", "loss.correct_rate=1"]
    words = [*population, "loss.incorrect_rate=0", "surrogate=fast_sigmoid", "neuron.beta=0.9", "optimizer.lr=2e-3"]
    ours = Ours(
        *files, *words, "num_steps=1", "network.hidden=[40]", "network.init=kaiming_normal", "trainer.max_epochs=3"
    )
    own = {"beta": 0.9, "spike_grad": surrogate.fast_sigmoid(slope=25), "init_hidden": True}
    net = nn.Sequential(nn.Linear(12, 40), snn.Leaky(**own), nn.Linear(40, 10), snn.Leaky(**own, output=True))
    ours.give({"hidden1.synapse": net[0], "readout.synapse": net[2]})

    def forward(x: Tensor) -> Tensor:
        utils.reset(net)
        return torch.stack([net(x)[0]])

    coded = {"population_code": True, "num_classes": 2}
    loss = SF.mse_count_loss(correct_rate=1.0, incorrect_rate=0.0, **coded)
    adam = torch.optim.Adam(net.parameters(), lr=2e-3, betas=(0.9, 0.999))
    theirs = ours.trained(lambda x, y: loss(forward(x), y), adam)
    assert [5**2 * each for each in ours.losses] == close(theirs)
    with torch.no_grad():
        right = [SF.accuracy_rate(forward(x), y, **coded) * len(y) for x, y, _ in ours.test]
    assert ours.metrics["test/accuracy"] == close(sum(right) / 16)


def test_linear_layer_on_mean_spikes() -> None:
    """snnTorch's RLeaky and a linear layer of PyTorch on the mean spikes of a sequence, Adamax, clipped gradients."""
    random = torch.Generator().manual_seed(1)
    rates, y = clouds(4, 1, 14)
    files = save(**halves((torch.bernoulli(0.5 * rates.expand(-1, 20, -1), generator=random), y)))
    words = ["neuron=rleaky", "neuron.beta=0.8", "readout=linear", "loss=ce_mean_membrane", "optimizer=adamax"]
    ours = Ours(*files, *words, "trainer.gradient_clip=0.1", "network.hidden=[24]", "trainer.max_epochs=3")
    fc1, lif, fc2 = nn.Linear(14, 24), snn.RLeaky(beta=0.8, linear_features=24), nn.Linear(24, 4)
    ours.give({"hidden1.synapse": fc1, "hidden1.neuron": lif, "readout.synapse": fc2})

    def forward(x: Tensor) -> Tensor:
        spk, mem = lif.init_rleaky()
        recorded = []
        for step in range(20):
            spk, mem = lif(fc1(x[step]), spk, mem)
            recorded.append(spk)
        return fc2(torch.stack(recorded).mean(0))

    adamax = torch.optim.Adamax(weights(fc1, lif, fc2), lr=2e-3)
    assert ours.losses == close(ours.trained(lambda x, y: F.cross_entropy(forward(x), y), adamax, clip=0.1))
    assert ours.metrics["test/accuracy"] == close(ours.accuracy(lambda x: forward(x).argmax(1)))


def test_convolution_and_plateau() -> None:
    """snnTorch, Tutorial 6, with maps that are pooled before they arrive, ce_rate_loss and ReduceLROnPlateau."""
    x, y = clouds(3, 1, 6, 6, samples=64)
    x = 4 * x
    files = save(train=(x[:32], y[:32]), val=(x[32:48], y[32:48]), test=(x[48:], y[48:]))
    words = ["network=conv", "network.channels=[4]", "network.kernel_size=3", "network.stride=1", "network.pool=max"]
    words += ["loss=ce_rate", "schedule=plateau", "schedule.patience=0", "schedule.factor=0.5", "optimizer.lr=0.02"]
    ours = Ours(*files, *words, "num_steps=8", "neuron.beta=0.5", "trainer.max_epochs=5")
    conv, fc = nn.Conv2d(1, 4, 3), nn.Linear(16, 3)
    lif1, lif2 = snn.Leaky(beta=0.5), snn.Leaky(beta=0.5)
    ours.give({"conv1.synapse.0": conv, "readout.synapse": fc})

    def forward(x: Tensor) -> Tensor:
        return unroll(x, 8, conv, nn.MaxPool2d(2), lif1, nn.Flatten(), fc, lif2)[0]

    loss, adam = SF.ce_rate_loss(), torch.optim.Adam(weights(conv, fc), lr=0.02)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(adam, patience=0, factor=0.5)

    @torch.no_grad()
    def after_epoch(val: Sequence[Batch]) -> None:
        plateau.step(sum(loss(forward(x), y) for x, y, _ in val) / len(val))

    assert ours.losses == close(ours.trained(lambda x, y: loss(forward(x), y), adam, after_epoch))
    assert 0.001 < adam.param_groups[0]["lr"] < 0.02
    assert ours.metrics["test/accuracy"] == close(ours.accuracy(lambda x: forward(x).sum(0).max(1)[1]))


class ActFun(torch.autograd.Function):
    """A spike with a linear surrogate, as authors of ALIF write it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.gt(0).float()

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient[0] * F.relu(1 - x.abs())


def test_label_for_each_step() -> None:
    """Recurrent ALIF of Yin et al. (2021) in plain PyTorch, time constants with a learning rate of their own, StepLR.

    The authors' adaptation starts at b_j0 and their integrator is out = alpha out + (1 - alpha) I; here it starts at 0,
    and the integrator is out = beta out + I.
    """
    random = torch.Generator().manual_seed(0)
    y = torch.randint(3, (24, 6), generator=random).repeat_interleave(4, 1)
    x = F.one_hot(y, 3).float() @ torch.rand(3, 10, generator=random) + 0.6 * torch.randn(24, 24, 10, generator=random)
    files = save(**halves((x, y)))
    words = ["neuron=alif", "neuron.recurrent=true", "surrogate=triangular", "readout=leaky", "readout.beta=0.8"]
    words += ["readout.learn_beta=true", "loss=ce_each_step", "optimizer.lr=0.01", "optimizer.neuron_lr=0.2"]
    words += ["schedule=step", "schedule.step_size=1", "schedule.gamma=0.5", "trainer.max_epochs=3"]
    ours = Ours(*files, *words, "network.hidden=[16]")
    fc1, rec, fc2 = nn.Linear(10, 16), nn.Linear(16, 16), nn.Linear(16, 3)
    ours.give({"hidden1.synapse": fc1, "hidden1.neuron.recurrent": rec, "readout.synapse": fc2})
    names = ["hidden1.neuron.tau_m", "hidden1.neuron.tau_adp", "readout.neuron.beta"]
    tau_m, tau_adp, beta = constants = [nn.Parameter(ours.start[name]) for name in names]

    def forward(x: Tensor) -> Tensor:
        alpha, ro = torch.exp(-1 / tau_m), torch.exp(-1 / tau_adp)
        mem, spike, b, out = torch.zeros(4, 1)
        recorded = []
        for step in range(24):
            inputs = fc1(x[step]) + rec(spike.expand(x.shape[1], 16))
            b = ro * b + (1 - ro) * spike
            B = 0.01 + 1.8 * b
            mem = mem * alpha + (1 - alpha) * inputs - B * spike
            spike = ActFun.apply(mem - B)
            out = beta * out + fc2(spike)
            recorded.append(out)
        return torch.stack(recorded)

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        loss = torch.zeros(())
        for output, label in zip(forward(x), y, strict=True):
            loss = loss + F.nll_loss(F.log_softmax(output, dim=1), label)
        return loss / 24

    adam = torch.optim.Adam([{"params": weights(fc1, rec, fc2)}, {"params": constants, "lr": 0.2}], lr=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(adam, step_size=1, gamma=0.5)
    assert ours.losses == close(ours.trained(loss_of, adam, lambda val: schedule.step()))
    assert ours.metrics["test/accuracy"] == close(ours.accuracy(lambda x: forward(x).argmax(2)))


def test_lif_fc_mnist(tiny_mnist: Path) -> None:
    """SpikingJelly's example; a current of X / 2 and a threshold of 1 are here one of X and a threshold of 2.

    Its loss compares rates, and is ours over T. ATan has half the slope for twice the membrane. SpikingJelly records
    the membrane after the reset and ours is before it, which no spike depends on.
    """
    words = ["network.hidden=[]", "network.bias=false", "network.init=xavier_uniform", "encoder=bernoulli"]
    words += ["neuron.beta=0.5", "neuron.threshold=2", "neuron.reset=zero", "surrogate.alpha=1", "num_steps=30"]
    words += ["loss=mse_count", "loss.correct_rate=1", "loss.incorrect_rate=0", "trainer.max_epochs=2"]
    ours = Ours(*words, "data.batch_size=8")
    net = SNN(tau=2.0)
    net.layer[2].detach_reset = True
    ours.give({"readout.synapse": net.layer[1]})

    def rate(x: Tensor) -> Tensor:
        functional.reset_net(net)
        out_fr: Any = 0.0
        for encoded_img in torch.bernoulli(x.expand(30, *x.shape)):
            out_fr += net(encoded_img)
        return out_fr / 30

    adam = torch.optim.Adam(net.parameters(), lr=1e-3)
    theirs = ours.trained(lambda x, y: F.mse_loss(rate(x), F.one_hot(y, 10).float()), adam)
    assert [loss / 30 for loss in ours.losses] == close(theirs)
    assert ours.metrics["test/accuracy"] == close(ours.accuracy(lambda x: rate(x).argmax(1)))


@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("detach_reset", [True, False])
def test_lif_node(detach_reset: bool, decay_input: bool) -> None:
    """SpikingJelly's LIFNode; a current of X / tau and a threshold of 1 are here one of X and a threshold of tau.

    Unless it is told to detach the reset, SpikingJelly learns from what that takes away, and ours never does: of
    dU[t] / dU[t-1] = beta (1 - S[t-1]) - beta U[t-1] g(U[t-1] - theta), g the surrogate, ours has the first part alone.
    """
    tau = 4.0
    theta = tau if decay_input else 1.0
    random = torch.Generator().manual_seed(0)
    current = (theta * torch.rand(12, 3, 4, generator=random)).requires_grad_()
    weight = torch.randn(12, 3, 4, generator=random)
    node = neuron.LIFNode(tau, decay_input, surrogate_function=SJ.ATan(2.0), detach_reset=detach_reset)
    theirs = torch.stack([node(step) for step in current])
    atan = ATan(2 / theta)
    trace = Leaky(4, beta=1 - 1 / tau, threshold=theta, reset="zero", surrogate=atan)(current)
    assert torch.equal(trace.spikes, theirs)
    assert 0 < theirs.mean() < 1
    slope = atan(trace.membrane - theta).detach()
    kept = (1 - 1 / tau) * (1 - theirs - (0 if detach_reset else trace.membrane * slope)).detach()
    expected = [slope[-1] * weight[-1]]
    for step in range(10, -1, -1):
        expected.insert(0, slope[step] * weight[step] + kept[step] * expected[0])
    (gradient,) = torch.autograd.grad((weight * theirs).sum(), current)
    torch.testing.assert_close(gradient, torch.stack(expected))
    (own,) = torch.autograd.grad((weight * trace.spikes).sum(), current)
    assert torch.allclose(own, gradient, rtol=1e-4) == detach_reset


def test_classify_dvsg() -> None:
    """SpikingJelly's example, smaller and without dropout: batch norm over samples and steps, ten neurons vote."""
    random = torch.Generator().manual_seed(0)
    x, y = clouds(3, 1, 2, 8, 8)
    files = save(**halves((torch.poisson(2 * x.expand(-1, 6, -1, -1, -1), generator=random), y)))
    words = ["network=conv", "network.channels=[4,4]", "network.kernel_size=3", "network.stride=1"]
    words += ["network.padding=1", "network.norm=batch", "network.pool=max", "network.pool_after=neuron"]
    words += ["network.bias=false", "neuron.beta=0.5", "neuron.threshold=2", "neuron.reset=zero", "surrogate.alpha=1"]
    words += ["decoder=population", "decoder.size=10", "loss=mse_count", "loss.correct_rate=1"]
    words += [
        "loss.incorrect_rate=0",
        "network.init=kaiming_normal",
        "schedule=cosine",
        "schedule.unit=epoch",
        "trainer.max_epochs=3",
    ]
    ours = Ours(*files, *words)

    def lif() -> nn.Module:
        return neuron.LIFNode(surrogate_function=SJ.ATan(), detach_reset=True)

    first = [layer.Conv2d(2, 4, 3, padding=1, bias=False), layer.BatchNorm2d(4), lif(), layer.MaxPool2d(2, 2)]
    second = [layer.Conv2d(4, 4, 3, padding=1, bias=False), layer.BatchNorm2d(4), lif(), layer.MaxPool2d(2, 2)]
    last = [layer.Flatten(), layer.Linear(16, 30, bias=False), lif(), layer.VotingLayer(10)]
    net = nn.Sequential(*first, *second, *last)
    functional.set_step_mode(net, "m")
    ours.give({"conv1.synapse.0": first[0], "conv2.synapse.1": second[0], "readout.synapse.1": last[1]})

    def rate(x: Tensor) -> Tensor:
        functional.reset_net(net)
        return net(x).mean(0)

    adam = torch.optim.Adam(net.parameters(), lr=1e-3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 3)

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(rate(x), F.one_hot(y, 3).float())

    theirs = ours.trained(loss_of, adam, lambda val: cosine.step())
    assert [loss / 6 for loss in ours.losses] == close(theirs)
    net.eval()
    assert ours.metrics["test/accuracy"] == close(ours.accuracy(lambda x: rate(x).argmax(1)))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_poisson_code_in_norse() -> None:
    """Norse's LIFCell behind linear layers, and the cross-entropy of spike counts.

    Norse 1.1.0 computes its surrogate with an alpha of 1, whatever it is told.
    """
    from norse.torch import LIFCell

    words = ["neuron=lif", "surrogate=super_spike", "surrogate.alpha=1", "encoder=bernoulli", "loss=ce_count"]
    words += ["num_steps=25", "network.init=kaiming_normal", "network.hidden=[32]", "trainer.max_epochs=3"]
    ours = Ours(*save(**halves(clouds(4, 80))), *words)
    fc1, lif1, fc2, lif2 = nn.Linear(80, 32), LIFCell(), nn.Linear(32, 4), LIFCell()
    ours.give({"hidden1.synapse": fc1, "readout.synapse": fc2})

    def count(x: Tensor) -> Tensor:
        s1 = s2 = None
        out = torch.zeros(len(x), 4)
        for spikes in torch.bernoulli(x.expand(25, *x.shape)):
            z, s1 = lif1(fc1(spikes), s1)
            z, s2 = lif2(fc2(z), s2)
            out = out + z
        return out

    adam = torch.optim.Adam(weights(fc1, fc2), lr=1e-3)
    assert ours.losses == close(ours.trained(lambda x, y: F.cross_entropy(count(x), y), adam))
    assert ours.metrics["test/accuracy"] == close(ours.accuracy(lambda x: count(x).argmax(1)))
