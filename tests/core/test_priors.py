"""Priors: reference densities, the VampPrior against torch's mixture, chains and draws."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from scmixvi.core import (
    GaussianConditional,
    GaussianMixture,
    Prior,
    StandardNormal,
    VampPrior,
    diagonal_normal,
    log_weights_from,
)

S, K, D = 3, 5, 2


class Encoder(nn.Module):
    """S linear Gaussians: what a VampPrior asks of the posterior's top level."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(S, 7, 2 * D))

    def forward(self, x):
        parameters = x @ self.weight
        return lambda: diagonal_normal(parameters)


class PseudoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.values = nn.Parameter(torch.randn(K, 7))

    def forward(self):
        return self.values


def torch_mixture(base, log_weights):
    """The same prior out of torch's parts: components and pseudo-inputs as one mixture axis."""
    weights = torch.full((S,), 1 / S).double().log() if log_weights is None else log_weights
    joint = (weights[:, None] - math.log(K)).expand(S, K).flatten()
    parts = Independent(Normal(base.mean.flatten(0, 1), base.stddev.flatten(0, 1)), 1)
    return MixtureSameFamily(Categorical(logits=joint), parts)


@pytest.mark.parametrize("weights", [None, [0.2, 0.5, 0.3], [0.4, 0.0, 0.6]])
def test_vamp_prior_equals_mixture_same_family(weights):
    log_weights = None if weights is None else log_weights_from(weights, S).double()
    prior = VampPrior(Encoder(), PseudoInputs(), D, log_weights).double()
    z = 3 * torch.randn(2, S, 11, D).double()
    expected = torch_mixture(prior.encoder(prior.pseudo_inputs())(), log_weights)
    torch.testing.assert_close(prior().log_prob(z), expected.log_prob(z))


def test_vamp_prior_sees_gradients_in_encoder_and_pseudo_inputs():
    prior = VampPrior(Encoder(), PseudoInputs(), D)
    prior().log_prob(torch.randn(11, D)).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in prior.parameters())


def test_a_vamp_prior_takes_normalised_weights_alone():
    with pytest.raises(ValueError, match="log_weights must be normalised"):
        VampPrior(Encoder(), PseudoInputs(), D, torch.zeros(S))
    one = VampPrior(Encoder(), PseudoInputs(), D, torch.zeros(1))
    with pytest.raises(ValueError, match=rf"must have shape \[S\] = \({S},\), as its encoder has"):
        one()


@pytest.mark.parametrize("n_latent", [1, D + 1])
def test_a_vamp_prior_has_the_dimensions_of_its_encoder(n_latent):
    prior = VampPrior(Encoder(), PseudoInputs(), n_latent)
    with pytest.raises(ValueError, match=rf"is {n_latent}, but its encoder's .* over \({D},\)"):
        prior()


def test_pseudo_inputs_are_encoded_once_a_call():
    calls = []
    prior = VampPrior(Encoder(), PseudoInputs(), D)
    prior.encoder.register_forward_hook(lambda *_: calls.append(1))
    density = prior()
    density.log_prob(torch.randn(4, D))
    density.log_prob(torch.randn(4, D))
    assert len(calls) == 1


def test_expanded_squares_lose_nothing_in_float32():
    """Means far out and the narrowest scales: squares of 1e5 that cancel to a few nats."""
    mean, variance = 15 + torch.randn(40, 30), torch.full((40, 30), math.exp(-6))
    log_weights = torch.full((40,), -math.log(40))
    z = mean + variance.sqrt() * torch.randn(40, 30)
    parts = Independent(Normal(mean.double(), variance.double().sqrt()), 1)
    exact = MixtureSameFamily(Categorical(logits=log_weights.double()), parts).log_prob(z.double())
    found = GaussianMixture(mean, variance, log_weights).log_prob(z)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("batch", [(), (0,), (4,), (2, 0, 3)])
def test_a_gaussian_mixture_scores_points_of_any_batch(batch):
    mean, variance, z = torch.randn(3, D), torch.rand(3, D) + 0.1, torch.randn(*batch, D)
    log_weights = torch.tensor([0.2, 0.5, 0.3]).log()
    by_part = Normal(mean, variance.sqrt()).log_prob(z.unsqueeze(-2)).sum(-1)
    expected = (log_weights + by_part).logsumexp(-1)
    torch.testing.assert_close(GaussianMixture(mean, variance, log_weights).log_prob(z), expected)


def test_gaussian_mixture_draws_have_its_moments():
    mean = torch.tensor([[-2.0], [1.0]])
    mixture = GaussianMixture(mean, torch.tensor([[0.25], [1.0]]), torch.tensor([0.25, 0.75]).log())
    draws = mixture.sample((40000,))
    assert draws.shape == (40000, 1)
    average, variance = 0.25 * -2 + 0.75 * 1, 0.25 * 0.25 + 0.75 * 1 + 0.25 * 0.75 * 9
    assert draws.mean().item() == pytest.approx(average, abs=4 * math.sqrt(variance / 40000))
    assert draws.var().item() == pytest.approx(variance, rel=0.05)


def test_diagonal_normal_reads_means_then_clamped_log_variances():
    parameters = torch.tensor([[1.0, -2.0, -9.0, 1.0], [0.0, 0.5, 0.0, 7.0]])
    base = diagonal_normal(parameters)
    torch.testing.assert_close(base.mean, parameters[:, :2])
    expected = torch.tensor([[-6.0, 1.0], [0.0, 2.0]]).exp()
    torch.testing.assert_close(base.variance, expected)
    assert diagonal_normal(parameters.bfloat16()).mean.dtype == torch.float32


def test_standard_normal():
    z = torch.randn(2, S, 5, D)
    expected = -0.5 * z.square().sum(-1) - 0.5 * D * math.log(2 * math.pi)
    torch.testing.assert_close(StandardNormal(D)().log_prob(z), expected)
    assert not StandardNormal(D).state_dict()


@pytest.mark.parametrize(
    ("above", "z", "log_prob"),
    [  # mean = 2 above - 1, log-variance = above; in nats, from the formula of the density
        (0.0, -1.0, -0.5 * math.log(2 * math.pi)),
        (0.0, 1.0, -0.5 * math.log(2 * math.pi) - 2.0),
        (1.0, 1.0, -0.5 * math.log(2 * math.pi) - 0.5),
        (-2.0, -4.0, -0.5 * math.log(2 * math.pi) + 1.0 - 0.5 * math.exp(2.0)),
    ],
)
def test_conditional_reference_values(above, z, log_prob):
    net = nn.Linear(1, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[2.0], [1.0]]))
        net.bias.copy_(torch.tensor([-1.0, 0.0]))
    conditional = GaussianConditional(net, 1)(torch.tensor([[above]]))
    assert conditional.log_prob(torch.tensor([[z]])).item() == pytest.approx(log_prob, abs=1e-6)


@pytest.fixture
def chain():
    return Prior(
        StandardNormal(2),
        GaussianConditional(nn.Linear(2, 6), 3),
        GaussianConditional(nn.Linear(3, 2), 1),
    ).double()


def test_chain_is_the_product_of_its_conditionals(chain):
    zs = [torch.randn(2, S, 5, size).double() for size in (2, 3, 1)]
    assert chain.latent_sizes == (2, 3, 1)
    expected = Normal(0.0, 1.0).log_prob(zs[0]).sum(-1)
    for above, z, part in zip(zs[:-1], zs[1:], chain.conditionals, strict=True):
        mean, log_variance = part.net(above).chunk(2, dim=-1)
        scale = (0.5 * log_variance.clamp(-6, 2)).exp()
        expected = expected + Normal(mean, scale).log_prob(z).sum(-1)
    torch.testing.assert_close(chain().log_prob(zs), expected)


def test_chain_draws_each_level_given_the_one_above(chain):
    with torch.no_grad():
        for part in chain.conditionals:
            part.net.weight[part.n_latent :] = 0
            part.net.bias[part.n_latent :] = -9.0  # clamped: standard deviation exp(-3)
    zs = chain().sample(20000)
    assert [z.shape for z in zs] == [(20000, 2), (20000, 3), (20000, 1)]
    for above, z, part in zip(zs[:-1], zs[1:], chain.conditionals, strict=True):
        residual = z - part.net(above)[:, : part.n_latent]
        assert residual.std().item() == pytest.approx(math.exp(-3), rel=0.05)


def test_a_standard_normal_below_the_top_is_independent_of_it():
    prior = Prior(StandardNormal(2), StandardNormal(3), GaussianConditional(nn.Linear(3, 2), 1))
    zs = [torch.randn(2, S, 5, size) for size in (2, 3, 1)]
    of_last = prior.conditionals[1](zs[1]).log_prob(zs[2])
    expected = sum(Normal(0.0, 1.0).log_prob(z).sum(-1) for z in zs[:2]) + of_last
    torch.testing.assert_close(prior().log_prob(zs), expected)
    drawn = prior().sample(20000)
    assert [z.shape for z in drawn] == [(20000, 2), (20000, 3), (20000, 1)]
    error = 4 / math.sqrt(20000)
    torch.testing.assert_close(drawn[1].T.cov(), torch.eye(3), rtol=0, atol=1.5 * error)
    assert (drawn[0].T @ drawn[1] / 20000).abs().max() < error


def test_a_level_that_stands_in_the_wrong_place_is_refused():
    conditional = GaussianConditional(nn.Linear(2, 4), 2)
    with pytest.raises(ValueError, match="top level of a Prior has no level above .* first"):
        Prior(conditional, conditional)
    with pytest.raises(ValueError, match="VampPrior stands on the top level of a Prior alone"):
        Prior(StandardNormal(2), VampPrior(Encoder(), PseudoInputs(), D))
    lower = Encoder()
    lower.n_above = 2
    with pytest.raises(ValueError, match="top level, but Encoder needs the level above it"):
        VampPrior(lower, PseudoInputs(), D)


def test_numbers_that_do_not_fit_are_named():
    """Broadcasting would hide them: one mean for all dimensions."""
    conditional = GaussianConditional(nn.Linear(3, 2), n_latent=3)
    with pytest.raises(ValueError, match="2 \\* n_latent = 6 numbers .* but it gives .5, 2"):
        conditional(torch.zeros(5, 3))


def test_parts_that_do_not_take_each_other_are_named():
    conditional = GaussianConditional(nn.Linear(3, 4), n_latent=2)
    with pytest.raises(ValueError, match="GaussianConditional failed on .* above, D = 5: if"):
        conditional(torch.zeros(7, 5))

    def encoder(u):
        return lambda: diagonal_normal(u @ torch.zeros(2, 3, 2 * D))

    for size in ((4,), (1, 3, 2)):
        prior = VampPrior(encoder, lambda size=size: torch.zeros(7, *size), D)
        with pytest.raises(ValueError, match=r"failed on its pseudo-inputs, \(7, .* one size"):
            prior()


def test_what_a_network_says_by_itself_is_not_told_as_a_misfit():
    def failing(*_):
        raise RuntimeError("my table is empty")

    for ask in (
        lambda: GaussianConditional(failing, 2)(torch.zeros(1, 3)),
        VampPrior(failing, lambda: torch.zeros(7, 3), D),
    ):
        with pytest.raises(ValueError, match=r"failed on .*: if it takes .*\(my table is empty\)"):
            ask()


@pytest.mark.parametrize(
    ("net", "found"),
    [
        (lambda z: z.mean(0).repeat(1, 1, 2), r"\(3, 5, 4\)"),  # would be shared by all draws
        (lambda z: z.new_zeros(4), r"\(4,\)"),
        (lambda z: z.flatten(0, -2).repeat(1, 2), r"\(30, 4\)"),
        (lambda z: z.sum(), r"\(\)"),
        (lambda z: (z, z), "tuple"),
    ],
)
def test_a_conditional_answers_for_every_latent(net, found):
    z = torch.zeros(2, 3, 5, 2)
    with pytest.raises(ValueError, match=rf"4 numbers .* \(2, 3, 5, 4\), but it gives {found}"):
        GaussianConditional(net, 2)(z)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, NotImplementedError])
def test_what_is_about_no_sizes_is_no_misfit(error):
    def failing(*_):
        raise error("no memory, or no method")

    for ask in (
        lambda: GaussianConditional(failing, 2)(torch.zeros(1, 3)),
        VampPrior(failing, lambda: torch.zeros(7, 3), D),
    ):
        with pytest.raises(error):
            ask()


def test_narrow_gaussians_far_out_lose_nothing_in_float64():
    """A scale of 1e-12 at 100: squares of 1e28 that cancel."""
    mean = torch.tensor([[100.0, 100.0], [100.5, 99.5]], dtype=torch.float64)
    variance, z = torch.full((2, 2), 1e-12, dtype=torch.float64), mean[:1]
    found = GaussianMixture(mean, variance, torch.tensor([0.5, 0.5]).log()).log_prob(z)
    expected = math.log(0.5) - math.log(2 * math.pi * 1e-12)
    torch.testing.assert_close(found, torch.full_like(found, expected), rtol=0, atol=2e-2)
