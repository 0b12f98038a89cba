"""S2A, S2S and a shared trunk in MixtureSCVI: the same bound, the same encoders, bounded memory."""

from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from scvi.model import SCVI
from scvi.nn import Encoder
from torch import nn

import laws
from counts import QUIET, make_adata
from scmixvi import MixtureSCVI
from scmixvi.core import miselbo
from scmixvi.core import posterior as posterior_module
from scmixvi.singlecell._parts import streaming as _streaming
from scmixvi.singlecell._parts.inference import SCORES_KEY
from scmixvi.singlecell._parts.trunk import encode_trunk, initial_offsets

N, F, S, D = 11, 7, 5, 2
ARCHITECTURES = {
    "plain": {"use_batch_norm": False},
    "batch norm": {},
    "layer norm": {"use_batch_norm": False, "use_layer_norm": True},
    "both norms, three layers": {"n_layers": 3, "use_layer_norm": True},
    "covariates everywhere": {"n_layers": 2, "n_cat_list": [2, 1, 3]},
    "covariates in the first layer": {
        "n_layers": 2,
        "n_cat_list": [2, 1, 3],
        "inject_covariates": False,
    },
    "softplus variance": {"var_activation": nn.functional.softplus},
    "no bias": {"bias": False},
}


def trunk(name):
    torch.manual_seed(0)
    encoder = Encoder(F, D, **{"n_hidden": 6, "dropout_rate": 0.0, **ARCHITECTURES[name]}).double()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm1d):
            for tensor in (module.running_mean, module.weight.data, module.bias.data):
                tensor.uniform_(0.5, 1.5)
            module.running_var.uniform_(0.2, 2.0)
    return encoder, initial_offsets(encoder, S)


def encoded(*args, **kwargs):
    loc, scale, hidden = encode_trunk(*args, **kwargs)
    return loc, scale, hidden()


def inputs():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, F, generator=generator, dtype=torch.float64)
    cats = [torch.randint(0, k, (N, 1), generator=generator) for k in (2, 1, 3)]
    return x, cats


class Shifted(nn.Module):
    """A linear layer whose answer is moved, row by row."""

    def __init__(self, layer, shift):
        super().__init__()
        self.layer, self.shift = layer, shift

    def forward(self, x):
        return self.layer(x) + self.shift


def by_scvi(encoder, offsets, x, cats):
    """All S * n rows through scvi-tools' own layers, e_s added after the last linear one."""
    encoder = deepcopy(encoder)
    block = encoder.encoder.fc_layers[-1]
    shift = offsets.repeat_interleave(len(x), dim=0)
    stack, n_cov = encoder.encoder, sum(encoder.encoder.n_cat_list)
    if n_cov and stack.inject_into_layer(len(stack.fc_layers) - 1):
        # FCLayers joins covariates in front of nn.Linear alone, so the shift is a further input.
        linear = block[0]
        bias = linear.bias
        linear.forward = lambda rows: nn.functional.linear(rows, linear.weight, bias) + shift
    else:
        block[0] = Shifted(block[0], shift)
    hidden = encoder.encoder(x.repeat(len(offsets), 1), *(c.repeat(len(offsets), 1) for c in cats))
    loc = encoder.mean_encoder(hidden)
    scale = (encoder.var_activation(encoder.var_encoder(hidden)) + encoder.var_eps).sqrt()
    folded = tuple(t.unflatten(0, (len(offsets), -1)).transpose(0, 1) for t in (loc, scale, hidden))
    return folded, encoder


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_trunk_equals_scvis_layers_on_all_rows(name, training):
    encoder, offsets = trunk(name)
    encoder.train(training)
    x, cats = inputs()
    expected, other = by_scvi(encoder, offsets, x, cats)
    found = encoded(encoder, offsets, x, *cats)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    last = [list(e.encoder.fc_layers[-1].buffers()) for e in (encoder, other)]
    for a, b in zip(*last, strict=True):
        torch.testing.assert_close(a, b)


def test_drawn_components_are_those_of_the_whole():
    encoder, offsets = trunk("batch norm")
    x, _ = inputs()
    drawn = torch.tensor([3, 0])
    whole, some = deepcopy(encoder), encoder
    found = encoded(some, offsets, x, drawn=drawn)
    expected = encoded(whole, offsets, x)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b[:, drawn])
    for a, b in zip(some.buffers(), whole.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_dropout_is_one_mask_a_cell():
    encoder = Encoder(F, D, n_hidden=400, dropout_rate=0.5, use_batch_norm=False)
    hidden = encoded(encoder, torch.full((2, 400), 50.0), torch.ones(3, F))[2]
    assert torch.equal(hidden[:, 0] == 0, hidden[:, 1] == 0)
    assert 0.4 < (hidden[0, 0] == 0).float().mean() < 0.6
    assert not torch.equal(hidden[0] == 0, hidden[1] == 0)
    whole = encoded(encoder.eval(), torch.full((2, 400), 50.0), torch.ones(3, F))[2]
    assert (whole > 0).all(), "none in evaluation"


@pytest.mark.parametrize("n_components", [2, 9], ids=["few", "many"])
def test_heads_see_the_units_that_are_kept(n_components):
    """Gradients too, whether hidden units or weights are dropped, and of heads with hooks."""
    torch.manual_seed(0)
    encoder = Encoder(F, D, n_hidden=5, dropout_rate=0.4, use_batch_norm=False).double()
    offsets, x = torch.randn(n_components, 5, dtype=torch.float64), inputs()[0]

    def outputs(*, plain):
        torch.manual_seed(1)
        if plain:
            loc, scale, hidden = encoded(encoder, offsets, x)
            raw = encoder.var_encoder(hidden)
            expected = encoder.mean_encoder(hidden), (raw.exp() + encoder.var_eps).sqrt()
        else:
            expected = loc, scale = encoded(encoder, offsets, x)[:2]
        weights = list(encoder.parameters())
        loss = sum(output.sin().sum() for output in expected)
        return *expected, *torch.autograd.grad(loss, weights)

    found, expected = outputs(plain=False), outputs(plain=True)
    handle = encoder.mean_encoder.register_forward_hook(lambda *_: None)
    hooked = outputs(plain=False)
    handle.remove()
    for own, with_hook, wanted in zip(found, hooked, expected, strict=True):
        torch.testing.assert_close(own, wanted)
        torch.testing.assert_close(with_hook, wanted)


@pytest.mark.parametrize("sharing", ["separate", "trunk"])
@pytest.mark.parametrize("estimator", ["s2a", "s2s"])
@pytest.mark.parametrize("options", [{}, {"n_importance_samples": 2, "use_batch_norm": "none"}])
def test_training_draws_from_some_and_evaluation_from_all(
    make_model, first_batch, sharing, estimator, options
):
    model = make_model(
        n_components=5, encoder_sharing=sharing, estimator=estimator, n_drawn=2, **options
    )
    module, batch = model.module.train(), first_batch(model)
    n_samples = module.n_importance_samples
    inference, generative, output = module(batch)
    n_scored = 5 if estimator == "s2a" else 2
    assert inference[SCORES_KEY].shape == (n_samples, 2, n_scored, 60)
    log_lik = generative["px"].log_prob(batch["X"]).sum(-1).reshape(n_samples, 2, 60)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(inference["u"]).sum(-1)
    bound = miselbo(log_lik, prior.reshape(n_samples, 2, 60), inference[SCORES_KEY])
    torch.testing.assert_close(output.loss, -bound.mean())
    output.loss.backward()
    assert module.eval()(batch)[0][SCORES_KEY].shape == (n_samples, 5, 5, 60)
    touched = {name for name, p in module.named_parameters() if p.grad is not None and p.grad.any()}
    if sharing == "trunk":
        moved = module.component_offsets.grad.abs().sum(1) > 0
        pooled = options == {}  # batch norm shares its statistics among all components
        assert moved.sum() == (5 if pooled or estimator == "s2a" else 2)
    else:
        heads = {name for name in touched if name.endswith("mean_encoder.weight")}
        heads = {name for name in heads if name.startswith("z_encoder")}
        assert len(heads) == (5 if estimator == "s2a" else 2)


@pytest.mark.parametrize("sharing", ["separate", "trunk"])
@pytest.mark.parametrize("weights", ["uniform", (0.5, 0.3, 0.2)])
def test_one_drawn_gives_miselbo_with_s2a_and_the_components_own_bounds_with_s2s(
    make_model, first_batch, weights, sharing
):
    """In every cell, on average over draws; and none of them is above log p(x)."""
    model = make_model(
        n_components=3, mixture_weights=weights, use_batch_norm="none", encoder_sharing=sharing
    )
    model.train(20, train_size=1.0, **QUIET)
    module, batch = model.module, first_batch(model)
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    module.train()
    pi = torch.tensor([1 / 3] * 3 if weights == "uniform" else weights)

    def average(draw, n_draws=100):
        with torch.no_grad():
            draws = torch.stack([draw() for _ in range(n_draws)])
        return draws.mean(0), draws.var(0) / n_draws

    def bound(estimator):
        module.estimator, module.n_drawn = estimator, 1
        output = module(batch)[2]
        terms = *output.kl_local.values(), output.reconstruction_loss["reconstruction_loss"]
        return -sum(terms)

    def own_bounds():
        return pi @ module.component_bounds(batch)

    full, s2a, s2s = (average(partial(bound, name)) for name in ("all", "s2a", "s2s"))
    laws.assert_same_mean(full, s2a)
    module.estimator = "all"
    laws.assert_same_mean(s2s, average(own_bounds))
    assert s2s[0].mean() < full[0].mean()
    evidence = module.eval().marginal_ll(batch, 4000)
    assert (full[0] < evidence + 4 * full[1].sqrt()).all()


@pytest.mark.parametrize("estimator", ["s2a", "s2s"])
@pytest.mark.parametrize("weights", ["uniform", (0.6, 0.3, 0.1)])
def test_components_are_drawn_as_often_as_their_weights_say(make_model, weights, estimator):
    model = make_model(n_components=3, mixture_weights=weights, estimator=estimator, n_drawn=2)
    module = model.module.train()
    drawn = torch.cat([module._drawn_components(torch.device("cpu")) for _ in range(2000)])
    pi = torch.tensor([1 / 3] * 3 if weights == "uniform" else weights)
    torch.testing.assert_close(drawn.bincount() / len(drawn), pi, rtol=0, atol=0.04)


def test_all_drawn_is_the_whole_loss(make_model, first_batch):
    model = make_model(n_components=3, mixture_weights=(0.5, 0.3, 0.2), dropout_rate=0.0)
    module, batch = model.module.train(), first_batch(model)
    found = []
    for estimator in ("all", "s2a", "s2s"):
        module.estimator, module.n_drawn = estimator, 3
        torch.manual_seed(7)
        found.append(module(batch)[2].loss)
    assert found[0] == found[1] == found[2]


def test_a_trunk_trains_saves_and_comes_back(make_model, tmp_path, adata):
    model = make_model(
        n_components=6, encoder_sharing="trunk", estimator="s2s", n_drawn=2, batch_key="batch"
    )
    model.train(2, **QUIET)
    assert adata.obsm["X_mix"].shape == (60, 3)
    model.save(tmp_path / "model")
    again = MixtureSCVI.load(tmp_path / "model", adata)
    assert (again.module.estimator, again.module.n_drawn) == ("s2s", 2)
    np.testing.assert_array_equal(
        again.get_latent_representation(representation="params"),
        model.get_latent_representation(representation="params"),
    )
    assert "encoder_sharing: trunk" in model._model_summary_string


@pytest.mark.parametrize("batch_norm", ["both", "none"])
@pytest.mark.parametrize("n_layers", [1, 2])
def test_a_component_of_a_trunk_is_a_plain_scvi(make_model, batch_norm, n_layers):
    model = make_model(
        n_components=3,
        encoder_sharing="trunk",
        batch_key="batch",
        use_batch_norm=batch_norm,
        n_layers=n_layers,
    )
    model.train(3, **QUIET)
    means = model.get_latent_representation(representation="components").reshape(60, 3, 3)
    for s in range(3):
        stock = model.to_scvi(s)
        np.testing.assert_allclose(stock.get_latent_representation(), means[:, s], atol=1e-5)
    assert type(model.to_scvi()) is SCVI


def test_a_trunk_starts_from_scvi(make_model):
    stock = make_model(SCVI, batch_key="batch")
    stock.train(2, **QUIET)
    model = MixtureSCVI.from_scvi_model(
        stock, 4, encoder_sharing="trunk", estimator="s2a", n_drawn=2
    )
    means = model.get_latent_representation(representation="components").reshape(60, 4, 3)
    np.testing.assert_allclose(means[:, 0], stock.get_latent_representation(), atol=1e-6)
    assert np.abs(means[:, 1:] - means[:, :1]).mean() > 1e-3
    model.train(1, **QUIET)


def test_jitter_of_a_trunk_is_a_share_of_its_weights(make_model):
    stock = make_model(SCVI, n_hidden=128)
    module = MixtureSCVI.from_scvi_model(stock, 9, jitter=0.1, encoder_sharing="trunk").module
    norms = module.z_encoder.encoder.fc_layers[-1][0].weight.norm(dim=1)
    assert (module.component_offsets[1:] / norms).std().item() == pytest.approx(0.1, rel=0.15)


def test_a_trunk_without_bias_is_no_scvi(make_model):
    model = make_model(
        n_components=2, encoder_sharing="trunk", extra_encoder_kwargs={"bias": False}
    )
    model.is_trained_ = True
    with pytest.raises(ValueError, match="without biases"):
        model.to_scvi(1)


def test_query_cells_are_mapped_onto_a_trunk(make_model):
    reference = make_model(n_components=3, encoder_sharing="trunk", batch_key="batch")
    reference.train(2, **QUIET)
    query = make_adata(30, seed=5)
    query.obs["batch"] = "new"
    mapped = MixtureSCVI.load_query_data(query, reference)
    before = reference.module.component_offsets.detach().clone()
    mapped.train(2, plan_kwargs={"weight_decay": 0.0}, **QUIET)
    torch.testing.assert_close(mapped.module.component_offsets.detach(), before)
    assert not mapped.module.component_offsets.requires_grad
    assert np.isfinite(mapped.get_latent_representation()).all()


@pytest.mark.parametrize("observed", [True, False])
def test_passes_of_evaluation_change_nothing(make_model, first_batch, monkeypatch, observed):
    model = make_model(
        n_components=7,
        encoder_sharing="trunk",
        batch_key="batch",
        categorical_covariate_keys=["donor"],
        continuous_covariate_keys=["age"],
        use_observed_lib_size=observed,
    )
    module, batch = model.module.eval(), first_batch(model)

    def figures():
        torch.manual_seed(5)
        output = module(batch)[2]
        bounds = module.component_bounds(batch)
        return output.loss, *output.kl_local.values(), bounds, module.marginal_ll(batch, 9)

    with torch.no_grad():
        whole = figures()
        monkeypatch.setattr(_streaming, "MAX_ELEMENTS_A_PASS", 3 * 60 * 23)
        monkeypatch.setattr(posterior_module, "MAX_NUMBERS_A_PASS", 2 * 60 * 7 * 3)
        in_passes = figures()
    for a, b in zip(in_passes, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)
    assert "px" in module(batch)[1], "with gradients everything is decoded at once"


def test_marginal_likelihood_of_a_trunk_is_bounded_by_pooling(make_model, first_batch):
    model = make_model(n_components=4, encoder_sharing="trunk", n_latent=1)
    model.train(20, train_size=1.0, **QUIET)
    batch = first_batch(model)
    again = [model.module.marginal_ll(batch, 400, pooled=False) for _ in range(8)]
    stratified = torch.stack(again).mean(0)
    pooled = torch.stack([model.module.marginal_ll(batch, 4000) for _ in range(2)])
    with torch.no_grad():
        elbos = torch.stack(
            [
                -sum(o.kl_local.values()) - o.reconstruction_loss["reconstruction_loss"]
                for o in (model.module(batch)[2] for _ in range(50))
            ]
        )
    laws.assert_bound(elbos, pooled.mean(0) + 0.02)
    assert (stratified <= pooled.mean(0) + 0.1).all()


def test_doors(make_model):
    with pytest.raises(ValueError, match=r"encoder_sharing must be one of \['separate', 'trunk'\]"):
        make_model(encoder_sharing="one")
    with pytest.raises(ValueError, match=r"estimator must be one of \['all', 's2a', 's2s'\]"):
        make_model(estimator="some")
    with pytest.raises(ValueError, match="from 1 to n_components = 4, but it is 5"):
        make_model(estimator="s2a", n_drawn=5)
    with pytest.raises(ValueError, match="no right gradient"):
        make_model(estimator="s2s", mixture_weights="learned")
