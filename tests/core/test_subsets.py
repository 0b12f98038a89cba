"""Some of many components (Hotti et al. 2024): unbiased, a bound, and all of them when A = S."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Independent, MixtureSameFamily, Normal

import laws
from scmixvi.core import (
    MixturePosterior,
    Stage,
    check_estimator,
    component_elbos,
    draw_components,
    miselbo,
    siwelbo,
)
from scmixvi.core import posterior as posterior_module

S, A = 5, 2
WEIGHTS = {"uniform": None, "given": torch.tensor([0.4, 0.1, 0.2, 0.05, 0.25]).double().log()}
weightings = pytest.mark.parametrize("weighting", WEIGHTS)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return laws.LinearGaussian(n_inputs=3)


def terms_of_some(model, posterior, n_samples, drawn):
    (z,), log_q_all = posterior.sample_stratified(n_samples, drawn)
    log_lik = Normal(z @ model.weight.T, model.noise).log_prob(model.x).sum(-1)
    return log_lik, Normal(0.0, 1.0).log_prob(z).sum(-1), log_q_all


def some_bounds(model, posterior, n_samples, n_drawn, objective=miselbo):
    """One draw each of S2A and S2S over the same subset."""
    drawn = draw_components(S, n_drawn, posterior.log_weights)
    log_lik, log_prior, scores = terms_of_some(model, posterior, n_samples, drawn)
    weights = posterior.log_weights if n_drawn == S else None
    return (
        objective(log_lik, log_prior, scores, posterior.log_weights),
        objective(log_lik, log_prior, scores[:, :, drawn], weights),
    )


@weightings
@pytest.mark.parametrize("n_samples", [1, 2])
def test_s2a_averages_miselbo_and_s2s_stays_below_it(model, weighting, n_samples):
    posterior = model.imperfect_posterior(S, WEIGHTS[weighting], spread=0.8)
    n = 500
    some = [some_bounds(model, posterior, n_samples, A) for _ in range(n)]
    s2a, s2s = (torch.stack(draws) for draws in zip(*some, strict=True))
    full = torch.stack(
        [miselbo(*model.terms(posterior, n_samples), posterior.log_weights) for _ in range(n)]
    )
    error = ((full.var(0) + s2a.var(0)) / n).sqrt()
    assert ((s2a.mean(0) - full.mean(0)).abs() < 4 * error).all()
    for bound in (s2a, s2s):
        laws.assert_bound(bound, model.log_evidence)
    lost = s2a - s2s
    assert (lost.mean(0) > 4 * lost.std(0) / math.sqrt(n)).all(), "scored under few: looser"


@weightings
def test_pooled_bounds_over_subsets_stay_bounds(model, weighting):
    posterior = model.imperfect_posterior(S, WEIGHTS[weighting], spread=0.8)
    some = [some_bounds(model, posterior, 2, A, siwelbo) for _ in range(600)]
    for draws in zip(*some, strict=True):
        laws.assert_bound(torch.stack(draws), model.log_evidence)
        laws.assert_unbiased_weights(torch.stack(draws), model.log_evidence)


@weightings
def test_all_of_them_is_miselbo_exactly(model, weighting):
    posterior = model.imperfect_posterior(S, WEIGHTS[weighting])
    torch.manual_seed(3)
    s2a, s2s = some_bounds(model, posterior, 2, S)
    torch.manual_seed(3)
    expected = miselbo(*model.terms(posterior, 2), posterior.log_weights)
    for found in (s2a, s2s):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_the_exact_posterior_makes_every_subset_tight(model):
    for bound in some_bounds(model, model.exact_posterior(S), 2, A):
        torch.testing.assert_close(bound, model.log_evidence, rtol=0, atol=1e-9)


@weightings
def test_a_place_holds_a_component_as_often_as_its_weight_says(weighting):
    torch.manual_seed(1)
    n = 1500
    drawn = torch.stack([draw_components(S, A, WEIGHTS[weighting]) for _ in range(n)])
    expected = torch.full((S,), 1 / S) if weighting == "uniform" else WEIGHTS["given"].exp().float()
    for place in drawn.T:
        share = place.bincount(minlength=S) / n
        assert ((share - expected).abs() < 4 * (expected * (1 - expected) / n).sqrt()).all()
    assert (drawn[:, 0] == drawn[:, 1]).any() == (weighting == "given")


def two_levels(parameters, flow=None):
    loc, scale = parameters
    slope = torch.randn(S, 1, 3, 2).double()

    def lower(above):
        mean = torch.einsum("lsbd,jked->lsjbe", above, slope)
        return Independent(Normal(mean, torch.full_like(mean, 0.7)), 1)

    return MixturePosterior([Stage(lambda: Independent(Normal(loc, scale), 1), flow), Stage(lower)])


class ShiftEach:
    """Component s is shifted by 10 s."""

    shared = False
    shift = 10 * torch.arange(S).double().reshape(-1, 1, 1)

    def __call__(self, z0):
        return z0 + self.shift, z0.new_zeros(z0.shape[:-1])

    def inverse(self, z):
        z0 = z - self.shift
        return z0, z0.new_zeros(z0.shape[:-1])


@pytest.mark.parametrize("flow", [None, ShiftEach()])
def test_every_level_comes_from_the_drawn_component(flow):
    """With components of no width, a draw is its component's mean, level by level."""
    loc = torch.randn(S, 3, 2).double()
    posterior = two_levels((loc, torch.full_like(loc, 1e-9)), flow)
    drawn = torch.tensor([4, 1, 4])
    (top, bottom), log_q_all = posterior.sample_stratified(2, drawn)
    expected = loc[drawn] + (0 if flow is None else ShiftEach.shift[drawn])
    torch.testing.assert_close(top, expected.expand(2, -1, -1, -1), rtol=0, atol=1e-6)
    mean = posterior.stages[1].conditional(top).mean[:, torch.arange(3), drawn]
    assert (bottom - mean).std() == pytest.approx(0.7, rel=0.4)
    assert log_q_all.shape == (2, 3, S, 3)
    torch.testing.assert_close(log_q_all, posterior.log_prob_all((top, bottom)))
    assert not torch.equal(top[:, 0], top[:, 2]), "a component drawn twice draws twice"


def test_bases_that_are_not_gaussian_are_drawn_from_too():
    loc = torch.tensor([-9.0, 0.0, 9.0]).reshape(3, 1, 1).expand(-1, 4, 1)
    base = Independent(torch.distributions.Laplace(loc, torch.full_like(loc, 0.01)), 1)
    (z,), _ = MixturePosterior([Stage(lambda: base)]).sample_stratified(2, torch.tensor([2, 0]))
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.tensor([9.0, -9.0]), rtol=0, atol=0.1)


@weightings
def test_passes_change_no_score_and_no_divergence(model, monkeypatch, weighting):
    """The divergence of 1003 draws from 143 passes of 7 and one of 2."""
    posterior = model.imperfect_posterior(S, WEIGHTS[weighting])
    (z,), whole = posterior.sample_stratified(3)
    divergence = posterior.jsd(20_000)
    monkeypatch.setattr(posterior_module, "MAX_NUMBERS_A_PASS", S**2 * 3 * 7)
    with torch.no_grad():
        torch.testing.assert_close(posterior.log_prob_all((z,)), whole, rtol=0, atol=0)
        again = posterior.jsd(1003)
    torch.testing.assert_close(again, divergence, rtol=0.1, atol=0)
    with pytest.raises(ValueError, match="at least 1"):
        posterior.jsd(0)


def test_a_last_pass_of_fewer_draws_counts_for_as_many(monkeypatch):
    """Components that lie apart have the divergence log 2 in every draw."""
    loc = torch.tensor([-50.0, 50.0]).reshape(2, 1, 1)
    monkeypatch.setattr(posterior_module, "MAX_NUMBERS_A_PASS", 12)
    with torch.no_grad():
        found = laws.gaussian_mixture(loc, torch.ones(2, 1, 1)).jsd(7)
    assert found.item() == pytest.approx(math.log(2), abs=1e-5)


def test_passes_are_for_the_top_level_alone(monkeypatch):
    """Below it every draw has its own Gaussians, which do not split."""
    posterior = two_levels((torch.randn(S, 3, 2).double(), torch.ones(S, 3, 2).double()))
    zs, scores = posterior.sample_stratified(5)
    monkeypatch.setattr(posterior_module, "MAX_NUMBERS_A_PASS", 1)
    with torch.no_grad():
        torch.testing.assert_close(posterior.log_prob_all(zs), scores)


def test_scores_agree_with_torch_at_drawn_points(model):
    posterior = model.imperfect_posterior(S)
    base = posterior.stages[0].conditional().base_dist
    (z,), log_q_all = posterior.sample_stratified(1, torch.tensor([3, 0]))
    mixture = MixtureSameFamily(
        torch.distributions.Categorical(logits=torch.zeros(3, S)),
        Independent(Normal(base.loc.transpose(0, 1), base.scale.transpose(0, 1)), 1),
    )
    found = log_q_all.logsumexp(2) - math.log(S)
    torch.testing.assert_close(found, mixture.log_prob(z))


@pytest.mark.parametrize("drawn", [[1, 0, 2, 3, 4], [0, 0, 1, 2, 3]])
def test_as_many_places_as_components_hold_each_once_in_order(model, drawn):
    """Taken for component a, what component drawn[a] drew would get the wrong weight."""
    posterior = model.imperfect_posterior(S, WEIGHTS["given"])
    with pytest.raises(ValueError, match="must be 0 to 4 in order, but it is"):
        posterior.sample_stratified(1, torch.tensor(drawn))
    for fine in (draw_components(S, S), torch.tensor([0, 0, 3, 1]), torch.arange(6) % S):
        assert posterior.sample_stratified(1, fine)[1].shape[1:3] == (len(fine), S)


def test_doors():
    with pytest.raises(ValueError, match=r"one of \['all', 's2a', 's2s'\], but it is 's2'"):
        check_estimator("s2", 1, 3)
    for wrong in (0, 4, 1.0, True, None):
        with pytest.raises(ValueError, match="from 1 to n_components = 3"):
            check_estimator("s2s", wrong, 3)
    check_estimator("all", 99, 3)
    with pytest.raises(ValueError, match="drawn from = S scored under"):
        component_elbos(torch.zeros(1, 2, 1), torch.zeros(1, 2, 1), torch.zeros(1, 2, 3, 1))


@pytest.mark.parametrize("shape", [(4,), (2,), (3, 1), ()])
@pytest.mark.parametrize("n_drawn", [2, 3])
def test_components_are_drawn_by_a_weight_each(shape, n_drawn):
    with pytest.raises(ValueError, match=r"shape \[S\] = \(3,\) to draw .* is \("):
        draw_components(3, n_drawn, torch.zeros(shape))


def test_numpy_s_whole_numbers_are_whole():
    check_estimator("s2a", np.int64(2), 3)
    assert len(draw_components(3, np.int32(2))) == 2
    for wrong in (True, 2.0, np.float64(2)):
        with pytest.raises(ValueError, match="n_drawn must be a whole number"):
            check_estimator("s2a", wrong, 3)
