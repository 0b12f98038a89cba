"""Posteriors of each input's own: they climb to log p(x) where the family has it, never above."""

import math

import pytest
import torch
from torch.distributions import Cauchy, Independent, MultivariateNormal, Normal, kl_divergence

from laws import LinearGaussian, assert_draw_law, gaussian_mixture
from scmixvi.core import (
    MixturePosterior,
    Stage,
    fit_posterior,
    fitted_gaussians,
    miselbo,
    refined_posterior,
)
from scmixvi.core.fitting import Ascent


def log_joint_of(model):
    def log_joint(z):
        log_lik = Normal(z @ model.weight.T, model.noise).log_prob(model.x).sum(-1)
        return log_lik + Normal(0.0, 1.0).log_prob(z).sum(-1)

    return log_joint


@pytest.mark.parametrize("weights", [None, [0.7, 0.3]], ids=str)
@pytest.mark.parametrize("n_components", [1, 2])
def test_the_exact_posterior_of_every_input_is_found(n_components, weights):
    """Inputs have optima of their own: a fit that mixed them would miss all."""
    torch.manual_seed(0)
    model = LinearGaussian()
    log_weights = torch.tensor(weights).double().log() if weights and n_components == 2 else None
    shape = (n_components, *model.mean.shape)
    start = torch.randn(shape).double(), torch.full(shape, 0.5).double()
    loc, scale = fitted_gaussians(*start, log_joint_of(model), 600, log_weights)
    found = gaussian_mixture(loc, scale, log_weights)
    off = (found.mean - model.mean) / model.variance.sqrt()
    assert off.abs().max() < 0.3, "standard deviations, beside a start that is some away"
    torch.testing.assert_close(found.variance, model.variance, rtol=0.35, atol=0)
    bound = miselbo_of(model, found)
    assert (bound <= model.log_evidence + 0.01).all()
    torch.testing.assert_close(bound, model.log_evidence, rtol=0, atol=0.05)


def draws_of_miselbo(log_p, log_q_all, log_weights=None):
    """The mean of MISELBO at L = 1 over many draws, `[B]`."""
    zeros = torch.zeros_like(log_p[:1])
    pairs = zip(log_p.split(1), log_q_all.split(1), strict=True)
    return torch.stack([miselbo(p, zeros, q, log_weights) for p, q in pairs]).mean(0)


def miselbo_of(model, posterior, n_draws=2000):
    log_lik, log_prior, log_q_all = model.terms(posterior, n_draws)
    return draws_of_miselbo(log_lik + log_prior, log_q_all, posterior.log_weights)


def test_the_bound_of_what_is_fitted_stays_below_the_evidence_and_rises():
    """A few steps from a start that is off: between the start's bound and log p(x)."""
    torch.manual_seed(0)
    model = LinearGaussian()
    before = model.imperfect_posterior(3)
    base = before.stages[0].conditional().base_dist
    bounds = [miselbo_of(model, before)]
    for n_steps in (10, 40, 160):
        fitted = fitted_gaussians(base.loc, base.scale, log_joint_of(model), n_steps)
        bounds.append(miselbo_of(model, gaussian_mixture(*fitted)))
    for lower, upper in zip(bounds, bounds[1:], strict=False):
        assert (upper > lower - 0.02).all()
    assert (bounds[-1] <= model.log_evidence + 0.02).all()
    assert (bounds[-1] - bounds[0]).mean() > 0.1


def test_components_share_two_modes_which_one_gaussian_cannot():
    """p(x, z) of two modes with evidence 1: the best Gaussian covers one, log 2 below."""
    torch.manual_seed(0)

    def log_joint(z):
        modes = [Normal(m, 0.3).log_prob(z).sum(-1) for m in (-2.0, 2.0)]
        return torch.logaddexp(*modes) - math.log(2)

    def bound(n_components):
        loc = torch.tensor([1.0, -1.0])[:n_components].reshape(-1, 1, 1)
        start = loc, torch.full((n_components, 1, 1), 0.5)
        found = gaussian_mixture(*fitted_gaussians(*start, log_joint, 400))
        (z,), log_q_all = found.sample_stratified(2000)
        return draws_of_miselbo(log_joint(z), log_q_all).item(), found

    one, _ = bound(1)
    two, found = bound(2)
    assert one == pytest.approx(-math.log(2), abs=0.03)
    assert two == pytest.approx(0, abs=0.03)
    means = found.stages[0].conditional().base_dist.loc.flatten().sort().values
    torch.testing.assert_close(means, torch.tensor([-2.0, 2.0]), rtol=0, atol=0.1)


def test_other_families_are_fitted_by_their_own_parameters():
    """A Gaussian with full covariance finds correlations that no diagonal one has."""
    torch.manual_seed(0)
    covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
    target = MultivariateNormal(torch.tensor([1.0, -1.0]), covariance)
    parameters = torch.zeros(1, 1, 2, requires_grad=True), torch.zeros(2, 2, requires_grad=True)

    def posterior(loc, lower):
        scale = lower.tril(-1) + torch.diag_embed(lower.diagonal().exp())
        base = MultivariateNormal(loc, scale_tril=scale.expand(1, 1, 2, 2))
        return MixturePosterior([Stage(lambda: base)])

    fit_posterior(posterior, parameters, target.log_prob, 600)
    found = posterior(*parameters).stages[0].conditional()
    torch.testing.assert_close(found.mean[0, 0], target.mean, rtol=0, atol=0.1)
    torch.testing.assert_close(found.covariance_matrix[0, 0], covariance, rtol=0, atol=0.15)


def test_no_steps_leave_the_start_and_the_start_is_never_changed():
    loc, scale = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    found = fitted_gaussians(loc, scale, lambda z: -z.square().sum(-1), 0)
    torch.testing.assert_close(found, (loc, scale), rtol=0, atol=0)
    moved, _ = fitted_gaussians(loc, scale, lambda z: -(z - 9).square().sum(-1), 5)
    assert (moved > 0).all()
    assert not moved.requires_grad
    assert (loc == 0).all()


def test_steps_rise_to_the_learning_rate_and_fall_to_nothing():
    """Adam's steps up a constant slope are as long as the rate of the moment."""
    start = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    loc, _ = fitted_gaussians(*start, lambda z: 1e4 * z.sum(-1), 40)
    rates = [min(1, (k + 1) / 3) * (1 - k / 40) for k in range(40)]
    assert loc.item() == pytest.approx(0.1 * sum(rates), rel=1e-3)


def test_steps_are_taken_as_asked():
    start = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    ascent = Ascent(learning_rate=0.02, betas=(0.9, 0.999), warmup_steps=0)
    loc, _ = fitted_gaussians(*start, lambda z: 1e4 * z.sum(-1), 10, ascent=ascent)
    assert loc.item() == pytest.approx(0.02 * sum(1 - k / 10 for k in range(10)), rel=1e-3)


def test_a_component_without_weight_is_not_fitted():
    start = torch.tensor([-1.0, 1.0]).reshape(2, 1, 1), torch.ones(2, 1, 1)
    weights = torch.tensor([1.0, 0.0]).log()
    found, _ = fitted_gaussians(*start, lambda z: -(z - 3).square().sum(-1), 20, weights)
    assert found[0].item() > -0.9
    assert found[1].item() == 1


def test_no_noise_is_left_at_the_exact_posterior():
    """Draws of one step differ, yet from the optimum nothing moves that far: the path gradient."""
    torch.manual_seed(0)
    sd, loc = 0.1, torch.randn(1, 50, 10)
    target = Normal(loc, sd)
    start = loc.clone(), torch.full_like(loc, sd)
    found = fitted_gaussians(*start, lambda z: target.log_prob(z).sum(-1), 100)
    divergence = kl_divergence(Normal(*found), target).sum(-1)
    assert divergence.max() < 0.01


def test_no_noise_is_left_at_the_exact_posterior_of_any_family():
    loc, log_scale = (torch.zeros(1, 4, 3, requires_grad=True) for _ in range(2))

    def posterior(loc, log_scale):
        return gaussian_mixture(loc, log_scale.exp())

    fit_posterior(posterior, (loc, log_scale), lambda z: -0.5 * z.square().sum(-1), 20)
    assert not loc.any()
    assert not log_scale.any()


def test_the_models_weights_get_no_gradient_whatever_context_it_is_called_in():
    weight = torch.ones(3, requires_grad=True)
    start = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)

    def fitted():
        torch.manual_seed(0)
        return fitted_gaussians(*start, lambda z: -(z * weight - 1).square().sum(-1), 20)

    expected = fitted()
    assert weight.grad is None
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            torch.testing.assert_close(fitted(), expected, rtol=0, atol=0)


def test_an_input_that_is_no_number_leaves_the_others_alone():
    loc = torch.zeros(1, 2, 3)
    loc[0, 1] = float("nan")
    found, _ = fitted_gaussians(loc, torch.ones(1, 2, 3), lambda z: -(z - 1).square().sum(-1), 20)
    assert (found[0, 0] > 0.1).all()


def test_an_input_without_a_finite_gradient_stays_and_the_others_move():
    start = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    nothing = torch.tensor([1.0, float("nan")]).reshape(1, 1, 2, 1)
    loc, scale = fitted_gaussians(*start, lambda z: -(nothing * (z - 1)).square().sum(-1), 20)
    assert (loc[0, 0] > 0.1).all()
    assert (loc[0, 1] == 0).all()
    assert torch.isfinite(scale).all()


def test_an_input_whose_first_gradient_is_infinite_moves_with_the_next():
    calls = []

    def log_joint(z):
        calls.append(z)
        slope = torch.tensor([1.0, math.inf if len(calls) == 1 else 1.0])
        return (9 * slope.reshape(1, 1, 2, 1) * z).sum(-1)

    loc, _ = fitted_gaussians(torch.zeros(1, 2, 3), torch.ones(1, 2, 3), log_joint, 20)
    assert (loc > 0.1).all()


class Chained:
    """z1 ~ N(0, 1), z2 ~ N(0.8 z1, 0.6^2), x ~ N(z2, 0.5^2), a dimension at a time, in float64."""

    sd_2, noise = 0.6, 0.5

    def __init__(self, n_inputs=4, n_latent=3):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(n_inputs, n_latent, generator=generator).double()
        variance = 0.8**2 + self.sd_2**2 + self.noise**2
        self.log_evidence = Normal(0.0, math.sqrt(variance)).log_prob(self.x).sum(-1)
        # Given x: z1 by regression, then z2 by z1 and x.
        self.mean_1 = 0.8 / variance * self.x
        self.var_1 = 1 - 0.8**2 / variance
        self.var_2 = 1 / (1 / self.sd_2**2 + 1 / self.noise**2)

    def log_joint(self, z1, z2):
        log_p = Normal(0.0, 1.0).log_prob(z1) + Normal(0.8 * z1, self.sd_2).log_prob(z2)
        return (log_p + Normal(z2, self.noise).log_prob(self.x)).sum(-1)

    def posterior(self, off, wider, flow=None, n_components=1):
        """The exact posterior with the means of both levels off and the deviations wider."""
        shape = (n_components, *self.x.shape)
        top = (self.mean_1 + off).expand(shape)
        scale_1 = torch.full_like(top, self.var_1**0.5 * wider)

        def below(z1):
            mean = self.var_2 * (0.8 * z1 / self.sd_2**2 + self.x / self.noise**2)
            if flow is not None:
                mean = flow.back(mean)
            shift = 1.0 if flow is None else flow.scale
            loc = (mean + off).unsqueeze(2).expand(*z1.shape[:2], *shape)
            scale = torch.full_like(loc, self.var_2**0.5 * wider / shift)
            return Independent(Normal(loc, scale), 1)

        stages = [Stage(lambda: Independent(Normal(top, scale_1), 1)), Stage(below, flow)]
        return MixturePosterior(stages)

    def bound(self, posterior, n_draws=4000):
        zs, log_q_all = posterior.sample_stratified(n_draws)
        return draws_of_miselbo(self.log_joint(*zs), log_q_all, posterior.log_weights)


class Affine:
    """z = 3 + 2 z0, one bijection for all components, or as if every component had its own."""

    scale = 2.0

    def __init__(self, shared):
        self.shared = shared

    def __call__(self, z0):
        return 3 + self.scale * z0, torch.full_like(z0, math.log(self.scale)).sum(-1)

    def back(self, z):
        return (z - 3) / self.scale

    def inverse(self, z):
        return self.back(z), torch.full_like(z, math.log(self.scale)).sum(-1)


FLOWS = {"none": None, "shared": Affine(shared=True), "own": Affine(shared=False)}


@pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)
@pytest.mark.parametrize("n_components", [1, 2])
def test_posteriors_of_levels_and_flows_climb_to_the_evidence(flow, n_components):
    torch.manual_seed(0)
    model = Chained()
    before = model.posterior(off=0.5, wider=2.0, flow=flow, n_components=n_components)
    bounds = [
        model.bound(refined_posterior(before, model.log_joint, n_steps)) for n_steps in (0, 30, 300)
    ]
    assert (bounds[0] < model.log_evidence - 1).all()
    assert (bounds[1] > bounds[0] + 0.3).all()
    for bound in bounds:
        assert (bound <= model.log_evidence + 0.02).all()
    torch.testing.assert_close(bounds[2], model.log_evidence, rtol=0, atol=0.03)


@pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)
def test_no_noise_is_left_at_the_exact_posterior_of_levels_and_flows(flow):
    torch.manual_seed(0)
    model = Chained()
    exact = model.posterior(off=0.0, wider=1.0, flow=flow)
    found = refined_posterior(exact, model.log_joint, 100)
    divergence = model.log_evidence - model.bound(found)
    assert divergence.max() < 0.005


def test_the_refined_posterior_keeps_the_draw_law_and_its_weights():
    model = Chained()
    weights = torch.tensor([0.7, 0.3]).double().log()
    before = model.posterior(0.5, 2.0, n_components=2)
    before = MixturePosterior(before.stages, weights)
    found = refined_posterior(before, model.log_joint, 20)
    assert found.log_weights is weights
    assert_draw_law(found, 3)


def test_levels_that_are_not_diagonal_gaussians_cannot_be_refined():
    cauchy = Independent(Cauchy(torch.zeros(2, 3, 1), torch.ones(2, 3, 1)), 1)
    with pytest.raises(ValueError, match=r"must be Independent\(Normal\(...\), 1\).*Cauchy"):
        refined_posterior(MixturePosterior([Stage(lambda: cauchy)]), lambda z: -z.sum(-1), 3)


@pytest.mark.parametrize("n_steps", [-1, 2.5, True])
def test_steps_are_counted(n_steps):
    with pytest.raises(ValueError, match="n_steps must be a whole number of at least 0, but it is"):
        fitted_gaussians(torch.zeros(1, 1, 2), torch.ones(1, 1, 2), lambda z: -z.sum(-1), n_steps)
