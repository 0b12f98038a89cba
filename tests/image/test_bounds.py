"""The bounds of every recipe against log p(x) integrated on a grid."""

import itertools

import pytest
import tiny_images
import torch

import laws
from scmixvi.core import miselbo, siwelbo
from scmixvi.image import recipes

N_DRAWS = 5000
BINARY = [name for name in recipes.RECIPES if name != "cifar_vanilla"]


def images_for(name):
    if name == "cifar_vanilla":
        return (torch.randint(0, 256, (3, 3, 2, 2)) / 255).double()
    return tiny_images.all_images((1, 2, 2))[[0, 3, 9, 15]]


def bound_draws(terms, n_samples, objective):
    """Independent draws `[N / L, B]` of a bound with L samples, from terms with N."""
    n_groups = len(terms.log_lik) // n_samples

    def regroup(term):  # [N, ..., B] -> [L, ..., N / L * B]
        return term.unflatten(0, (n_samples, n_groups)).movedim(1, -2).flatten(-2)

    bound = objective(*[regroup(term) for term in terms[:3]], terms.log_weights)
    return bound.unflatten(0, (n_groups, -1))


def assert_bounds(model, x):
    """Every bound is below log p(x), its weights are unbiased, and more samples close the gap."""
    evidence, prior_mass = tiny_images.log_evidence(model, x)
    assert prior_mass.item() == pytest.approx(1, abs=1e-4), "the grid is wide and fine enough"
    with torch.no_grad():
        terms = model(x, N_DRAWS)
    gaps = {}
    for n_samples, objective in itertools.product((1, 5), (miselbo, siwelbo)):
        values = bound_draws(terms, n_samples, objective)
        laws.assert_bound(values, evidence)
        gaps[objective, n_samples] = (evidence - values.mean(0)).mean().item()
        if objective is siwelbo:
            laws.assert_unbiased_weights(values, evidence)
    assert 0.005 < gaps[miselbo, 1], "there is a gap to close"
    assert gaps[miselbo, 5] < gaps[miselbo, 1]
    for pooled in (False, True):
        estimate = -model.nll(x, 6000, pooled)
        assert (estimate - evidence).abs().max() < 0.15


@pytest.mark.parametrize("name", recipes.RECIPES)
@pytest.mark.parametrize("n_components", [1, 3])
def test_bounds_stay_below_the_evidence_and_reach_it(name, n_components):
    assert_bounds(tiny_images.recipe(name, n_components), images_for(name))


@pytest.mark.parametrize("name", ["mlp", "composite"])
def test_given_weights_keep_the_laws(name):
    assert_bounds(tiny_images.recipe(name, 3, weights=[0.7, 0.0, 0.3]), images_for(name))


@pytest.mark.parametrize("name", BINARY)
def test_probabilities_of_all_images_sum_to_1(name):
    model = tiny_images.recipe(name, 2)
    images = tiny_images.all_images((1, 2, 2))
    evidence, prior_mass = tiny_images.log_evidence(model, images, half_width=8.0, step=0.8)
    assert evidence.exp().sum().item() == pytest.approx(prior_mass.item(), abs=1e-9)
