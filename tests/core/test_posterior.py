"""The mixture posterior: draws, scores, moments, hierarchies and flows."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal

import laws
from scmixvi.core import MixturePosterior, Stage, miselbo
from scmixvi.core import posterior as posterior_module

L, S, B, D = 2, 3, 5, 2


def normal(loc, scale):
    return Independent(Normal(loc, scale), 1)


class SharedShift:
    """z = z0 * e + 1 for every component."""

    shared = True

    def __call__(self, z0):
        return z0 * math.e + 1, z0.new_full(z0.shape[:-1], float(z0.shape[-1]))

    def inverse(self, z):
        return (z - 1) / math.e, z.new_full(z.shape[:-1], float(z.shape[-1]))


class ShiftEach:
    """Component s is shifted by `shift[s]`."""

    shared = False

    def __init__(self, shift):
        self.shift = shift.reshape(-1, 1, 1)

    def __call__(self, z0):
        return z0 + self.shift, z0.new_zeros(z0.shape[:-1])

    def inverse(self, z):
        z0 = z - self.shift
        return z0, z0.new_zeros(z0.shape[:-1])


@pytest.fixture
def parameters():
    torch.manual_seed(2)
    return torch.randn(S, B, D).double(), torch.rand(S, B, D).double() + 0.5


@pytest.fixture
def hierarchy(parameters):
    loc, scale = parameters
    slope = torch.randn(S, 1, 3, D).double()

    def lower(above):
        mean = torch.einsum("lsbd,jked->lsjbe", above, slope)
        return normal(mean, torch.full_like(mean, 0.7))

    return [Stage(lambda: normal(loc, scale)), Stage(lower)]


def single(parameters, flow=None, log_weights=None):
    return MixturePosterior([Stage(lambda: normal(*parameters), flow)], log_weights)


@pytest.mark.parametrize("n_samples", [1, 2])
def test_draw_law(parameters, hierarchy, n_samples):
    shift = torch.tensor([-1.0, 0.0, 2.0]).double()
    for posterior in (
        single(parameters),
        single(parameters, SharedShift()),
        single(parameters, ShiftEach(shift)),
        MixturePosterior(hierarchy),
        MixturePosterior([hierarchy[0], Stage(hierarchy[1].conditional, SharedShift())]),
    ):
        laws.assert_draw_law(posterior, n_samples)


def test_scores_against_torch(parameters):
    loc, scale = parameters
    (z,), log_q_all = single(parameters).sample_stratified(L)
    for s in range(S):
        for j in range(S):
            expected = Normal(loc[j], scale[j]).log_prob(z[:, s]).sum(-1)
            torch.testing.assert_close(log_q_all[:, s, j], expected)


def test_every_level_of_a_sample_comes_from_one_component(parameters):
    """The lower latent of the s-th term is drawn by component s, and scored under j by j."""
    loc, _ = parameters
    tight = torch.full_like(loc, 1e-6)
    offset = torch.arange(S).double().reshape(S, 1, 1) * 10

    def lower(above):
        mean = above.unsqueeze(2) + offset
        return normal(mean, torch.full_like(mean, 1e-6))

    posterior = MixturePosterior([Stage(lambda: normal(loc, tight)), Stage(lower)])
    (top, bottom), _ = posterior.sample_stratified(L)
    torch.testing.assert_close(bottom, top + offset, rtol=0, atol=1e-4)
    top, bottom = posterior.sample(50)
    own = (top.unsqueeze(1) - loc).square().sum(-1).argmin(1)
    assert len(own.unique()) == S
    torch.testing.assert_close(bottom, top + offset.flatten()[own].unsqueeze(-1), rtol=0, atol=1e-4)


def test_a_lower_level_that_does_not_answer_for_every_component_is_named(parameters):
    """Draws of the first alone would be taken for those of all."""
    for axis in (1, 2):

        def lower(above, axis=axis):
            mean = above.unsqueeze(2).expand(-1, -1, S, -1, -1).narrow(axis, 0, 1)
            return normal(mean, torch.ones_like(mean))

        posterior = MixturePosterior([Stage(lambda: normal(*parameters)), Stage(lower)])
        for ask in (posterior.sample_stratified, lambda p=posterior: p.sample(1)):
            with pytest.raises(ValueError, match=r"batch \[L, S, S, B\], but its batch is"):
                ask()


def test_shared_flow_changes_the_variables(parameters):
    posterior = single(parameters, SharedShift())
    (z,), log_q_all = posterior.sample_stratified(L)
    loc, scale = parameters
    exact = normal(loc * math.e + 1, scale * math.e)
    torch.testing.assert_close(log_q_all, exact.log_prob(z.unsqueeze(2)))


def test_flows_of_the_components_are_scored_at_the_drawn_point():
    """Eq. 7 as printed adds log 2 here: both components are N(0, 0.1) after their flows."""
    base_loc = torch.tensor([-10.0, 10.0]).double().reshape(2, 1, 1)
    base = normal(base_loc, torch.full_like(base_loc, 0.1))
    flow = ShiftEach(torch.tensor([10.0, -10.0]).double())
    posterior = MixturePosterior([Stage(lambda: base, flow)])
    (z,), log_q_all = posterior.sample_stratified(7)
    target = Normal(z.new_zeros(1), z.new_full((1,), 0.1)).log_prob(z).sum(-1)
    bound = miselbo(torch.zeros_like(target), target, log_q_all)
    torch.testing.assert_close(bound, torch.zeros_like(bound), rtol=0, atol=1e-7)
    base_draws = z - flow.shift
    printed = base.log_prob(base_draws.unsqueeze(2))
    above = miselbo(torch.zeros_like(target), target, printed)
    torch.testing.assert_close(above, torch.full_like(above, math.log(2)))


@pytest.mark.parametrize("amortized", [False, True])
def test_moments_and_samples_of_the_mixture(parameters, amortized):
    torch.manual_seed(4)
    logits = torch.randn(S, B).double() if amortized else torch.randn(S).double()
    posterior = single(parameters, log_weights=logits.log_softmax(0))
    (draws,) = posterior.sample(20000)
    assert draws.shape == (20000, B, D)
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - posterior.mean).abs() < 5 * error).all()
    torch.testing.assert_close(draws.var(0), posterior.variance, rtol=0.1, atol=0)


def test_density_of_the_mixture_integrates_to_1():
    loc = torch.tensor([-1.0, 0.5, 2.0]).double().reshape(3, 1, 1)
    weights = torch.tensor([0.2, 0.3, 0.5]).double().log()
    posterior = single((loc, torch.full_like(loc, 0.4)), SharedShift(), weights)
    grid = torch.linspace(-20, 25, 9001).double().reshape(-1, 1, 1)
    density = posterior.log_prob([grid]).exp()[:, 0]
    assert torch.trapezoid(density, grid.flatten()).item() == pytest.approx(1, abs=1e-6)


def test_jsd_of_a_posterior(parameters):
    torch.manual_seed(5)
    divergence = single(parameters).jsd(500)
    assert divergence.shape == (B,)
    assert (divergence > 0).all()
    assert (divergence < math.log(S)).all()


def test_doors(parameters):
    posterior = single(parameters)
    with pytest.raises(ValueError, match="at least one stage"):
        MixturePosterior([])
    for draw in (posterior.sample_stratified, posterior.jsd, posterior.sample):
        for n in (0, 1.5, True):
            with pytest.raises(ValueError, match=f"whole number of at least 1, but it is {n}"):
                draw(n)
    with pytest.raises(ValueError, match="1 tensor"):
        posterior.log_prob_all([torch.zeros(B, D)])
    with pytest.raises(ValueError, match="conditional must return"):
        MixturePosterior([Stage(lambda: Normal(*parameters))]).sample_stratified()
    for shape in ((S + 1,), (1,), (S, B + 1), (B, S), ()):
        with pytest.raises(ValueError, match=r"log_weights must have shape \[S\] or \[S, B\]"):
            single(parameters, log_weights=torch.zeros(shape))
    unnormalised = single(parameters, log_weights=torch.zeros(S))
    for ask in (lambda p: p.mean, lambda p: p.variance, lambda p: p.sample(2), lambda p: p.jsd(2)):
        with pytest.raises(ValueError, match="log_weights must be normalised"):
            ask(unnormalised)
    with pytest.raises(NotImplementedError, match="no closed form"):
        _ = single(parameters, SharedShift()).mean


@pytest.mark.parametrize("shape", [(L, S, B, 1), (L, S, B, D + 1), (L, S, 1, D), (L, S, B + 2, D)])
def test_latents_of_other_sizes_are_named(parameters, hierarchy, shape):
    """Broadcasting would score one number as all D, or one input's latents as everyone's."""
    whole = torch.zeros(L, S, B, D).double()
    z = torch.zeros(shape).double()
    for posterior in (single(parameters), single(parameters, SharedShift())):
        with pytest.raises(ValueError, match=r"\[L, S, B, D\] with \(B, D\) = \(5, 2\), but their"):
            posterior.log_prob_all([z])
        with pytest.raises(ValueError, match=r"with \(B, D\) = \(5, 2\), but their shape is \(2, "):
            posterior.log_prob([z[:, 0]])
    with pytest.raises(ValueError, match=r"\(B, D\) = \(5, 2\)|must have the same L, S and B"):
        MixturePosterior(hierarchy).log_prob_all([z, whole])


def test_latents_of_one_sample_have_its_sizes_on_every_level(hierarchy):
    whole, posterior = torch.zeros(L, S, B, D).double(), MixturePosterior(hierarchy)
    below = torch.zeros(L, S, B, 3).double()
    assert posterior.log_prob_all([whole, below]).shape == (L, S, S, B)
    for part in (below[:1], below[:, :1], below[:, :, :1]):
        with pytest.raises(ValueError, match="must have the same L, S and B, but their shapes are"):
            posterior.log_prob_all([whole, part])
    with pytest.raises(ValueError, match=r"\(B, D\) = \(5, 3\), but their shape is \(2, 3, 5, 1"):
        posterior.log_prob_all([whole, below[..., :1]])


def test_draws_of_the_mixture_are_not_scored(monkeypatch):
    """Scores of every draw under every component would take S times the memory of the draws."""

    def refuse(*_):
        raise AssertionError("a draw was scored")

    monkeypatch.setattr(posterior_module, "_log_prob_all", refuse)
    loc = torch.tensor([-9.0, 9.0]).reshape(2, 1, 1)
    normal = Independent(Normal(loc, torch.ones(2, 1, 1), validate_args=False), 1)
    mixture = MixturePosterior([Stage(lambda: normal)], torch.tensor([0.25, 0.75]).log())
    torch.manual_seed(0)
    (z,) = mixture.sample(4000)
    assert z.shape == (4000, 1, 1)
    assert (z > 0).float().mean().item() == pytest.approx(0.75, abs=0.02)


def test_a_lower_level_draws_noise_for_its_own_samples_alone():
    """S of S x S: component s needs draws given what it drew itself, and no others."""
    n_samples, n_components, n_inputs, n_latent = 2, 3, 5, 7
    shape = (n_samples, n_components, n_components, n_inputs, n_latent)
    loc, scale = torch.randn(shape), torch.rand(shape) + 0.5
    above = torch.zeros(n_samples, n_components, n_inputs, 1)
    stage = Stage(lambda _: Independent(Normal(loc, scale), 1))
    torch.manual_seed(2)
    drawn = stage.draw((above,), n_samples)
    torch.manual_seed(2)
    noise = torch.randn(n_samples, n_components, n_inputs, n_latent)
    for s in range(n_components):
        expected = loc[:, s, s] + scale[:, s, s] * noise[:, s]
        torch.testing.assert_close(drawn[:, s], expected)
