"""MixtureVAE: its bound, its marginal likelihood and every option of SCVI, by value."""

import math
from itertools import product

import pytest
import torch
from scvi.model import SCVI
from torch.distributions import Normal

import laws
from counts import QUIET
from scmixvi import MixtureSCVI
from scmixvi.singlecell._parts.inference import SCORES_KEY
from scmixvi.singlecell._parts.streaming import DISPERSION_KEY

OPTIONS = {
    "zinb": {},
    "nb": {"gene_likelihood": "nb"},
    "poisson": {"gene_likelihood": "poisson"},
    "normal": {"gene_likelihood": "normal"},
    "gene-batch": {"dispersion": "gene-batch", "batch_key": "batch"},
    "gene-label": {"dispersion": "gene-label", "labels_key": "cell_type"},
    "gene-cell": {"dispersion": "gene-cell"},
    "embedding": {"batch_representation": "embedding", "batch_key": "batch"},
    "embedding, encoded": {
        "batch_representation": "embedding",
        "batch_key": "batch",
        "continuous_covariate_keys": ["age"],
        "encode_covariates": True,
    },
    "covariates": {
        "batch_key": "batch",
        "categorical_covariate_keys": ["donor"],
        "continuous_covariate_keys": ["age"],
    },
    "covariates, encoded": {
        "batch_key": "batch",
        "categorical_covariate_keys": ["donor"],
        "continuous_covariate_keys": ["age"],
        "encode_covariates": True,
        "n_layers": 2,
    },
    "size factor": {"size_factor_key": "size"},
    "logistic normal": {"latent_distribution": "ln"},
    "unobserved library": {"use_observed_lib_size": False, "batch_key": "batch"},
    "no batch norm": {"use_batch_norm": "none"},
    "layer norm": {"use_batch_norm": "none", "use_layer_norm": "both", "n_layers": 2},
    "learned weights": {"mixture_weights": "learned"},
    "amortized weights": {"mixture_weights": "amortized"},
    "given weights": {"mixture_weights": [0.2, 0.3, 0.5]},
    "autotune": {"extra_payload_autotune": True},
}
# Parameters that SCVI's own loss does not use either.
UNUSED = {
    "l_encoder": {"unobserved library"},
    "decoder.px_r_decoder": {"gene-cell"},
    "decoder.px_dropout_decoder": set(OPTIONS) - {"nb", "poisson", "normal"},
    "px_r": set(OPTIONS) - {"poisson", "gene-cell"},
}


def is_used(parameter, option):
    return all(option in options for name, options in UNUSED.items() if parameter.startswith(name))


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("n_samples", [1, 2])
def test_every_option_has_a_finite_bound_and_gradients(make_model, first_batch, option, n_samples):
    model = make_model(n_components=3, n_importance_samples=n_samples, **OPTIONS[option])
    module = model.module.train()
    _, _, output = module(first_batch(model))
    bound = sum(output.kl_local.values()) + output.reconstruction_loss["reconstruction_loss"]
    assert bound.shape == (60,)
    assert torch.isfinite(bound).all()
    torch.testing.assert_close(output.loss, bound.mean())
    output.loss.backward()
    for name, parameter in module.named_parameters():
        if is_used(name, option):
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.any() or "BatchNorm" in name, name


@pytest.mark.parametrize("option", OPTIONS)
def test_queries_have_one_draw_a_cell_or_as_many_as_asked(make_model, first_batch, option):
    model = make_model(n_components=3, **OPTIONS[option])
    module, batch = model.module.eval(), first_batch(model)
    inference, generative = module(batch, compute_loss=False)
    assert inference["z"].shape == (60, 3)
    assert generative["px"].mean.shape == (60, 23)
    many = module(batch, compute_loss=False, inference_kwargs={"n_samples": 4})
    assert many[0]["z"].shape == (4, 60, 3)
    assert many[1]["px"].mean.shape == (4, 60, 23)
    one = module.generative(**module._get_generative_input(batch, inference))
    for k in range(4):
        row = {**many[0], "z": many[0]["z"][k], "library": many[0]["library"][k]}
        alone = module.generative(**module._get_generative_input(batch, row))
        torch.testing.assert_close(many[1]["px"].mean[k], alone["px"].mean)
    torch.testing.assert_close(one["px"].mean, generative["px"].mean)


def test_draws_are_the_same_whether_the_data_are_minified_or_not(make_model, first_batch):
    model = make_model(n_components=2)
    model.train(1, **QUIET)

    def drawn():
        torch.manual_seed(3)
        inputs = model.module._get_inference_input(first_batch(model))
        with torch.inference_mode():
            return model.module.inference(**inputs, n_samples=3)["u"]

    before = drawn()
    model.minify_adata("latent_posterior_parameters_with_counts")
    torch.testing.assert_close(drawn(), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_encodes_and_decodes_as_scvi(make_model, first_batch, option):
    model = make_model(n_components=3, **OPTIONS[option])
    stock, batch, module = model.to_scvi(1).module, first_batch(model), model.module.eval()
    encoded = stock.inference(**stock._get_inference_input(batch))["qz"]
    components = module.inference(**module._get_inference_input(batch))["qz"]
    torch.testing.assert_close(components.c_loc[:, 1], encoded.loc)
    torch.testing.assert_close(components.c_scale[:, 1], encoded.scale)
    drawn, x = {"z": torch.randn(60, 3), "library": 3 + torch.rand(60, 1)}, batch["X"]
    for other in [{}, {"transform_batch": 1}] if "batch_key" in OPTIONS[option] else [{}]:
        ours, theirs = (
            m.generative(**m._get_generative_input(batch, drawn), **other) for m in (module, stock)
        )
        torch.testing.assert_close(ours["px"].mean, theirs["px"].mean)
        torch.testing.assert_close(ours["px"].log_prob(x), theirs["px"].log_prob(x))
        if theirs["pl"] is not None:
            torch.testing.assert_close(ours["pl"].mean, theirs["pl"].mean)
            torch.testing.assert_close(ours["pl"].scale, theirs["pl"].scale)


def exact_log_likelihood(module, batch, reach=9.0, n_points=601):
    """log p(x) of every cell by quadrature over a one-dimensional latent."""
    grid = torch.linspace(-reach, reach, n_points)
    n_cells = len(batch["X"])
    z = grid.reshape(-1, 1, 1).expand(-1, n_cells, 1)
    library = batch["X"].sum(1, keepdim=True).log().expand(n_points, -1, -1)
    outputs = {"z": z, "library": library}
    px = module.generative(**module._get_generative_input(batch, outputs))["px"]
    joint = px.log_prob(batch["X"]).sum(-1) + Normal(0.0, 1.0).log_prob(z).sum(-1)
    return joint.logsumexp(0) + math.log(2 * reach / (n_points - 1))


@pytest.fixture
def small(make_model, first_batch):
    """A trained model with one latent dimension, one minibatch, and its exact log p(x)."""

    def make(**arguments):
        model = make_model(n_latent=1, n_components=3, **arguments)
        model.train(30, train_size=1.0, accelerator="cpu", enable_progress_bar=False)
        batch = first_batch(model)
        with torch.no_grad():
            return model, batch, exact_log_likelihood(model.module, batch)

    return make


@pytest.mark.parametrize("weights", ["uniform", "amortized", (0.2, 0.3, 0.5)])
def test_marginal_likelihood_against_quadrature(small, weights):
    model, batch, exact = small(mixture_weights=weights)
    found = model.module.marginal_ll(batch, n_mc_samples=3000)
    torch.testing.assert_close(found, exact, rtol=0, atol=0.1)
    assert (found - exact).abs().mean() < 0.02
    draws = torch.stack([model.module.marginal_ll(batch, n_mc_samples=6) for _ in range(200)])
    laws.assert_unbiased_weights(draws, exact)


def test_bounds_stay_below_the_exact_likelihood(small):
    model, batch, exact = small(n_importance_samples=2)
    with torch.no_grad():
        elbos = -torch.stack(
            [
                sum(output.kl_local.values()) + output.reconstruction_loss["reconstruction_loss"]
                for output in (model.module(batch)[2] for _ in range(150))
            ]
        )
    laws.assert_bound(elbos, exact)
    for pooled in (True, False):
        draws = torch.stack(
            [model.module.marginal_ll(batch, n_mc_samples=9, pooled=pooled) for _ in range(100)]
        )
        laws.assert_bound(draws, exact)
        assert draws.mean() > elbos.mean(), "L = 3 against L = 2"


def test_chunks_of_draws_do_not_change_the_estimator(small):
    model, batch, exact = small()
    for per_pass in (7, 50):
        found = model.module.marginal_ll(batch, 1500, n_mc_samples_per_pass=per_pass)
        assert (found - exact).abs().mean() < 0.03


def test_draws_are_rounded_up_to_a_multiple_of_the_components(make_model, first_batch):
    model = make_model(n_components=2)
    module, batch, found = model.module.eval(), first_batch(model), []
    for n_draws in (5, 6):
        torch.manual_seed(1)
        found.append(module.marginal_ll(batch, n_draws))
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_marginal_likelihood_with_an_unobserved_library(make_model, first_batch):
    """Against quadrature over latent and log library size together."""
    model = make_model(n_latent=1, n_components=2, use_observed_lib_size=False)
    model.train(30, train_size=1.0, accelerator="cpu", enable_progress_bar=False)
    module, n_z, n_l = model.module, 201, 201
    with torch.no_grad():  # any proposal is right; this one is also efficient
        module.l_encoder.mean_encoder.weight.zero_()
        module.l_encoder.mean_encoder.bias.fill_(4.4)
    batch = {k: v[:2] if v is not None else None for k, v in first_batch(model).items()}
    pl = Normal(*(p.flatten()[0] for p in module._compute_local_library_params(batch["batch"])))
    pl = Normal(pl.loc, pl.scale.sqrt())
    zs = torch.linspace(-6, 6, n_z)
    ls = torch.linspace(float(pl.loc - 7 * pl.scale), float(pl.loc + 7 * pl.scale), n_l)
    z, library = (
        g.reshape(-1, 1, 1).expand(-1, 2, 1) for g in torch.meshgrid(zs, ls, indexing="ij")
    )
    outputs = {"z": z, "library": library}
    with torch.no_grad():
        px = module.generative(**module._get_generative_input(batch, outputs))["px"]
    joint = px.log_prob(batch["X"]).sum(-1) + Normal(0.0, 1.0).log_prob(z).sum(-1)
    joint = joint + pl.log_prob(library).sum(-1)
    exact = joint.logsumexp(0) + (zs[1] - zs[0]).log() + (ls[1] - ls[0]).log()
    found = module.marginal_ll(batch, n_mc_samples=40000)
    torch.testing.assert_close(found, exact, rtol=0, atol=0.1)


def test_one_component_reproduces_scvi(make_model, first_batch):
    """Same weights and noise: same reconstruction. Over draws: same ELBO."""
    stock = make_model(SCVI, batch_key="batch")
    stock.train(5, train_size=1.0, accelerator="cpu", enable_progress_bar=False)
    model = MixtureSCVI.from_scvi_model(stock, n_components=1)
    batch = first_batch(model)
    with torch.no_grad():
        inference, _, output = model.module(batch)
        z, library = inference["z"][0], inference["library"][0]
        inputs = stock.module._get_generative_input(batch, {"z": z, "library": library})
        px = stock.module.generative(**inputs)["px"]
    torch.testing.assert_close(
        output.reconstruction_loss["reconstruction_loss"],
        -px.log_prob(batch["X"]).sum(-1),
        rtol=1e-5,
        atol=0,
    )
    ours = torch.stack([model.get_elbo(return_mean=False) for _ in range(200)])
    theirs = torch.stack([stock.get_elbo(return_mean=False) for _ in range(200)])
    error = ((ours.var(0) + theirs.var(0)) / 200).sqrt()
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 4.5 * error).all()
    gap = ours.mean() - theirs.mean()
    assert abs(gap) < 4 * error.square().sum().sqrt() / 60


@pytest.mark.parametrize("mixture_weights", ["learned", "amortized"])
def test_weights_start_uniform_and_learn(make_model, first_batch, mixture_weights):
    model = make_model(n_components=3, mixture_weights=mixture_weights)
    model.is_trained_ = True
    torch.testing.assert_close(
        torch.from_numpy(model.get_component_weights()), torch.full((60, 3), 1 / 3)
    )
    model.module.train()
    optimizer = torch.optim.Adam(model.module.parameters(), lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        model.module(first_batch(model))[2].loss.backward()
        optimizer.step()
    weights = torch.from_numpy(model.get_component_weights())
    torch.testing.assert_close(weights.sum(1), torch.ones(60))
    assert (weights - 1 / 3).abs().max() > 0.01
    assert (weights.std(0).max() > 1e-4) == (mixture_weights == "amortized")


def test_decoder_pools_batch_norm_over_components(make_model, first_batch):
    """One pass over L*S*n rows: running statistics are those of all components together."""
    model = make_model(n_components=3, n_importance_samples=2)
    module, batch = model.module.train(), first_batch(model)
    seen = []
    norm = module.decoder.px_decoder.fc_layers[0][1]
    hook = norm.register_forward_hook(lambda m, args, out: seen.append(args[0].shape))
    module(batch)
    hook.remove()
    assert seen == [(2 * 3 * 60, 16)]


def test_dispersion_is_not_broadcast(make_model, first_batch):
    for option, shape in (("zinb", (23,)), ("gene-batch", (60, 23)), ("gene-cell", (3, 60, 23))):
        model = make_model(n_components=3, **OPTIONS[option])
        _, generative, _ = model.module(first_batch(model))
        assert generative[DISPERSION_KEY].shape == shape


@pytest.mark.parametrize("likelihood", ["zinb", "nb"])
def test_bfloat16_trains_without_nan(make_model, likelihood):
    model = make_model(n_components=3, gene_likelihood=likelihood)
    model.train(3, precision="bf16-mixed", accelerator="cpu", enable_progress_bar=False)
    assert all(torch.isfinite(p).all() for p in model.module.parameters())
    assert math.isfinite(model.get_elbo())


def test_signature_names_every_argument():
    """scvi-tools rebuilds a module from this list when it loads with a datamodule."""
    import inspect

    from scvi.module import VAE

    from scmixvi.singlecell import MixtureVAE

    names = list(inspect.signature(MixtureVAE).parameters)
    own = ["n_components", "n_importance_samples", "mixture_weights"]
    own += ["encoder_sharing", "estimator", "n_drawn", "thinning_rate"]
    assert names == [*inspect.signature(VAE).parameters, *own]


def test_scores_follow_the_draw_law(make_model, first_batch):
    for n_samples, n_components in product((1, 2), (1, 3)):
        model = make_model(n_components=n_components, n_importance_samples=n_samples)
        inference, _, _ = model.module(first_batch(model))
        laws.assert_draw_law(inference["qz"].posterior, n_samples, tolerance=1e-5)
        assert inference[SCORES_KEY].shape == (n_samples, n_components, n_components, 60)


@pytest.mark.parametrize("options", ["zinb", "nb", "gene-batch"])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_the_compiled_pass_changes_neither_loss_nor_gradients(
    options, n_threads, make_model, first_batch, monkeypatch
):
    """Same weights, same noise: loss to 1e-5, gradients to 1e-4, without it and with it."""
    model = make_model(n_components=3, **OPTIONS[options])
    module, batch = model.module.train(), first_batch(model)
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)

    def step():
        module.zero_grad()
        torch.manual_seed(0)
        outputs, decoded, result = module(batch)
        result.loss.backward()
        grads = [p.grad.clone() for p in module.parameters() if p.grad is not None]
        return result.loss.detach(), torch.cat([g.flatten() for g in grads]), decoded["px"]

    loss, gradient, px = step()
    assert "undecoded" in vars(px)
    assert px.mean.shape == (3, *batch["X"].shape)
    for part in ("decoded", "draws"):
        monkeypatch.setattr(f"scmixvi.singlecell._parts.{part}.available", lambda: False)
    plain_loss, plain_gradient, plain_px = step()
    assert type(px) is type(plain_px)
    torch.testing.assert_close(px.mean, plain_px.mean)
    torch.testing.assert_close(loss, plain_loss, rtol=1e-5, atol=0)
    assert (gradient - plain_gradient).norm() <= 1e-4 * plain_gradient.norm()
