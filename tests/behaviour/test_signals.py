"""A signal ends a run soon: at once while it waits, after the step while it computes; it goes on to the same bits."""

import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from shell import OUTSIDE, Ended, Shell, lines, record, rows, wait_until

RUN = (
    *("train", *OUTSIDE, "data=trouble", "data.kind=slow", "data.after=6", "network.hidden=[4]", "num_steps=2"),
    *("logger=jsonl", "logger.save_every_n_epochs=100", "logger.save_every_s=1000", "trainer=cpu"),
    *("trainer.max_epochs=3", "trainer.log_every_n_steps=1"),
)


def last(run: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return checkpoint


def losses(run: Path) -> list[int]:
    """The steps of which the loss is known."""
    return [row["step"] for row in rows(run) if "train/loss" in row]


def asleep(shell: Shell) -> bool:
    """Whether a batch or a step that takes long has begun."""
    return (shell.folder / "sleeping").exists()


def stopped(shell: Shell, number: signal.Signals, when: Callable[[Path], bool], *arguments: str, **env: str) -> Ended:
    """How a run ended that got a signal."""
    with shell.started(*RUN, *arguments, **env) as process:
        wait_until(lambda: any(when(run) for run in shell.runs()))
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    return Ended(process.returncode, lines(out), lines(err))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 1), (signal.SIGINT, 0)])
def test_while_a_batch_is_waited_for(shell: Shell, snnexp: Shell, number: signal.Signals, workers: int) -> None:
    words = (f"data.num_workers={workers}",)

    def waits(run: Path) -> bool:
        return len(losses(run)) == 6 and asleep(shell)

    assert stopped(shell, number, waits, *words, SLOW_S="10000").code == 128 + number
    run = shell.run()
    assert (record(run)["status"], record(run)["exit_code"]) == ("interrupted", 128 + number)
    assert last(run)["global_step"] == len(losses(run)), "what was done is saved"
    assert snnexp("resume", str(run)).code == 0
    assert snnexp(*RUN, *words).code == 0
    (whole,) = set(snnexp.runs()) - {run}
    assert rows(run) == rows(whole)
    weights, wanted = last(run)["state_dict"], last(whole)["state_dict"]
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)


@pytest.mark.slow
@pytest.mark.parametrize("val", [0, 32])
def test_while_a_step_or_a_validation_takes_long(shell: Shell, val: int) -> None:
    # an epoch is one step, which its validation or the next epoch follows
    words = ("data.train=16", f"data.val={val}", "encoder=long_step")
    ended = stopped(shell, signal.SIGTERM, lambda run: asleep(shell), *words, STEP_S="3", LONG_FROM="1")
    assert ended.code == 143
    assert sum("SIGTERM" in line for line in ended.err) == 2, "it was acknowledged before it was obeyed"
    run = shell.run()
    assert record(run)["status"] == "interrupted"
    assert losses(run) == ([0] if val else [0, 1])
    assert last(run)["global_step"] == max(row["step"] for row in rows(run)) + 1
    assert any("val/loss" in row for row in rows(run)) == bool(val)


@pytest.mark.slow
def test_a_second_one_ends_a_long_step(shell: Shell) -> None:
    with shell.started(*RUN, "encoder=long_step", STEP_S="60") as process:
        wait_until(lambda: asleep(shell))
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        assert any(signal.SIGTERM.name in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
    assert process.returncode == 143
    assert record(shell.run())["status"] == "interrupted"
    assert not (shell.run() / "checkpoints" / "last.ckpt").exists()


@pytest.mark.slow
def test_an_interrupted_run_names_the_command_that_resumes_it(shell: Shell, snnexp: Shell) -> None:
    root = shell.folder / "with a blank"
    with shell.started(*RUN, f"logger.root={root}", SLOW_S="10000") as process:
        wait_until(lambda: asleep(shell))
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=120)
    (command,) = [shlex.split(line.partition("snnexp ")[2]) for line in lines(out) if "snnexp resume" in line]
    ended = snnexp(*command)
    assert ended.code == 0
    (run,) = root.glob("*/*/")
    assert record(run)["status"] == "finished"
    assert shlex.join(["snnexp", "report", str(run.relative_to(shell.folder))]) in "\n".join(ended.out)


@pytest.mark.slow
@pytest.mark.parametrize(("part", "where"), [("neuron", "init"), ("loss", "measuring")])
@pytest.mark.parametrize("sweep", [(), ("-m", "seed=0,1"), ("-m", "seed=0,1", "hydra/launcher=stacked")])
def test_one_that_a_part_swallows_is_obeyed(shell: Shell, part: str, where: str, sweep: tuple[str, ...]) -> None:
    words = ("train", *OUTSIDE, "data=blobs", "network.hidden=[4]", "num_steps=2", "logger=jsonl", "trainer=cpu")
    ended = shell(*words, f"{part}=own", f"{part}.fault=swallowed signal in {where}", *sweep)
    assert ended.code == (7 if sweep else 143)
    assert {record(run)["status"] for run in shell.runs()} <= {"interrupted"}
    assert len(shell.runs()) == (0 if where == "init" else 2 if sweep else 1)
    if sweep:
        assert [point["status"] for point in shell.points()] == ["interrupted"] * 2
