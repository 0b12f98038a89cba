"""Likelihoods and decoders that do not look at the image."""

import itertools

import pytest
import tiny_images
import torch
from torch import nn
from torch.distributions import Bernoulli

from scmixvi.image.decoders import (
    Decoder,
    DiscretizedLogisticMixture,
    bernoulli,
    mlp_net,
    transposed_conv_net,
)


def logistic_mixture(n_channels, n_levels, batch=(), area=(1, 1), n_mixtures=3, scale=1.0):
    n_parameters = DiscretizedLogisticMixture.n_parameters(n_channels, n_mixtures)
    parameters = scale * torch.randn(*batch, n_parameters, *area).double()
    return DiscretizedLogisticMixture(parameters, n_channels, n_levels)


def test_bernoulli_against_torch():
    logits, x = torch.randn(2, 3, 5, 1, 4, 3), torch.rand(5, 1, 4, 3).round()
    expected = Bernoulli(logits=logits).log_prob(x.expand_as(logits)).sum((-3, -2, -1))
    torch.testing.assert_close(bernoulli(logits).log_prob(x), expected)


def test_gradients_of_bernoulli_pixels_are_those_of_finite_differences():
    """With respect to the logits of every draw, and to images that all the draws share."""
    logits = torch.randn(2, 3, 5, 1, 1, 7, dtype=torch.float64, requires_grad=True)
    x = torch.rand(5, 1, 1, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *given: bernoulli(given[0]).log_prob(given[1]), (logits, x), check_forward_ad=True
    )


@pytest.mark.parametrize(("n_channels", "n_levels"), [(1, 256), (1, 2), (2, 5), (3, 3)])
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_probabilities_of_all_levels_sum_to_1(n_channels, n_levels, scale):
    values = [level / (n_levels - 1) for level in range(n_levels)]
    images = tiny_images.all_images((n_channels, 1, 1), values)
    log_prob = logistic_mixture(n_channels, n_levels, scale=scale).log_prob(images)
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_logistic_mixture_against_plain_arithmetic():
    """Two channels, one member: sigmoids written out, the second mean moved by the first value."""
    parameters = torch.tensor([0.3, 0.2, -0.4, -0.5, 0.1, 0.7], dtype=torch.float64)
    distribution = DiscretizedLogisticMixture(parameters.reshape(6, 1, 1), 2, n_levels=5)
    means, scales, slope = parameters[1:3], parameters[3:5].exp(), parameters[5].tanh()
    values = torch.linspace(-1, 1, 5, dtype=torch.float64)
    for first, second in itertools.product(range(5), range(5)):
        expected = 1.0
        for c, level in enumerate((first, second)):
            mean = means[c] + (slope * values[first] if c else 0.0)
            above = torch.sigmoid((values[level] + 0.25 - mean) / scales[c]) if level < 4 else 1.0
            below = torch.sigmoid((values[level] - 0.25 - mean) / scales[c]) if level > 0 else 0.0
            expected = expected * (above - below)
        x = torch.tensor([first / 4, second / 4]).double().reshape(2, 1, 1)
        assert distribution.log_prob(x).exp().item() == pytest.approx(expected.item(), rel=1e-9)


def test_every_pair_of_four_channels_has_a_coefficient_of_its_own():
    raw, values = torch.randn(1 + 4 + 4 + 6), torch.tensor([0.1, -0.3, 0.7, 0.2])
    distribution = DiscretizedLogisticMixture(raw.reshape(15, 1, 1), 4)
    found = distribution._means_given(values.reshape(1, 4, 1, 1))
    expected = raw[4] + (raw[12:].tanh() * values[:3]).sum()
    torch.testing.assert_close(found[0, 3, 0, 0], expected)


def test_pixels_are_independent_given_the_parameters():
    distribution = logistic_mixture(3, 256, (2,), (3, 2))
    x = (torch.randint(0, 256, (2, 3, 3, 2)) / 255).double()
    total = torch.zeros(2).double()
    for row, column in itertools.product(range(3), range(2)):
        cut = slice(row, row + 1), slice(column, column + 1)
        part = DiscretizedLogisticMixture.__new__(DiscretizedLogisticMixture)
        part.__dict__ = dict(distribution.__dict__)
        for name in ("log_weights", "means", "log_scales", "coefficients"):
            setattr(part, name, getattr(distribution, name)[..., *cut])
        total = total + part.log_prob(x[..., *cut])
    torch.testing.assert_close(distribution.log_prob(x), total)


@pytest.mark.parametrize(("n_channels", "n_levels"), [(1, 4), (2, 3)])
def test_draws_follow_the_probabilities(n_channels, n_levels):
    distribution = logistic_mixture(n_channels, n_levels)
    n_draws = 20000
    draws = distribution.sample((n_draws,))
    values = [level / (n_levels - 1) for level in range(n_levels)]
    images = tiny_images.all_images((n_channels, 1, 1), values)
    matches = (draws.unsqueeze(1) - images).abs().flatten(2).amax(-1) < 1e-9
    assert matches.sum(1).eq(1).all(), "every draw is one of the levels"
    expected = distribution.log_prob(images).exp()
    error = (expected * (1 - expected) / n_draws).sqrt()
    assert ((matches.double().mean(0) - expected).abs() <= 4 * error + 1e-9).all()


def test_far_levels_and_tiny_scales_stay_finite():
    parameters = torch.tensor([0.0, 5.0, -20.0]).reshape(3, 1, 1).requires_grad_()
    distribution = DiscretizedLogisticMixture(parameters, 1)
    log_prob = distribution.log_prob(torch.tensor([0.0, 0.5, 1.0]).reshape(3, 1, 1, 1))
    log_prob.sum().backward()
    assert torch.isfinite(log_prob).all()
    assert torch.isfinite(parameters.grad).all()


@pytest.mark.parametrize("log_scale", [-200.0, 20.0, 90.0, 105.0, 1e4])
def test_any_log_scale_gives_a_distribution_and_a_gradient(log_scale):
    parameters = torch.zeros(3, 1, 1)
    parameters[2] = log_scale
    parameters.requires_grad_()
    levels = torch.arange(256.0).reshape(256, 1, 1, 1) / 255
    log_prob = DiscretizedLogisticMixture(parameters, 1).log_prob(levels)
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-5)
    log_prob.sum().backward()
    assert log_prob.isfinite().all()
    assert parameters.grad.isfinite().all()


@pytest.mark.parametrize(("log_scale", "expected"), [(6.0, 6.0), (9.0, 7.0)])
def test_wide_members_stay_wide(log_scale, expected):
    parameters = torch.tensor([0.0, 0.0, log_scale]).reshape(3, 1, 1)
    assert DiscretizedLogisticMixture(parameters, 1).log_scales.item() == expected


def test_shape_of_draws_and_half_precision():
    distribution = logistic_mixture(3, 256, (2, 5), (4, 3))
    assert distribution.sample((7,)).shape == (7, 2, 5, 3, 4, 3)
    half = torch.randn(30, 4, 3).bfloat16()
    assert DiscretizedLogisticMixture(half, 3).log_prob(torch.zeros(3, 4, 3)).dtype == torch.float32
    assert bernoulli(half).log_prob(torch.zeros(30, 4, 3)).dtype == torch.float32


@pytest.mark.parametrize("batch", [(), (0,), (5,), (2, 3, 5)])
def test_decoder_takes_latents_of_any_batch(batch):
    decoder = Decoder(mlp_net(6, [7], (1, 4, 3)), bernoulli, [4, 2], (1, 4, 3))
    zs = torch.randn(*batch, 4), torch.randn(*batch, 2)
    distribution = decoder(*zs)
    assert distribution.batch_shape == batch
    assert distribution.event_shape == (1, 4, 3)
    logits = decoder.net(torch.cat(zs, -1).reshape(-1, 6)).reshape(*batch, 1, 4, 3)
    torch.testing.assert_close(distribution.mean, logits.sigmoid())


def test_transposed_convolutions():
    net = transposed_conv_net(3, (4, 2), (10, 8, 12))
    assert net(torch.randn(5, 3)).shape == (5, 10, 8, 12)
    n_weights = sum(p.numel() for p in net.parameters() if p.dim() == 4)
    assert n_weights == 4 * 2 * 16 + 2 * 10 * 16
    assert isinstance(net[-1], nn.ConvTranspose2d)
    with pytest.raises(ValueError, match="divisible by 4"):
        transposed_conv_net(3, (4, 2), (10, 8, 10))


def test_binary_pixels_are_one_graph_and_differentiated_twice():
    logits, x = torch.randn(4, 1, 3, 2).double(), torch.rand(4, 1, 3, 2).double().round()

    def log_prob(logits):
        return bernoulli(logits).log_prob(x).sum()

    torch.compiler.reset()
    compiled = torch.compile(log_prob, backend="eager", fullgraph=True)
    given = logits.clone().requires_grad_()
    (slope,) = torch.autograd.grad(compiled(given), given)
    torch.testing.assert_close(slope, x - logits.sigmoid())
    curvature = torch.func.jvp(torch.func.jacfwd(log_prob), (logits,), (torch.ones_like(x),))[1]
    torch.testing.assert_close(curvature, -logits.sigmoid() * (1 - logits.sigmoid()))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: mlp_net(2, [], (1, 4, 4)),
            "n_hidden of mlp_net must be 1 or more whole .* \\[\\]",
        ),
        (lambda: mlp_net(2, iter([3]), (1, 4, 4)), "n_hidden of mlp_net must be 1 or more whole"),
        (
            lambda: transposed_conv_net(2, [], (1, 4, 4)),
            "channels of transposed_conv_net must be 1",
        ),
        (lambda: transposed_conv_net(2, [3], (1, 4, 4), 3), "must be an even number .* it is 3"),
        (lambda: transposed_conv_net(2, [3], (1, 4, 4), 0), "must be an even number .* it is 0"),
        (lambda: transposed_conv_net(2, [3], (1, 4, 4), 2.0), "an even number .* it is 2.0"),
        (lambda: logistic_mixture(1, 1), "n_levels .* must be a whole number of at least 2"),
        (lambda: logistic_mixture(1, 2.5), "n_levels .* must be a whole number of at least 2"),
    ],
)
def test_doors(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("kernel_size", [2, 4, 6])
def test_every_even_kernel_doubles_the_size(kernel_size):
    assert transposed_conv_net(2, [3, 2], (1, 8, 4), kernel_size)(torch.zeros(5, 2)).shape[2:] == (
        8,
        4,
    )


def test_gradients_of_single_images():
    """`torch.func` differentiates and batches the likelihood of binary pixels."""
    logits, x = torch.randn(4, 1, 3, 2).double(), torch.rand(4, 1, 3, 2).double().round()

    def log_prob(logits, x):
        return bernoulli(logits).log_prob(x)

    expected = x - logits.sigmoid()
    torch.testing.assert_close(torch.func.grad(log_prob)(logits[0], x[0]), expected[0])
    found = torch.func.vmap(torch.func.grad(log_prob))(logits, x)
    torch.testing.assert_close(found, expected)
