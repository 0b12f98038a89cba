"""Log p(x) by adapted proposals: exact where it is known, and the same whatever the encoder."""

import json
import math

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal

from counts import make_adata
from scmixvi import MixtureSCVI
from scmixvi.experiments import decoders
from scmixvi.experiments._cells import training as singlecell
from scmixvi.experiments._reports import decoders as report
from scmixvi.singlecell._queries.evidence import evidence

QUICK = singlecell.Training(batch_size=32, max_epochs=30, patience=30)


def own_estimate(log_densities, draws, n):
    log_p, log_q = log_densities(draws(n))
    return (log_p - log_q).logsumexp(0) - math.log(n)


def test_evidence_of_a_linear_gaussian_is_exact_whatever_the_encoder():
    """One that does not look at x falls nats short with as many draws."""
    torch.manual_seed(0)
    n_cells, n_latent, n_genes, noise = 20, 10, 30, 0.5
    weight = torch.randn(n_cells, n_genes, n_latent)
    x = 2 * torch.randn(n_cells, n_genes)
    encoder = Independent(Normal(torch.zeros(n_cells, n_latent), 1.0), 1)

    def log_densities(z):
        mean = torch.einsum("bgd,nbd->nbg", weight, z)
        log_lik = Normal(mean, noise).log_prob(x).sum(-1)
        return log_lik + encoder.log_prob(z), encoder.log_prob(z)

    def draws(n):
        return encoder.sample((n,))

    covariance = weight @ weight.mT + noise**2 * torch.eye(n_genes)
    mean = torch.zeros(n_cells, n_genes, dtype=torch.float64)
    exact = MultivariateNormal(mean, covariance.double()).log_prob(x.double())
    found = evidence(log_densities, draws)
    assert (exact - own_estimate(log_densities, draws, 2000)).mean() > 2
    assert (found.log_likelihood - exact).abs().max() < 0.1
    assert (found.log_likelihood - exact).mean().abs() < 0.02
    assert found.effective.min() > 0.3
    assert found.still_rising.abs().mean() < 0.02


def test_evidence_counts_both_modes():
    torch.manual_seed(1)
    encoder = Independent(Normal(torch.zeros(8, 2), 1.5), 1)

    def log_densities(z):
        modes = [Independent(Normal(torch.full((2,), m), 0.4), 1).log_prob(z) for m in (-1.2, 1.2)]
        log_p = torch.logaddexp(modes[0] + math.log(0.3), modes[1] + math.log(0.7)) - 3.0
        return log_p, encoder.log_prob(z)

    found = evidence(log_densities, lambda n: encoder.sample((n,)))
    assert (found.log_likelihood + 3.0).abs().max() < 0.15
    assert (found.log_likelihood + 3.0).mean().abs() < 0.05


def test_encoders_do_not_change_the_decoders_likelihood():
    """An ensemble has the decoder of S = 1: another proposal, the same log p(x)."""
    singlecell.quiet()
    adata = make_adata(80)
    MixtureSCVI.setup_anndata(adata)
    split = singlecell.random_split(80, 50, 10, seed=0)
    torch.manual_seed(0)
    base = singlecell.train_mixture(adata, split, QUICK, 1)["state"]
    member = singlecell.train_member(adata, split, QUICK, base)["state"]
    one = singlecell.papers_model(adata, 1, base)
    two = singlecell.papers_model(adata, 2, singlecell.ensemble(base, [member]))
    torch.manual_seed(1)
    found = [decoders.converged(model, split.test) for model in (one, two)]
    own = singlecell.bounds(one, split.test, 1000)
    assert found[0]["log_p"] == pytest.approx(found[1]["log_p"], abs=0.02)
    assert found[0]["log_p"] > own["log_likelihood"] - 0.05
    assert found[0]["log_p"] > own["miselbo"]
    assert found[0]["still_rising"] < 0.05


def test_smoke_run_resumes_and_is_reported(tmp_path, capsys):
    path = tmp_path / "decoders.json"
    decoders.main(["--smoke", "--result", str(path)])
    runs = json.loads(path.read_text())["runs"]
    names = ["mixture/S=1", "mixture/S=4", "ensemble/S=4", "default/S=1", "default/S=4"]
    names += ["longer, batch norm both", "longer, batch norm none"]
    eq17 = {s: runs.pop(f"cortex/mixture/S={s}/Eq. 17/seed=0")["eq17"] for s in (1, 4)}
    assert set(runs) == {f"cortex/{name}/seed=0" for name in names}
    for s, bound in eq17.items():
        assert bound < runs[f"cortex/mixture/S={s}/seed=0"]["test"]["log_p"] + 1
    for run in runs.values():
        for found in (run["test"], run["training"]):
            assert found["gap"] == pytest.approx(found["log_p"] - found["miselbo"], abs=1e-4)
            assert 0 < found["smallest_effective_share"] <= found["effective_share"] <= 1
    capsys.readouterr()
    decoders.main(["--smoke", "--result", str(path)])
    assert capsys.readouterr().out == ""
    text = report.decoders_tables(runs)
    assert "not run" in text
    four, one = (runs[f"cortex/mixture/S={s}/seed=0"]["test"]["log_p"] for s in (4, 1))
    gain = four - one
    assert f"{gain:+.2f}" in text
    report.decoders_figure(runs, tmp_path / "decoders.png")
    assert (tmp_path / "decoders.png").stat().st_size > 5000


def test_a_smoke_run_has_some_data_alone(tmp_path):
    with pytest.raises(ValueError, match="a smoke run is of cortex, pbmc68k: pass --data of these"):
        decoders.main(["--smoke", "--result", str(tmp_path / "x.json"), "--data", "sc_mixology"])
    assert not list(tmp_path.iterdir())
