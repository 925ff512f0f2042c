"""Restoring process-wide state."""

import os
import random

import pytest
import torch

from snnexp import isolation
from snnexp.experiment import compose
from snnexp.isolation import restored


def test_an_error_does_not_prevent_restoring_other_states() -> None:
    put: list[str] = []

    def fail(value: str) -> None:
        raise OSError(value)

    states = [(lambda: "first", put.append), (lambda: "second", fail), (lambda: "third", put.append)]
    with pytest.raises(OSError, match="second") as caught, restored(states):
        raise LookupError("under way")
    assert put == ["first", "third"]
    assert isinstance(caught.value.__context__, LookupError)


def test_only_variables_that_changed_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHANGED", "before")
    monkeypatch.setenv("DELETED", "before")
    written: list[str] = []
    put = os.environ.__class__.__setitem__

    def note(self: object, key: str, value: str) -> None:
        written.append(key)
        put(os.environ, key, value)

    with restored(isolation.PROCESS):
        os.environ["CHANGED"] = os.environ["ADDED"] = "now"
        del os.environ["DELETED"]
        monkeypatch.setattr(os.environ.__class__, "__setitem__", note)
    assert sorted(written) == ["CHANGED", "DELETED"]
    assert (os.environ["CHANGED"], os.environ["DELETED"], os.environ.get("ADDED")) == ("before", "before", None)


def test_a_config_sets_no_random_states(monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name in ((torch, "set_rng_state"), (random, "setstate")):
        monkeypatch.setattr(owner, name, lambda state: pytest.fail("is set"))
    compose(["experiment=regression_sqrt"])
