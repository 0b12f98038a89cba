"""The experiment of halves of cells, on a corner of the data, and its report."""

import json
from itertools import product

import numpy as np
import pytest
import scvi
import torch
from scipy import stats
from scvi.distributions import ZeroInflatedNegativeBinomial

from counts import QUIET, make_adata
from scmixvi import MixtureSCVI
from scmixvi.experiments import halves
from scmixvi.experiments._reports import halves as report
from scmixvi.experiments.halves import LATENT, SUMS
from scmixvi.singlecell._queries.evidence import posterior_draws


def test_the_halves_of_a_count_have_the_law_of_the_whole():
    """p(x') p(x'' | x') is the coin's probability of this split of x, times p(x)."""
    torch.manual_seed(0)
    mean, theta, logits = torch.rand(6) * 4, torch.rand(6) * 3 + 0.1, torch.randn(6)

    def law(times):
        return ZeroInflatedNegativeBinomial(mu=times * mean, theta=theta, zi_logits=logits)

    for seen, other in product(range(4), range(4)):
        first, second = torch.full((6,), float(seen)), torch.full((6,), float(other))
        given = torch.stack(
            [
                halves.log_other_half(gene_alone(law(1), g), first[g, None], second[g, None])
                for g in range(6)
            ]
        )
        split = np.log(stats.binom.pmf(seen, seen + other, 0.5))
        found = law(1).log_prob(first) + given
        torch.testing.assert_close(
            found, law(2).log_prob(first + second) + split, atol=1e-4, rtol=0
        )


def gene_alone(px, gene):
    return ZeroInflatedNegativeBinomial(
        mu=px.mu[gene, None], theta=px.theta[gene, None], zi_logits=px.zi_logits[gene, None]
    )


@pytest.fixture
def model():
    scvi.settings.seed = 0
    adata = make_adata()
    MixtureSCVI.setup_anndata(adata, batch_key="batch")
    model = MixtureSCVI(adata, n_components=2, n_hidden=16, n_latent=3)
    model.train(2, latent_key=None, **QUIET)
    return model


def test_halves_add_up_and_keep_their_batch(model):
    indices = np.arange(3, 60, 4)
    half, other = halves.halves(model, indices)
    np.testing.assert_array_equal(half.X.toarray() + other, model.adata.X[indices].toarray())
    assert half.X.min() >= 0
    assert other.min() >= 0
    assert abs(half.X.sum() / (half.X.sum() + other.sum()) - 0.5) < 0.05
    np.testing.assert_array_equal(half.obs["batch"], model.adata.obs["batch"].iloc[indices])


def test_the_score_is_the_mean_of_densities_over_draws(model, monkeypatch):
    """Whatever is decoded at once; with depths of their own for draws that have them."""
    half, other = halves.halves(model, np.arange(7))
    adata = model._validate_anndata(half)
    tensors = next(iter(model._make_data_loader(adata, batch_size=7)))
    encoded, rest = model.module._encoded_whole(tensors), torch.from_numpy(other)
    u = torch.randn(30, 7, 3)
    log_l = tensors["X"].sum(1, keepdim=True).log().expand(30, -1, -1)

    def score(states):
        return halves.score(model.module, tensors, encoded, rest, states)

    found = score(u)
    alone = torch.stack([score(u[k : k + 1]) for k in range(30)])
    torch.testing.assert_close(found, alone.logsumexp(0) - np.log(30), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(score(torch.cat([u, log_l], -1)), found)
    assert score(torch.cat([u, log_l + 3], -1)).mean() < found.mean() - 5


def test_powers_of_the_likelihood_widen_the_posterior(model):
    """At 1 it is the exact one, and from there down it is the wider the smaller the power."""
    half, _ = halves.halves(model, np.arange(30))
    tensors = next(iter(model._make_data_loader(model._validate_anndata(half), batch_size=30)))
    with torch.no_grad():
        encoded = model.module._encoded_whole(tensors)
    found = dict(halves.draws_by_power(model.module, None, tensors, encoded, smoke=False))
    spread = [found[f"power {power}"].std(0).mean().item() for power in halves.POWERS]
    assert spread == sorted(spread, reverse=True)
    assert spread[0] > 1.02 * spread[-1]
    exact, _ = posterior_draws(model.module, tensors, halves.N_DRAWS)
    error = exact.std(0) / halves.N_DRAWS**0.5
    assert ((found["power 1.0"].mean(0) - exact.mean(0)).abs() < 6 * error).all()


def test_smoke_run_has_every_posterior_and_is_reported(tmp_path):
    result = tmp_path / "halves.json"
    halves.main(["--smoke", "--result", str(result)])
    runs = json.loads(result.read_text())["runs"]
    jobs = [f"cortex/{kind}/S={size}" for kind in halves.MODELS for size in (1, 4)]
    powers = [f"cortex/powers/S={size}" for size in (1, 4)]
    assert set(runs) == {f"{job}/seed=0" for job in (*jobs, *powers)}
    for job in jobs:
        assert all(-1000 < runs[f"{job}/seed=0"][stage] < 0 for stage in (*SUMS, *LATENT))
    table = report.halves_tables(runs)
    one, four = (runs[f"cortex/thinned/S={size}/seed=0"] for size in (1, 4))
    base = runs["cortex/default/S=1/seed=0"]["encoders"]
    assert f"| cortex | thinned | 4 | {base:.1f} | {four['encoders'] - base:+.1f} |" in table
    latent = four["exact, depth latent"] - four["exact"]
    assert f"| {latent:+.2f} |" in table
    assert f"| cortex | thinned | {four['encoders'] - one['encoders']:+.2f} |" in table
    weaker, exact = (runs["cortex/powers/S=4/seed=0"][f"power {b}"] for b in (0.5, 1.0))
    assert f"| cortex | 4 | {weaker - exact:+.2f} |" in table
    report.halves_figure(runs, tmp_path / "halves.png")
    assert (tmp_path / "halves.png").stat().st_size > 0
