"""The bounds of every recipe against log p(x) integrated on a grid."""

import itertools

import pytest
import tiny_images
import torch
from tiny_images import Weighted, amortised, images_for

import laws
from scmixvi.core import miselbo, siwelbo
from scmixvi.image import ImageVAE, recipes
from scmixvi.image._evaluation import floats_per_row

N_DRAWS = 5000
BINARY = [name for name in recipes.RECIPES if name != "cifar_vanilla"]


def bound_draws(terms, n_samples, objective):
    """Independent draws `[N / L, B]` of a bound with L samples, from terms with N."""
    n_groups = len(terms.log_lik) // n_samples

    def regroup(term):  # [N, ..., B] -> [L, ..., N / L * B]
        return term.unflatten(0, (n_samples, n_groups)).movedim(1, -2).flatten(-2)

    log_weights = terms.log_weights
    if log_weights is not None and log_weights.dim() == 2:
        log_weights = log_weights.repeat(1, n_groups)
    bound = objective(*[regroup(term) for term in terms[:3]], log_weights)
    return bound.unflatten(0, (n_groups, -1))


def assert_bounds(model, x):
    """Every bound is below log p(x), its weights are unbiased, and more samples close the gap."""
    evidence, stratified_limit, prior_mass = tiny_images.integrate(model, x)
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
    assert (stratified_limit <= evidence + 1e-9).all()
    for limit, pooled in ((stratified_limit, False), (evidence, True)):
        distance = (-model.nll(x, 6000, pooled) - limit).abs()
        assert distance.median() < 0.05
        assert distance.max() < 0.5, "single weights of up to 1000 times the mean occur"


@pytest.mark.parametrize("name", recipes.RECIPES)
@pytest.mark.parametrize("n_components", [1, 3])
def test_bounds_stay_below_the_evidence_and_reach_it(name, n_components):
    assert_bounds(tiny_images.recipe(name, n_components), images_for(name))


@pytest.mark.parametrize("name", ["mlp", "composite"])
def test_given_weights_keep_the_laws(name):
    assert_bounds(tiny_images.recipe(name, 3, weights=[0.7, 0.0, 0.3]), images_for(name))


def given(x):
    return x.new_tensor([0.7, 0.1, 0.2]).log()


def uniform(x):
    return x.new_zeros(3).log_softmax(0)


def weighted(log_weights):
    model = tiny_images.recipe("mlp", 3)
    with torch.no_grad():
        model.posterior.levels[0].head.bias[:, :, 0] += torch.tensor([[-1.0], [0.0], [1.0]])
    return ImageVAE(Weighted(model.posterior, log_weights), model.prior, model.decoder).eval()


@pytest.mark.parametrize("log_weights", [given, amortised])
def test_the_weights_are_those_of_what_the_posterior_returns(log_weights):
    model, x = weighted(log_weights), images_for("mlp")
    assert_bounds(model, x)
    evidence, limit, _ = tiny_images.integrate(model, x)
    in_chunks = {"n_importance_samples": 1000, "memory_budget": 12 * floats_per_row(model, None)}
    assert (-model.nll(x, **in_chunks) - limit).abs().max() < 0.15, "three images, then one"
    assert (-model.nll(x, pooled=True, **in_chunks) - evidence).abs().max() < 0.15
    for objective, pooled in ((miselbo, False), (siwelbo, True)):
        torch.manual_seed(2)
        bound = objective(*model(x, 5))
        torch.manual_seed(2)
        torch.testing.assert_close(model.nll(x, 5, pooled), -bound)
    torch.testing.assert_close(model.encode(x), model.posterior(x).mean)
    path = torch.stack([miselbo(*model(x, path_gradient=True)) for _ in range(100)]).detach()
    laws.assert_bound(path, evidence)


def test_uniform_weights_may_be_written_out():
    model, x = weighted(uniform), images_for("mlp")
    assert model(x, estimator="s2a", n_drawn=2).log_weights is not None


@pytest.mark.parametrize("log_weights", [given, amortised])
@pytest.mark.parametrize("path_gradient", [False, True])
def test_components_are_drawn_by_the_weights_of_the_mixture_or_not_at_all(
    log_weights, path_gradient
):
    """Uniform draws under other weights can be above log p(x)."""
    model, x = weighted(log_weights), images_for("mlp")
    s2a = {"estimator": "s2a", "n_drawn": 2, "path_gradient": path_gradient}
    with pytest.raises(ValueError, match="posterior's attribute log_weights"):
        model(x, **s2a)
    model.posterior.log_weights = given(x)
    if log_weights is amortised:
        with pytest.raises(ValueError, match="use the estimator 'all'"):
            model(x, **s2a)
        return
    with torch.no_grad():
        draws = {
            name: torch.stack([miselbo(*model(x, **settings)) for _ in range(500)])
            for name, settings in (("all", {}), ("s2a", s2a))
        }
    error = ((draws["all"].var(0) + draws["s2a"].var(0)) / 500).sqrt()
    assert ((draws["all"].mean(0) - draws["s2a"].mean(0)).abs() < 4 * error).all()


@pytest.mark.parametrize("name", BINARY)
def test_probabilities_of_all_images_sum_to_1(name):
    model = tiny_images.recipe(name, 2)
    images = tiny_images.all_images((1, 2, 2))
    evidence, _, prior_mass = tiny_images.integrate(model, images, half_width=8.0, step=0.8)
    assert evidence.exp().sum().item() == pytest.approx(prior_mass.item(), abs=1e-9)


def test_eq_17_keeps_a_gap_where_components_differ_and_the_pooled_bound_does_not():
    """Components that each cover a half of the prior: one logarithm a component stays below."""
    model, x = tiny_images.recipe("mlp", 2), images_for("mlp")
    with torch.no_grad():
        model.posterior.levels[0].head.bias[:, :, 0] += torch.tensor([[-1.0], [1.0]])
    evidence, limit, _ = tiny_images.integrate(model, x)
    assert (evidence - limit).mean() > 0.01
    assert (-model.nll(x, 20000) - limit).abs().max() < 0.05
    assert (-model.nll(x, 20000, pooled=True) - evidence).abs().max() < 0.05


def test_a_loss_is_differentiated_forwards():
    """Along any direction its slope is that of finite differences."""
    model = tiny_images.recipe("mlp", 3)
    start = {name: parameter.detach() for name, parameter in model.named_parameters()}
    direction = {name: torch.randn_like(parameter) for name, parameter in start.items()}
    x = tiny_images.all_images((1, 2, 2))[3:8]

    def loss(parameters):
        torch.manual_seed(1)
        return -miselbo(*torch.func.functional_call(model, parameters, (x, 2))).mean()

    def moved(by):
        return loss({name: start[name] + by * along for name, along in direction.items()})

    found = torch.func.jvp(loss, (start,), (direction,))[1]
    torch.testing.assert_close(found, (moved(1e-6) - moved(-1e-6)) / 2e-6, rtol=1e-6, atol=1e-7)
