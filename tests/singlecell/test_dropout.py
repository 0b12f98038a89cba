"""Dropout by a compiled loop."""

import math

import pytest
import torch
from torch import nn

from scmixvi.singlecell._loops import dropout as _dropout
from scmixvi.singlecell._loops.dropout import dropped, kept_units


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.93])
def test_units_are_lost_at_the_rate_and_the_rest_scaled(rate):
    torch.manual_seed(0)
    kept = kept_units(torch.empty(300, 3, 401), rate)
    assert set(kept.unique().tolist()) == {0.0, torch.tensor(1 / (1 - rate)).item()}
    error = math.sqrt(rate * (1 - rate) / kept.numel())
    assert (kept == 0).float().mean().item() == pytest.approx(rate, abs=4 * error)


def test_units_are_independent_of_each_other_and_of_the_last_draw():
    """Of neighbours, of places that share one state, of rows and of two draws: correlations."""
    torch.manual_seed(0)
    first, second = (kept_units(torch.empty(400, 500), 0.3).flatten() for _ in range(2))
    half = len(first) // 2
    pairs = [
        (first[1:], first[:-1]),
        (first[half:], first[:half]),
        (first[500:], first[:-500]),
        (first, second),
    ]
    for a, b in pairs:
        correlation = torch.corrcoef(torch.stack([a, b]))[0, 1].item()
        assert abs(correlation) < 4 / math.sqrt(len(a))


def test_a_seed_gives_the_same_units():
    units = []
    for _ in range(2):
        torch.manual_seed(5)
        units.append(kept_units(torch.empty(7, 9), 0.5))
    assert torch.equal(*units)
    assert not torch.equal(units[0], kept_units(torch.empty(7, 9), 0.5))


@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_gradients_pass_by_the_units_that_are_kept(layout):
    torch.manual_seed(0)
    hidden = torch.randn(6, 5)
    hidden = (hidden if layout == "rows" else hidden.T).requires_grad_()
    out = dropped(nn.Dropout(0.4), hidden)
    out.sum().backward()
    assert torch.equal(out, hidden * hidden.grad)
    assert (hidden.grad == 0).any()


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_none_or_all(rate):
    hidden = torch.ones(3, 4)
    assert torch.equal(dropped(nn.Dropout(rate), hidden), (1 - rate) * hidden)


def test_evaluation_loses_none():
    hidden = torch.randn(3, 4)
    assert torch.equal(dropped(nn.Dropout(0.5).eval(), hidden), hidden)


def test_other_numbers_are_torchs(monkeypatch):
    """Float64, and where nothing is compiled: the same law and type."""
    torch.manual_seed(0)
    monkeypatch.setattr(_dropout, "_draw", None)
    wide = kept_units(torch.empty(100, 100, dtype=torch.float64), 0.25)
    monkeypatch.setattr(_dropout, "available", lambda: False)
    interpreted = kept_units(torch.empty(100, 100), 0.25)
    for kept, dtype in ((wide, torch.float64), (interpreted, torch.float32)):
        assert kept.dtype is dtype
        assert (kept == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
