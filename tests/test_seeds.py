"""Seeding the generators of all devices."""

import pytest
import torch

from snnexp.seeds import fold, seed_all


@pytest.mark.parametrize("available", [False, True])
def test_seed_all_equals_manual_seed(monkeypatch: pytest.MonkeyPatch, available: bool) -> None:
    seed = fold(3, "train", 0, 7)
    torch.manual_seed(seed)
    expected, state = torch.rand(5), torch.get_rng_state()
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: available)
    seed_all(seed)
    assert torch.initial_seed() == seed
    assert torch.equal(torch.rand(5), expected)
    assert torch.equal(torch.get_rng_state(), state)


def test_seed_all_seeds_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    seed_all(5)
    assert seeded == [5]
