"""The paper's sizes, and what a recipe refuses."""

import inspect

import numpy as np
import pytest
import tiny_images
import torch

import laws
from scmixvi.core import miselbo
from scmixvi.core.priors import StandardNormal, VampPrior
from scmixvi.image import ImageVAE, recipes
from scmixvi.image.decoders import bernoulli
from scmixvi.image.nets import StackedConv2d, StackedLinear
from scmixvi.image.pixelcnn import CausalConv2d
from scmixvi.image.posteriors import AmortizedPosterior


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("n_components", "millions"),  # counted from the released code, 3 x 3 kernels with masks
    [(1, 2.06), (4, 4.36)],
)
def test_composite_has_the_released_codes_parameters_less_the_masked_ones(n_components, millions):
    model = recipes.composite(n_components)
    masked = sum(
        layer.weight.shape[0] * layer.weight.shape[1] * (9 - layer.weight.shape[2])
        for layer in model.modules()
        if isinstance(layer, CausalConv2d)
    )
    assert masked > 0
    assert round((count(model) + masked) / 1e6, 2) == millions


def test_papers_layers():
    model = recipes.composite(4)
    convolutions = [part for part in model.posterior.modules() if isinstance(part, StackedConv2d)]
    shapes = [tuple(part.weight.shape[1:4]) + (part.stride,) for part in convolutions]
    top = [(64, 1, 7, 1), (64, 32, 3, 2), (128, 32, 5, 1), (128, 64, 3, 2), (12, 64, 3, 1)]
    lower = [(64, 1, 3, 1), (64, 32, 3, 2), (128, 32, 3, 1), (128, 64, 3, 2), (12, 64, 3, 1)]
    assert shapes == top + lower
    heads = [part for part in model.posterior.modules() if isinstance(part, StackedLinear)]
    sizes = [tuple(part.weight.shape[1:]) for part in heads]
    assert sizes == [(294, 80), (40, 588), (588, 600), (300, 80)]
    assert model.prior.top.pseudo_inputs.pixels.shape == (500, 1, 28, 28)
    assert len(model.decoder.network.layers) == 8
    assert model.latent_sizes == (40, 40)
    assert len(model.posterior.flows[1].nets) == 2
    assert recipes.cifar_vanilla().latent_sizes == (124,)


PARTS = {  # levels, flow, VampPrior
    "mlp": (1, False, False),
    "vanilla": (1, False, False),
    "hierarchical": (2, False, False),
    "iaf": (1, True, False),
    "vamp": (1, False, True),
    "hierarchical_vamp": (2, False, True),
    "composite": (2, True, True),
    "cifar_vanilla": (1, False, False),
}


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_recipes_are_what_their_names_say(name):
    n_levels, flow, vamp = PARTS[name]
    model = tiny_images.recipe(name, 2)
    assert isinstance(model, ImageVAE)
    assert len(model.latent_sizes) == n_levels
    flows = list(model.posterior.flows)
    assert [part is not None for part in flows] == [False] * (n_levels - 1) + [flow]
    assert isinstance(model.prior.top, VampPrior if vamp else StandardNormal)
    assert model.n_components == 2
    assert next(iter(inspect.signature(recipes.by_name(name)).parameters)) == "n_components"


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_learns(name):
    """A few steps of the bound on a handful of images raise it, and reach every parameter."""
    model = tiny_images.recipe(name, 2).float().train()
    x = torch.rand(16, *model.image_size).round()
    laws.assert_every_parameter_has_gradient(model, -miselbo(*model(x, 1)).mean())
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    first = last = 0.0
    for step in range(60):
        loss = -miselbo(*model(x)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first, last = (loss.item() if step == 0 else first), loss.item()
    assert last < first - 0.2


def test_a_posterior_takes_normalised_weights_alone():
    levels = list(tiny_images.recipe("mlp", 2).posterior.levels)
    with pytest.raises(ValueError, match="log_weights must be normalised"):
        AmortizedPosterior(levels, 2, (1, 2, 2), log_weights=torch.zeros(2))


def test_three_levels():
    sizes = {**tiny_images.SIZES, "n_latent": (2, 3, 4), "n_pseudo_inputs": 0}
    model = recipes.hierarchical(2, **{**sizes, "n_levels": 3})
    assert model.latent_sizes == (2, 3, 4)
    assert model(torch.rand(5, 1, 2, 2).round(), 2).log_q_all.shape == (2, 2, 2, 5)


def test_one_level_may_be_named_as_a_sequence():
    """As for the other recipes, which have one number a level."""
    sizes = {"image_size": (1, 2, 2), "encoder_hidden": [3], "decoder_hidden": [3]}
    assert recipes.mlp(2, n_latent=[4], **sizes).latent_sizes == (4,)


def test_sizes_may_be_arrays():
    sizes = {**tiny_images.SIZES, "n_latent": np.array([2, 3]), "n_pseudo_inputs": 0}
    model = recipes.hierarchical(2, **sizes)
    assert model.latent_sizes == (2, 3)
    assert model(torch.rand(5, 1, 2, 2).round()).log_q_all.shape == (1, 2, 2, 5)
    sizes = {"image_size": (1, 2, 2), "encoder_hidden": np.array([3, 4])}
    assert recipes.mlp(2, n_latent=2, decoder_hidden=np.array([5]), **sizes).latent_sizes == (2,)


@pytest.mark.parametrize("name", [name for name, (*_, vamp) in PARTS.items() if vamp])
def test_a_vamp_prior_has_the_weights_of_the_posterior(name):
    weights = tiny_images.recipe(name, 2, weights=[0.9, 0.1]).prior.top.log_weights
    torch.testing.assert_close(weights.exp().float(), torch.tensor([0.9, 0.1]))


def test_pseudo_inputs_start_dark():
    pixels = recipes.PseudoInputs(500, (1, 4, 4))()
    assert pixels.mean().item() == pytest.approx(0.05, abs=0.001)
    assert pixels.std().item() == pytest.approx(0.01, abs=0.001)


def test_pseudo_inputs_stay_images():
    pseudo_inputs = recipes.PseudoInputs(5, (1, 3, 2))
    with torch.no_grad():
        pseudo_inputs.pixels.normal_(0, 3)
    images = pseudo_inputs()
    assert images.shape == (5, 1, 3, 2)
    assert images.min() == 0
    assert images.max() == 1


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in recipes.RECIPES), ("mlp", {"encoder_sharing": "trunk"})],
)
def test_the_seed_decides_every_parameter_that_is_drawn(name, options):
    def parameters(seed):
        torch.manual_seed(seed)
        model = recipes.by_name(name)(2, **tiny_images.TINY_RECIPES[name], **options)
        return dict(model.named_parameters())

    first, again, other = map(parameters, (1, 1, 2))
    for key, values in first.items():
        assert torch.equal(values, again[key]), key
        assert torch.equal(values, other[key]) == ("norm" in key), key


def test_a_vamp_prior_does_not_stand_on_a_lower_level():
    lower = tiny_images.recipe("hierarchical", 2).posterior.levels[1]
    with pytest.raises(ValueError, match="but LowerEncoder needs the level above it"):
        VampPrior(lower, recipes.PseudoInputs(3, (1, 2, 2)), 2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: recipes.mlp(0), r"n_components \(S\) must be a whole number of at least 1"),
        (lambda: recipes.vanilla(-1), r"n_components \(S\) must be a whole number of at least 1"),
        (
            lambda: recipes.hierarchical(2, n_levels=0),
            r"n_levels \(H\) must be a whole number of at least 1",
        ),
        (lambda: recipes.hierarchical(2, n_latent=(3,)), "one for each of the 2 levels"),
        (
            lambda: recipes.vanilla(2, n_latent=0),
            r"n_latent \(D\) must be whole numbers of at least 1",
        ),
        (lambda: recipes.mlp(2, n_latent=0), r"n_latent \(D\) must be whole numbers of at least 1"),
        (lambda: recipes.mlp(2, n_latent=[3, 4]), "one for each of the 1 levels"),
        (lambda: recipes.mlp(2, n_latent=np.array(3.0)), "whole numbers .*, but it is array"),
        (lambda: recipes.vanilla(2, n_latent=iter([3])), "whole numbers .*, but it is <list_iter"),
        (lambda: recipes.mlp(2, decoder_hidden=(n for n in [8])), "one a layer, .* is <generator"),
        (lambda: recipes.mlp(2, encoder_hidden=np.array(8)), r"one a layer, .* it is array\(8\)"),
        (lambda: recipes.mlp(2, encoder_hidden=[0]), "encoder_hidden must be 0 or more whole"),
        (lambda: recipes.mlp(2, decoder_hidden=[]), "decoder_hidden must be 1 or more whole"),
        (lambda: recipes.mlp(2, decoder_hidden=[8, 0]), r"at least 1, but it is \[8, 0\]"),
        (lambda: recipes.mlp(2, encoder_hidden=8), "one a layer, each at least 1, but it is 8"),
        (lambda: recipes.vanilla(2, channels=[32, 64, 6]), "channels must be 5 whole numbers"),
        (
            lambda: recipes.hierarchical(2, n_hidden=0),
            "n_hidden must be a whole number of at least 1",
        ),
        (
            lambda: recipes.vanilla(2, n_features=0),
            "n_features must be a whole number of at least 1",
        ),
        (lambda: recipes.mlp(2, weights=[0.5, 0.6]), "sum to 1"),
        (lambda: recipes.composite(2, weights=[1.0]), "one number for each of the 2"),
        (lambda: recipes.vanilla(2, image_size=(28, 28)), r"image_size must be \(C, H, W\)"),
        (lambda: recipes.mlp(2, image_size=(1, 0, 28)), r"image_size must be \(C, H, W\)"),
        (lambda: recipes.by_name("vanila"), "the recipes are mlp, vanilla, hierarchical, iaf"),
        (lambda: recipes.composite(2, n_pseudo_inputs=-1), "n_pseudo_inputs must be a whole"),
        (lambda: recipes.vamp(2, n_pseudo_inputs=2.5), "which is none, but it is 2.5"),
        (lambda: recipes.iaf(2, n_flow_steps=-1), "n_flow_steps must be a whole number"),
        (lambda: recipes.iaf(2, n_flow_steps=1.5), "which is none, but it is 1.5"),
        (lambda: recipes.vanilla(2, n_layers=1.5), "n_layers must be a whole number of at least 1"),
        (
            lambda: recipes.cifar_vanilla(n_mixtures=0),
            "n_mixtures must be a whole number of at least 1",
        ),
        (lambda: recipes.cifar_vanilla(likelihood=bernoulli), "cifar_vanilla takes no likelihood"),
        (lambda: recipes.cifar_vanilla(n_parameters=3), "cifar_vanilla takes no n_parameters"),
        (lambda: recipes.vanilla(n_parameters=0), "n_parameters must be a whole number of at"),
        (lambda: recipes.vanilla(n_parameters=2.5), "n_parameters must be a whole number of at"),
        (lambda: recipes.vanilla(likelihood="bernoulli"), "likelihood must be a function .* 'bern"),
    ],
)
def test_doors(build, message):
    with pytest.raises(ValueError, match=message):
        build()
