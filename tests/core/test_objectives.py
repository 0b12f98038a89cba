"""The bounds against a model whose log p(x) is known, and their doors."""

import math

import pytest
import torch

import laws
from scmixvi.core import (
    component_elbos,
    jsd,
    linear_warmup,
    log_mixture,
    log_weights_from,
    miselbo,
    siwelbo,
)

N_COMPONENTS = 3


def make_weights(kind, n_components, n_inputs):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(n_components, n_inputs, generator=generator, dtype=torch.float64)
    return {
        "uniform": None,
        "global": logits[:, 0].log_softmax(0),
        "amortized": logits.log_softmax(0),
    }[kind]


weightings = pytest.mark.parametrize("weighting", ["uniform", "global", "amortized"])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return laws.LinearGaussian()


@weightings
@pytest.mark.parametrize("n_components", [1, 3])
@pytest.mark.parametrize("n_samples", [1, 2])
def test_exact_posterior_makes_every_bound_tight(model, weighting, n_components, n_samples):
    weights = make_weights(weighting, n_components, model.n_inputs)
    terms = model.terms(model.exact_posterior(n_components, weights), n_samples)
    for objective in (miselbo, siwelbo):
        bound = objective(*terms, weights)
        torch.testing.assert_close(bound, model.log_evidence, rtol=0, atol=1e-9)
    exact_elbos = model.log_evidence.expand(n_components, -1)
    torch.testing.assert_close(component_elbos(*terms), exact_elbos, rtol=0, atol=1e-9)
    assert jsd(terms[2], weights).abs().max() < 1e-9


@weightings
@pytest.mark.parametrize("n_samples", [1, 2, 7])
def test_imperfect_posteriors_stay_below_the_evidence(model, weighting, n_samples):
    weights = make_weights(weighting, N_COMPONENTS, model.n_inputs)
    posterior = model.imperfect_posterior(N_COMPONENTS, weights)
    draws = [model.terms(posterior, n_samples) for _ in range(3000)]
    for objective in (miselbo, siwelbo):
        values = torch.stack([objective(*terms, weights) for terms in draws])
        laws.assert_bound(values, model.log_evidence)


@weightings
def test_pooled_importance_weights_average_the_evidence(model, weighting):
    weights = make_weights(weighting, N_COMPONENTS, model.n_inputs)
    posterior = model.imperfect_posterior(N_COMPONENTS, weights)
    draws = torch.stack([siwelbo(*model.terms(posterior, 2), weights) for _ in range(4000)])
    laws.assert_unbiased_weights(draws, model.log_evidence)


@weightings
def test_bounds_tighten_with_more_samples(model, weighting):
    weights = make_weights(weighting, N_COMPONENTS, model.n_inputs)
    posterior = model.imperfect_posterior(N_COMPONENTS, weights)
    gap = (model.log_evidence - siwelbo(*model.terms(posterior, 20000), weights)).abs()
    assert gap.max() < 0.05
    one = torch.stack([miselbo(*model.terms(posterior, 1), weights) for _ in range(2000)])
    many = torch.stack([miselbo(*model.terms(posterior, 50), weights) for _ in range(200)])
    assert (many.mean(0) > one.mean(0)).all()


@weightings
def test_theorem_1_in_expectation(model, weighting):
    weights = make_weights(weighting, N_COMPONENTS, model.n_inputs)
    terms = model.terms(model.imperfect_posterior(N_COMPONENTS, weights), 4000)
    per_sample = [[t[i : i + 1] for t in terms] for i in range(4000)]
    gain = torch.stack([jsd(t[2], weights) for t in per_sample])
    error = gain.std(0) / math.sqrt(len(gain))
    assert (gain.mean(0) >= -4 * error).all()
    assert (gain.mean(0) <= math.log(N_COMPONENTS) + 4 * error).all()
    assert (gain.mean(0) > 0.01).all(), "these components differ, so the gain is positive"


@weightings
def test_jsd_is_the_difference_of_bounds(model, weighting):
    weights = make_weights(weighting, N_COMPONENTS, model.n_inputs)
    terms = model.terms(model.imperfect_posterior(N_COMPONENTS, weights), 1)
    laws.assert_jsd_is_bound_difference(*terms, weights)


def test_jsd_reaches_log_s_for_components_apart_and_0_for_equal_ones(model):
    apart = torch.arange(3.0, dtype=torch.float64).reshape(3, 1, 1) * 1e3 + model.mean
    scale = torch.ones_like(apart)
    far = laws.gaussian_mixture(apart, scale).jsd(11)
    torch.testing.assert_close(far, torch.full_like(far, math.log(3)))
    near = laws.gaussian_mixture(model.mean.expand(3, -1, -1), scale).jsd(11)
    torch.testing.assert_close(near, torch.zeros_like(near))


@pytest.mark.parametrize("n_samples", [1, 2, 5])
def test_one_component_is_the_iwae_bound(model, n_samples):
    posterior = model.imperfect_posterior(1)
    log_lik, log_prior, log_q_all = model.terms(posterior, n_samples)
    log_ratio = (log_lik + log_prior - log_q_all[:, :, 0])[:, 0]
    iwae = log_ratio.exp().mean(0).log()
    for objective in (miselbo, siwelbo):
        torch.testing.assert_close(objective(log_lik, log_prior, log_q_all), iwae)


@weightings
@pytest.mark.parametrize("n_samples", [1, 2])
def test_order_of_components_and_jensen(model, weighting, n_samples):
    weights = make_weights(weighting, N_COMPONENTS, model.n_inputs)
    terms = model.terms(model.imperfect_posterior(N_COMPONENTS, weights), n_samples)
    laws.assert_permutation_invariant(*terms, weights)
    laws.assert_pooled_not_below_stratified(*terms, weights)


@pytest.mark.parametrize("objective", [miselbo, siwelbo])
def test_gradients_reach_locations_scales_and_weights(model, objective):
    torch.manual_seed(1)
    loc = (model.mean + 0.3 * torch.randn(3, 5, 2).double()).requires_grad_()
    log_scale = torch.zeros(3, 5, 2, dtype=torch.float64, requires_grad=True)
    logits = torch.zeros(3, 5, dtype=torch.float64, requires_grad=True)
    weights = logits.log_softmax(0)
    posterior = laws.gaussian_mixture(loc, log_scale.exp(), weights)
    objective(*model.terms(posterior, 2), weights).sum().backward()
    for leaf in (loc, log_scale, logits):
        assert leaf.grad is not None
        assert (leaf.grad != 0).all()


def test_gradient_equals_a_finite_difference(model):
    """Common random numbers: the analytic gradient of the bound in the weights."""
    terms = model.terms(model.imperfect_posterior(3), 2)

    def bound(logits):
        return miselbo(*terms, logits.log_softmax(0))

    logits = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(bound, (logits,))


def test_warm_up_weighs_prior_and_mixture_only(model):
    log_lik, log_prior, log_q_all = model.terms(model.imperfect_posterior(3), 1)
    expected = log_lik.mean(1)[0]
    torch.testing.assert_close(miselbo(log_lik, log_prior, log_q_all, beta=0.0), expected)
    half = 0.5 * (expected + miselbo(log_lik, log_prior, log_q_all))
    torch.testing.assert_close(miselbo(log_lik, log_prior, log_q_all, beta=0.5), half)


def test_reference_values():
    """Two components, weights 1/4 and 3/4, worked out by hand."""
    log_q_all = torch.tensor([[0.2, 0.6], [0.4, 0.8]], dtype=torch.float64).log()[None, :, :, None]
    weights = torch.tensor([0.25, 0.75], dtype=torch.float64).log()
    zeros = torch.zeros(1, 2, 1, dtype=torch.float64)
    expected_mixture = torch.tensor([0.5, 0.7], dtype=torch.float64)
    torch.testing.assert_close(log_mixture(log_q_all, weights).exp().flatten(), expected_mixture)
    expected = -0.25 * math.log(0.5) - 0.75 * math.log(0.7)
    assert miselbo(zeros, zeros, log_q_all, weights).item() == pytest.approx(expected)
    pooled = math.log(0.25 / 0.5 + 0.75 / 0.7)
    assert siwelbo(zeros, zeros, log_q_all, weights).item() == pytest.approx(pooled)
    divergence = 0.25 * math.log(0.2 / 0.5) + 0.75 * math.log(0.8 / 0.7)
    assert jsd(log_q_all, weights).item() == pytest.approx(divergence)


def test_a_component_of_weight_0_is_as_if_absent(model):
    terms = model.terms(model.imperfect_posterior(3), 2)
    weights = log_weights_from([0.5, 0.5, 0.0], 3)
    kept = terms[0][:, :2], terms[1][:, :2], terms[2][:, :2, :2]
    for objective in (miselbo, siwelbo):
        torch.testing.assert_close(objective(*terms, weights), objective(*kept))


def test_half_precision_is_summed_in_float32():
    terms = torch.zeros(1, 3, 2), torch.zeros(1, 3, 2), torch.zeros(1, 3, 3, 2)
    half = [t.to(torch.bfloat16) for t in terms]
    assert miselbo(*half).dtype == torch.float32
    assert siwelbo(*half, torch.zeros(3).log_softmax(0).bfloat16()).dtype == torch.float32


def test_a_training_step_does_not_look_at_the_weights():
    log_lik, log_prior, log_q_all = good_terms()
    log_q_all.requires_grad_()
    miselbo(log_lik, log_prior, log_q_all, torch.zeros(3))
    with pytest.raises(ValueError, match="must be normalised"):
        miselbo(log_lik, log_prior, log_q_all.detach(), torch.zeros(3))


def test_weights_a_hundredth_off_are_no_distribution():
    with pytest.raises(ValueError, match="must be normalised"):
        log_mixture(torch.zeros(1, 2, 2, 1), torch.tensor([0.5, 0.51]).log())


@pytest.mark.parametrize("beta", [0, 1, 0.5, torch.tensor(0.5), torch.tensor([1.0])])
def test_kl_weights_may_be_numbers_or_tensors(beta):
    log_lik, log_prior, log_q_all = (term[:1] for term in good_terms())
    bound = miselbo(log_lik - 7, log_prior - 2, log_q_all, beta=beta)
    torch.testing.assert_close(bound, torch.full((5,), -7 - 2 * float(beta)))


def test_linear_warmup():
    assert [linear_warmup(e, 5) for e in (0, 1, 5, 6)] == [0.0, 0.2, 1.0, 1.0]
    assert linear_warmup(0, 0) == 1.0
    with pytest.raises(ValueError, match="must not be negative"):
        linear_warmup(-1, 5)


def good_terms():
    return torch.zeros(2, 3, 5), torch.zeros(2, 3, 5), torch.zeros(2, 3, 3, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.zeros(3, 5)}, "log_lik must have shape"),
        ({1: torch.zeros(2, 3, 4)}, "log_prior must have shape"),
        ({2: torch.zeros(2, 3, 5)}, "log_lik must have shape"),
        ({3: torch.zeros(4)}, "log_weights must have shape"),
        ({3: torch.zeros(3, 4)}, "log_weights must have shape"),
        ({3: torch.zeros(3, 5, 1)}, "log_weights must have shape"),
        ({3: torch.full((3,), -5.0)}, "log_weights must be normalised, but .* 3.9 away from 0"),
        ({3: torch.zeros(3, 5)}, "log_weights must be normalised"),
    ],
)
@pytest.mark.parametrize("objective", [miselbo, siwelbo])
def test_wrong_shapes_are_named(objective, change, message):
    arguments = dict(enumerate((*good_terms(), None))) | change
    with pytest.raises(ValueError, match=message):
        objective(*arguments.values())


def test_more_doors():
    log_lik, log_prior, log_q_all = good_terms()
    with pytest.raises(ValueError, match="beta must be 1 with L = 2"):
        miselbo(log_lik, log_prior, log_q_all, beta=0.5)
    one = log_lik[:1], log_prior[:1], log_q_all[:1]
    for beta in (math.nan, -3.0, 1.5, torch.tensor(-0.1)):
        with pytest.raises(ValueError, match=r"beta must lie in \[0, 1\], but it is"):
            miselbo(*one, beta=beta)
    with pytest.raises(ValueError, match=r"beta must be one number, but its shape is \(5,\)"):
        miselbo(log_lik, log_prior, log_q_all, beta=torch.ones(5))
    with pytest.raises(ValueError, match="four axes"):
        log_mixture(log_q_all[0])
    for function in (jsd, lambda q: component_elbos(log_lik[:, :2], log_prior[:, :2], q)):
        with pytest.raises(ValueError, match="every drawn component"):
            function(log_q_all[:, :2])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5, 0.6], "sum to 1"),
        ([1.0], "one number for each of the 2"),
        ([1.5, -0.5], "not negative"),
        ([float("nan"), 1.0], "finite"),
        (None, "one number for each of the 2"),
        ([[0.5, 0.5]], "one number for each of the 2"),
        (["a", "b"], "one number for each of the 2"),
    ],
)
def test_given_weights_must_be_a_distribution(weights, message):
    with pytest.raises(ValueError, match=message):
        log_weights_from(weights, 2)


@pytest.mark.parametrize("objective", [miselbo, siwelbo, lambda lik, prior, q, w: jsd(q, w)])
def test_draws_of_a_component_of_weight_0_may_be_impossible_under_the_others(objective):
    """Two boxes that do not overlap: what is drawn from the second has no density at all."""
    log_q_all = torch.tensor([[0.0, -math.inf], [-math.inf, 0.0]]).reshape(1, 2, 2, 1)
    terms = [torch.zeros(1, 2, 1), torch.zeros(1, 2, 1), log_q_all]
    terms = [term.requires_grad_() for term in terms]
    value = objective(*terms, torch.tensor([1.0, 0.0]).log())
    assert value.item() == 0.0
    value.sum().backward()
    assert all(term.grad is None or term.grad.isfinite().all() for term in terms)


@pytest.mark.parametrize("n_samples", [1, 2])
@pytest.mark.parametrize("bad", [-math.inf, math.nan, math.inf])
@pytest.mark.parametrize("objective", [miselbo, siwelbo])
def test_a_component_of_weight_0_is_silent_whatever_it_says(objective, bad, n_samples):
    """Values and gradients are those of the other components alone."""
    torch.manual_seed(0)
    log_lik, log_prior, log_q_all = (
        torch.randn(n_samples, *shape).double() for shape in ((3, 4), (3, 4), (3, 3, 4))
    )
    log_weights = torch.tensor([0.6, 0.0, 0.4]).double().log()
    expected = objective(
        log_lik[:, ::2], log_prior[:, ::2], log_q_all[:, ::2, ::2], log_weights[::2]
    )
    log_lik[:, 1], log_q_all[:, :, 1] = bad, bad
    terms = [term.requires_grad_() for term in (log_lik, log_prior, log_q_all)]
    found = objective(*terms, log_weights)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    for term in terms:
        assert term.grad.isfinite().all()
        assert (term.grad[:, 1] == 0).all()
    assert (log_q_all.grad[:, :, 1] == 0).all()
    assert log_lik.grad[:, ::2].abs().min() > 0
