"""Encoders that see a part of each cell: the draws follow their law, and nothing else changes."""

import numpy as np
import pytest
import torch
from scipy import stats
from scvi.model import SCVI

from counts import QUIET, make_adata
from scmixvi import MixtureSCVI
from scmixvi.singlecell import MixtureVAE
from scmixvi.singlecell._loops import thinning as _thinning
from scmixvi.singlecell._loops.thinning import thinned
from scmixvi.singlecell._parts import inference as _inference


@pytest.fixture(params=["compiled", "torch's"])
def either_way(request, monkeypatch):
    monkeypatch.setattr(_thinning, "available", lambda: request.param == "compiled")


def with_share(monkeypatch, lost, rate):
    """Every cell loses that share."""
    monkeypatch.setattr(torch, "rand", lambda n, **_: torch.full((n,), lost / rate))


@pytest.mark.parametrize("lost", [0.1, 0.55, 0.9, 0.99])
@pytest.mark.parametrize("count", [1, 5, 16, 17, 65, 300])
def test_what_is_left_is_binomial(either_way, monkeypatch, count, lost):
    torch.manual_seed(count)
    with_share(monkeypatch, lost, 0.9)
    left = thinned(torch.full((100, 400), float(count)), 0.9) * (1 - lost)
    torch.testing.assert_close(left, left.round(), atol=1e-3, rtol=0)
    observed = np.bincount(left.round().long().flatten().numpy(), minlength=count + 1)
    expected = stats.binom(count, 1 - lost).pmf(np.arange(count + 1)) * left.numel()
    often = expected > 20
    chi2 = ((observed - expected)[often] ** 2 / expected[often]).sum()
    assert chi2 < stats.chi2(often.sum()).isf(1e-4)
    assert observed[~often].sum() < expected[~often].sum() + 5 * expected[~often].sum() ** 0.5 + 5


@pytest.mark.parametrize("count", [65, 1000, 100_000])
def test_many_counts_keep_mean_and_spread(either_way, monkeypatch, count):
    torch.manual_seed(0)
    with_share(monkeypatch, 0.6, 0.9)
    left = thinned(torch.full((100, 400), float(count)), 0.9).double() * 0.4
    n, variance = left.numel(), count * 0.4 * 0.6
    assert abs(left.mean() - count * 0.4) < 4 * (variance / n) ** 0.5
    assert abs(left.var() / variance - 1) < 5 * (2 / n) ** 0.5
    assert left.min() >= 0
    assert left.max() <= count + 0.1


@pytest.mark.parametrize("lost", [0.02, 0.9])
def test_no_more_is_left_than_was_there_and_no_less_than_nothing(either_way, monkeypatch, lost):
    """Of 65, which the normal approximation would pass on either side."""
    with_share(monkeypatch, lost, 0.9)
    left = thinned(torch.full((100, 400), 65.0), 0.9) * (1 - lost)
    assert left.min() >= 0
    assert left.max() <= 65.01


def test_cells_that_lose_the_same_share_lose_other_counts(either_way, monkeypatch):
    with_share(monkeypatch, 0.5, 0.9)
    first, second = (thinned(torch.ones(100, 400), 0.9) > 0 for _ in range(2))
    assert abs((first == second).double().mean() - 0.5) < 0.01
    assert abs((first[1:] == first[:-1]).double().mean() - 0.5) < 0.01


def test_the_share_is_uniform_and_each_cells_own(either_way):
    torch.manual_seed(0)
    kept = thinned(torch.full((2000, 50), 1e5), 0.9).count_nonzero(1)
    assert (kept == 50).all()
    single = (thinned(torch.ones(4000, 500), 0.9) > 0).float().mean(1)
    assert stats.kstest(single.numpy(), stats.uniform(0.1, 0.9).cdf).pvalue > 1e-4


def test_draws_follow_torchs_seed_and_leave_the_counts(either_way):
    x = torch.poisson(torch.rand(30, 40) * 5)
    before = x.clone()
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(thinned(x, 0.5))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(thinned(x, 0.5), draws[2])
    assert torch.equal(x, before)
    assert (draws[0][x == 0] == 0).all()


def test_a_cell_that_loses_nothing_is_itself(either_way, monkeypatch):
    with_share(monkeypatch, 0.0, 0.9)
    x = torch.arange(300.0).reshape(3, 100) * 0.75
    assert torch.equal(thinned(x, 0.9), x)


@pytest.mark.parametrize("count", [0.25, 0.9, 1.5, 16.5, 40.5, 70.25])
def test_counts_that_are_not_whole_are_kept_on_average(either_way, monkeypatch, count):
    """As some corrections for ambient RNA leave them: the whole part is drawn, the rest stays."""
    torch.manual_seed(0)
    with_share(monkeypatch, 0.5, 0.9)
    found = thinned(torch.full((100, 400), count), 0.9)
    left = (found - count % 1) * 0.5
    torch.testing.assert_close(left, left.round())
    error = (int(count) / found.numel()) ** 0.5  # the variance is that of the whole part
    assert abs(found.double().mean() - count) <= 4 * error + 1e-6


def test_what_is_no_number_stays_none(either_way):
    """The loss then says so; torch's binomial would not end."""
    x = torch.tensor([[float("nan"), 3.0]])
    assert thinned(x, 0.5).isnan().tolist() == [[True, False]]


def test_other_kinds_of_counts(either_way):
    x = torch.poisson(torch.rand(30, 40) * 5)
    assert thinned(x.double(), 0.5).dtype == torch.float64
    assert thinned(x.bfloat16(), 0.5).dtype == torch.bfloat16
    torch.manual_seed(0)
    expected = thinned(x, 0.5)
    for other in (x.long(), x.to_sparse_csr(), x.clone().requires_grad_()):
        torch.manual_seed(0)
        torch.testing.assert_close(thinned(other, 0.5), expected, rtol=0, atol=0)
    assert thinned(x.T, 0.5).shape == (40, 30)
    assert ((thinned(x.T, 0.5) == 0) | (x.T > 0)).all()


def encoded(model, batch):
    module = model.module
    with torch.no_grad():
        return module.inference(**module._get_inference_input(batch))


@pytest.mark.parametrize("sharing", ["separate", "trunk"])
def test_encoders_see_a_part_in_training_and_all_of_it_after(make_model, first_batch, sharing):
    model = make_model(n_components=2, encoder_sharing=sharing, thinning_rate=0.9, dropout_rate=0.0)
    model.module.eval()
    batch = first_batch(model)
    first, second = encoded(model, batch), encoded(model, batch)
    assert torch.equal(first["qz"].c_loc, second["qz"].c_loc)
    model.module.train()
    first, second = encoded(model, batch), encoded(model, batch)
    assert not torch.equal(first["qz"].c_loc, second["qz"].c_loc)


@pytest.mark.parametrize("observed", [True, False])
def test_everything_but_the_encoders_of_z_has_the_whole_cell(
    make_model, first_batch, monkeypatch, observed
):
    model = make_model(
        n_components=2,
        thinning_rate=0.9,
        dropout_rate=0.0,
        use_batch_norm="none",
        use_observed_lib_size=observed,
        batch_key="batch",
        encode_covariates=True,
    )
    batch = first_batch(model)
    module = model.module
    module.eval()
    whole = encoded(model, batch)
    nothing = encoded(model, batch | {"X": torch.zeros_like(batch["X"])})
    asked = []
    monkeypatch.setattr(
        _inference, "thinned", lambda x, rate: asked.append((x, rate)) or torch.zeros_like(x)
    )
    module.train()
    seen = encoded(model, batch)
    assert [rate for _, rate in asked] == [0.9]
    assert torch.equal(asked[0][0], batch["X"])
    assert torch.equal(seen["qz"].c_loc, nothing["qz"].c_loc)
    assert not torch.equal(seen["qz"].c_loc, whole["qz"].c_loc)
    if observed:
        assert torch.equal(seen["library"], batch["X"].sum(1, keepdim=True).log())
    else:
        assert torch.equal(seen["ql"].loc, whole["ql"].loc)
    _, decoded, losses = module(batch)
    px = decoded["px"]
    expected = -px.log_prob(batch["X"]).sum(-1)
    found = losses.reconstruction_loss["reconstruction_loss"]
    torch.testing.assert_close(found, expected.mean(0), rtol=1e-4, atol=1e-3)


def test_refined_encoders_see_all(make_model, monkeypatch):
    model = make_model(n_components=2, thinning_rate=0.9)
    model.train(1, **QUIET)

    def refuse(x, rate):
        raise AssertionError

    monkeypatch.setattr(_inference, "thinned", refuse)
    model.get_elbo()
    model.get_latent_representation(n_refinement_steps=2)
    model.refine_encoders(1, **QUIET)
    with pytest.raises(AssertionError):
        model.train(1, **QUIET)


@pytest.mark.parametrize("unfrozen", [False, True])
def test_a_query_sees_a_part_where_all_its_weights_train(make_model, monkeypatch, unfrozen):
    reference = make_model(n_components=2, thinning_rate=0.9, batch_key="batch")
    reference.train(1, **QUIET)
    query = make_adata(seed=3)
    query.obs["batch"] = "new"
    model = MixtureSCVI.load_query_data(query, reference, unfrozen=unfrozen)
    sizes = []
    monkeypatch.setattr(_inference, "thinned", lambda x, rate: sizes.append(len(x)) or x)
    split = {"train_size": 0.5, "check_val_every_n_epoch": 1}  # validation cells are seen whole
    model.train(2, plan_kwargs={"weight_decay": 0.0}, **split, **QUIET)
    assert sizes == ([30, 30] if unfrozen else [])


def test_without_thinning_no_random_number_is_drawn(make_model, first_batch, monkeypatch):
    def refuse(x, rate):
        raise AssertionError

    monkeypatch.setattr(_inference, "thinned", refuse)
    make_model(n_components=2).train(1, **QUIET)


def test_a_model_keeps_its_rate(make_model, tmp_path):
    model = make_model(n_components=2, thinning_rate=0.8)
    model.train(1, **QUIET)
    model.save(str(tmp_path), overwrite=True)
    loaded = MixtureSCVI.load(str(tmp_path), adata=model.adata)
    assert loaded.module.thinning_rate == 0.8
    assert "thinning_rate: 0.8" in loaded._model_summary_string
    assert "thinning" not in make_model(n_components=2)._model_summary_string
    stock = model.to_scvi(0)
    mixture = MixtureSCVI.from_scvi_model(stock, n_components=2, thinning_rate=0.5)
    assert mixture.module.thinning_rate == 0.5


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, float("nan"), "0.5", None, True])
def test_rates_that_are_none(make_model, rate):
    with pytest.raises(ValueError, match="thinning_rate must be a number of at least 0"):
        make_model(thinning_rate=rate)


def test_what_has_no_counts_cannot_lose_any(make_model):
    with pytest.raises(ValueError, match="gene_likelihood='normal' is for data that are none"):
        make_model(thinning_rate=0.5, gene_likelihood="normal")
    stock, cells = make_model(SCVI, gene_likelihood="normal"), make_adata()
    with pytest.raises(ValueError, match="gene_likelihood='normal' is for data that are none"):
        MixtureSCVI.from_scvi_model(stock, adata=cells, thinning_rate=0.5)
    assert not cells.uns
    by_place = 9, 0, 0, 16, 3, 1, 0, None, 0.1, "gene", True, "normal"
    with pytest.raises(ValueError, match="gene_likelihood='normal' is for data that are none"):
        MixtureVAE(*by_place, thinning_rate=0.5)
