"""The two-dimensional experiment: its targets, its methods and its report."""

import json
import math
import shutil
import sys

import pytest
import torch
from torch.distributions import Normal

from scmixvi.experiments import density2d, report


@pytest.mark.parametrize("name", density2d.TARGETS)
def test_targets_are_normalised_and_symmetric_where_they_should_be(name):
    target = density2d.TARGETS[name]()
    points = density2d.grid()
    mass = (target.log_prob(points) + density2d.log_cell()).exp()
    assert mass.sum().item() == pytest.approx(1, abs=1e-4)
    by_mode = [mass[inside(points)].sum().item() for inside in target.modes.values()]
    expected = [0.25] * 4 if name == "ring" else [0.8, 0.2]
    assert by_mode == pytest.approx(expected, abs=0.02)


def test_bimodal_is_the_papers_density():
    """Its own normaliser is already 1, and a value worked out by hand."""
    target = density2d.bimodal()
    assert target.log_norm == pytest.approx(0, abs=1e-4)
    at_heavy = target.log_prob(torch.ones(2)).exp().item()
    assert at_heavy == pytest.approx(0.8 / (2 * math.pi * 0.1), rel=1e-3)


@pytest.fixture
def terms():
    """Log p `[60, 3, 1]` and log q `[60, 3, 3, 1]` of 60 draws of each of 3 components."""
    return torch.randn(60, 3, 1).double(), torch.randn(60, 3, 3, 1).double()


def test_an_ensemble_adds_up_the_bounds_that_its_members_have_alone(terms):
    log_p, log_q_all = terms
    alone = [(log_p[:, s] - log_q_all[:, s, s]).mean() for s in range(3)]
    torch.testing.assert_close(density2d.ensemble_bound(log_p, log_q_all), sum(alone))


def test_the_importance_weighted_bound_averages_30_weights_inside_the_logarithm(terms):
    log_p, log_q_all = (term.narrow(1, 0, 1) for term in terms)
    log_q_all = log_q_all[:, :, :1]
    weights = (log_p[:, 0] - log_q_all[:, 0, 0]).exp().reshape(30, 2)
    expected = weights.mean(0).log().mean()
    torch.testing.assert_close(density2d.importance_weighted_bound(log_p, log_q_all), expected)


def test_both_divergences_are_those_of_two_gaussians():
    """KL(N(a, s^2) || N(b, t^2)) = log(t / s) + (s^2 + (a - b)^2) / (2 t^2) - 1/2, twice."""
    torch.manual_seed(0)
    target = density2d.Target(lambda z: Normal(0.3, 0.4).log_prob(z).sum(-1), {})
    found = density2d.figures(target, density2d._fixed(torch.zeros(1, 1, 2), 0.5), n_repeats=100)
    p_q = math.log(0.5 / 0.4) + (0.4**2 + 0.3**2) / (2 * 0.5**2) - 0.5
    q_p = math.log(0.4 / 0.5) + (0.5**2 + 0.3**2) / (2 * 0.4**2) - 0.5
    assert found["kl_p_q"] == pytest.approx(2 * p_q, abs=1e-4)
    assert found["kl_q_p"] == pytest.approx(2 * q_p, abs=0.02)


def test_the_mixture_covers_both_modes_and_the_bound_tells():
    torch.manual_seed(0)
    target = density2d.bimodal(0.5)
    model = density2d.Gaussians(10)
    posterior = density2d.fit(target, model, density2d.mixture_bound, 300, 50)
    found = density2d.figures(target, posterior, n_repeats=50)
    assert 0.05 < found["mass"]["light mode (0.2)"] < 0.35
    assert 0 <= found["kl_q_p"] < 0.1, "leaving the light mode out would cost -log 0.8 = 0.22"
    assert found["evidence_mean"] == pytest.approx(1, abs=0.02)


def test_population_monte_carlo_finds_both_modes():
    torch.manual_seed(0)
    target = density2d.bimodal(0.5)
    posterior = density2d.dm_pmc(target, 15, 50, scale=0.4)
    found = density2d.figures(target, posterior, n_repeats=50)
    assert 0.05 < found["mass"]["light mode (0.2)"] < 0.45
    assert found["kl_q_p"] < 0.6
    assert found["evidence_mean"] == pytest.approx(1, abs=0.05)


def test_smoke_run_resumes_and_reports(tmp_path, monkeypatch, capsys):
    result = tmp_path / "density2d.json"
    targets = {name: density2d.TARGETS[name] for name in ("ring", "bimodal")}
    monkeypatch.setattr(density2d, "TARGETS", targets)
    monkeypatch.setattr(density2d, "METHODS", ("iwvi", "mixture"))
    arguments = ["--smoke", "--seed", "3", "--result", str(result)]
    density2d.main(arguments)
    content = json.loads(result.read_text())
    assert set(content["runs"]) == {
        f"{target}/{method}/seed=3" for target in targets for method in ("iwvi", "mixture")
    }
    run = content["runs"]["bimodal/mixture/seed=3"]
    assert run["environment"]["scmixvi"]
    assert sum(run["mass"].values()) == pytest.approx(1, abs=1e-3)
    capsys.readouterr()
    density2d.main(arguments)
    assert capsys.readouterr().out == "", "nothing is run twice"
    monkeypatch.setattr(
        sys, "argv", ["report", "--results", str(tmp_path), "--output", str(tmp_path / "out")]
    )
    report.main()
    table = (tmp_path / "out" / "density2d.md").read_text()
    assert "not run" in table
    assert f"{run['kl_q_p']:.3f}" in table
    assert (tmp_path / "out" / "density2d.png").stat().st_size > 10_000


def test_smoke_runs_are_not_kept_as_real_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(density2d, "job", lambda *_: {"kl_q_p": 0.0})
    result = tmp_path / "density2d.json"
    density2d.main(["--smoke", "--result", str(result)])
    with pytest.raises(ValueError, match="holds smoke runs and cannot take real ones"):
        density2d.main(["--result", str(result)])


def test_the_committed_runs_are_real_and_take_others(tmp_path, monkeypatch):
    monkeypatch.setattr(density2d, "job", lambda *_: {"kl_q_p": 0.0})
    result = shutil.copy(density2d.RESULT, tmp_path)
    before = json.loads(density2d.RESULT.read_text())
    density2d.main(["--seed", "7", "--result", str(result)])
    after = json.loads((tmp_path / "density2d.json").read_text())
    n_jobs = len(density2d.TARGETS) * len(density2d.METHODS)
    assert len(after["runs"]) == len(before["runs"]) + n_jobs
    assert before["runs"].items() <= after["runs"].items()
    with pytest.raises(ValueError, match="holds real runs and cannot take smoke ones"):
        density2d.main(["--seed", "8", "--smoke", "--result", str(result)])


def test_what_others_write_during_a_fit_is_kept(tmp_path, monkeypatch):
    words = ["--smoke", "--result", str(tmp_path / "density2d.json")]
    others = iter([["--seed", "1"]])

    def job(*_):
        for seed in others:
            density2d.main([*words, *seed])
        return {}

    monkeypatch.setattr(density2d, "job", job)
    density2d.main(words)
    n_jobs = len(density2d.TARGETS) * len(density2d.METHODS)
    assert len(json.loads((tmp_path / "density2d.json").read_text())["runs"]) == 2 * n_jobs
