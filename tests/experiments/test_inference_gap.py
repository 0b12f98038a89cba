"""The gap split by family: on a posterior that is known, and on a corner of the data."""

import json

import pytest
import torch
from torch.distributions import MultivariateNormal

from laws import gaussian_mixture
from scmixvi.experiments import inference_gap
from scmixvi.experiments._cells.coverage import covered
from scmixvi.experiments._families import FAMILIES, best, bound_of
from scmixvi.experiments._reports import inference_gap as report


def test_families_leave_the_gap_that_they_must():
    """A correlated Gaussian posterior: full covariance leaves nothing, one diagonal a known gap.

    The best diagonal Gaussian has the precisions of the target's diagonal, and its KL divergence is
    -log(1 - rho^2) / 2 in two dimensions.
    """
    torch.manual_seed(0)
    rho = 0.9
    covariance = torch.tensor([[1.0, rho], [rho, 1.0]])
    target = MultivariateNormal(torch.tensor([0.5, -0.5]), covariance)
    start = torch.zeros(1, 3, 2), torch.ones(1, 3, 2)
    gaps = {}
    for family in FAMILIES:
        fitted = best(family, *start, target.log_prob, 1000)
        gaps[family] = -bound_of(fitted, target.log_prob, 4000)
    known = -0.5 * torch.log(torch.tensor(1 - rho**2))
    torch.testing.assert_close(gaps["one Gaussian"], known.expand(3), rtol=0, atol=0.1)
    assert (gaps["full covariance"].abs() < 0.1).all()
    assert (gaps["four Gaussians"] < 0.7 * known).all()
    assert (gaps["four Gaussians"] > 0.05).all()


@pytest.mark.parametrize("width", [1.0, 0.5, 3.0])
def test_what_a_region_of_q_covers(width):
    """One dimension, exact posterior N(0, 1): 90 % of N(0, width^2) reach to 1.645 widths."""
    torch.manual_seed(0)
    n = 20_000
    q = gaussian_mixture(torch.zeros(1, 1, 1), torch.full((1, 1, 1), width))
    z = torch.randn(n, 1, 1)
    found = covered(q, z, torch.full((n, 1), 1 / n), n)
    expected = torch.special.erf(torch.tensor(1.645 * width / 2**0.5))
    assert found.item() == pytest.approx(expected.item(), abs=0.01)


def test_smoke_run_has_every_family_and_is_reported(tmp_path):
    result = tmp_path / "inference_gap.json"
    inference_gap.main(["--smoke", "--result", str(result)])
    runs = json.loads(result.read_text())["runs"]
    assert set(runs) == {
        f"cortex/{kind}/S={size}/seed=0" for kind in inference_gap.MODELS for size in (1, 4)
    }
    for run in runs.values():
        for group in ("test", "training"):
            assert {f"gap/{column}" for column in report.COLUMNS} <= set(run[group])
            assert 0 < run[group]["effective_share_exact"] <= 1
            for what in ("covered", "expression"):
                assert 0.2 < run[group][f"{what}/encoders"] < 1
        assert run["scores/encoders"] != run["scores/100 steps"]
    report.inference_gap_figure(runs, tmp_path / "inference_gap.png")
    text = report.inference_gap_tables(runs)
    assert "| cortex, defaults | 4 |" in text
    assert "not run" in text
