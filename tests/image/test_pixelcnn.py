"""PixelCNN: causal, normalised, and drawn from as it is scored."""

import itertools
from functools import partial

import pytest
import tiny_images
import torch

from scmixvi.image.decoders import DiscretizedLogisticMixture, bernoulli
from scmixvi.image.pixelcnn import AutoregressiveImage, PixelCNN, PixelCNNDecoder, _Cache


def network(image_size, n_parameters, n_layers=3, n_context=2):
    net = PixelCNN(image_size, n_context, n_parameters, n_features=5, n_layers=n_layers)
    tiny_images.spread_batch_norms(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)
    return net.double().eval()


@pytest.mark.parametrize("n_layers", [1, 2, 4])
def test_changing_a_pixel_changes_no_logit_up_to_it(n_layers):
    height, width = 4, 5
    net = network((1, height, width), 1, n_layers)
    x, context = torch.rand(1, 1, height, width).double(), torch.randn(1, 2, height, width).double()
    before = net(x, context).flatten()
    changes = torch.zeros(20, 20, dtype=torch.bool)
    for pixel in range(20):
        moved = x.clone()
        moved.flatten()[pixel] += 1
        changes[pixel] = net(moved, context).flatten() != before
    assert not changes.tril().any()
    assert changes[0].any()
    if n_layers == 4:
        assert changes[0, 1:].all(), "the first pixel is seen by all of this small image"


def test_layer_equals_a_masked_3x3_convolution():
    net = network((1, 4, 5), 1)
    maps = torch.randn(3, 5, 4, 5).double()
    layer = net.layers[1]
    kernel = torch.zeros(5, 5, 3, 3).double()
    kernel[:, :, :2] = layer.kernel
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0]])
    assert ((kernel != 0) == mask.bool()).all()
    plain = torch.conv2d(maps, kernel, padding=1)
    torch.testing.assert_close(layer(maps), torch.relu(layer.norm(plain)))


def test_first_layer_does_not_see_the_pixel_itself():
    kernel = network((1, 4, 5), 1).layers[0].kernel
    seen = torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
    assert ((kernel != 0) == seen).all()


def test_training_uses_the_batch_and_evaluation_the_running_statistics():
    net = network((1, 4, 5), 1)
    layer, maps = net.layers[1], torch.randn(3, 5, 4, 5).double()
    folded = layer(maps)
    layer.train()
    batch = layer(maps)
    plain = torch.conv2d(torch.nn.functional.pad(maps, (0, 0, 1, 0)), layer.kernel, padding=(0, 1))
    centred = plain - plain.mean((0, 2, 3), keepdim=True)
    scaled = centred / (plain.var((0, 2, 3), correction=0, keepdim=True) + layer.norm.eps).sqrt()
    weight, bias = (p[:, None, None] for p in (layer.norm.weight, layer.norm.bias))
    torch.testing.assert_close(batch, torch.relu(scaled * weight + bias))
    assert (folded - batch).abs().max() > 0.01


def test_all_images_sum_to_1():
    net = network((1, 2, 2), 1)
    context = torch.randn(3, 1, 2, 2, 2).double()
    log_prob = AutoregressiveImage(net, context, bernoulli).log_prob(
        tiny_images.all_images((1, 2, 2))
    )
    assert log_prob.shape == (3, 16)
    torch.testing.assert_close(log_prob.exp().sum(1), torch.ones(3).double())


def test_all_images_of_several_channels_and_levels_sum_to_1():
    likelihood = partial(DiscretizedLogisticMixture, n_channels=2, n_levels=3)
    net = network((2, 1, 2), DiscretizedLogisticMixture.n_parameters(2, 3))
    images = tiny_images.all_images((2, 1, 2), (0.0, 0.5, 1.0))
    context = torch.randn(1, 2, 1, 2).double()
    log_prob = AutoregressiveImage(net, context, likelihood).log_prob(images)
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(("n_channels", "n_parameters"), [(1, 1), (3, 30)])
def test_cached_parameters_equal_those_of_the_whole_image(n_channels, n_parameters):
    image_size = (n_channels, 5, 4)
    net = network(image_size, n_parameters)
    x, context = torch.rand(7, *image_size).double(), torch.randn(7, 2, 5, 4).double()
    expected = net(x, context)
    with torch.no_grad():
        cache = _Cache(net, context)
        for row, column in itertools.product(range(5), range(4)):
            parameters = cache.parameters(row, column)
            torch.testing.assert_close(parameters[..., 0, 0], expected[..., row, column])
            cache.set_pixel(row, column, x[:, :, row : row + 1, column : column + 1])
    torch.testing.assert_close(cache.image, x)


@pytest.mark.parametrize("kind", ["bernoulli", "logistic"])
def test_draws_follow_the_probabilities(kind):
    n_draws = 20000
    if kind == "bernoulli":
        size, values, likelihood, n_parameters = (1, 2, 2), (0.0, 1.0), bernoulli, 1
    else:
        size, values, n_parameters = (1, 1, 2), (0.0, 0.5, 1.0), 6
        likelihood = partial(DiscretizedLogisticMixture, n_channels=1, n_levels=3)
    net, images = network(size, n_parameters), tiny_images.all_images(size, values)
    distribution = AutoregressiveImage(net, torch.randn(2, *size[1:]).double(), likelihood)
    draws = distribution.sample((n_draws,))
    frequency = (draws.unsqueeze(1) == images).flatten(2).all(-1).double().mean(0)
    expected = distribution.log_prob(images).exp().detach()
    error = (expected * (1 - expected) / n_draws).sqrt()
    assert frequency.sum().item() == 1
    assert ((frequency - expected).abs() <= 4 * error + 1e-9).all()


def test_draws_in_mixed_precision_are_on_the_levels():
    """In bf16 most of 256 levels would be rounded to others."""
    model = tiny_images.recipe("cifar_vanilla", 2).float()
    levels = torch.arange(256) / 255
    with torch.autocast("cpu", torch.bfloat16):
        images = model.sample(60)
    assert images.dtype == torch.float32
    level = (255 * images).round()
    torch.testing.assert_close(images, levels[level.long()], rtol=0, atol=1e-6)
    assert len(level.unique()) > 100


def test_decoder_batches_and_shares_the_image():
    decoder = PixelCNNDecoder([3, 2], (1, 4, 3), bernoulli, 1, 4, 2).eval()
    zs, x = (torch.randn(2, 3, 5, 3), torch.randn(2, 3, 5, 2)), torch.rand(5, 1, 4, 3).round()
    distribution = decoder(*zs)
    log_prob = distribution.log_prob(x)
    assert log_prob.shape == (2, 3, 5)
    one = decoder(zs[0][1, 2, 4], zs[1][1, 2, 4]).log_prob(x[4])
    torch.testing.assert_close(one, log_prob[1, 2, 4])
    assert distribution.sample().shape == (2, 3, 5, 1, 4, 3)
    with pytest.raises(NotImplementedError):
        _ = distribution.mean


@pytest.mark.parametrize("batch", [(0,), (2, 0)])
def test_no_images_have_no_densities_and_no_draws(batch):
    decoder = PixelCNNDecoder([3], (1, 4, 3), bernoulli, 1, 4, 2).eval()
    distribution = decoder(torch.randn(*batch, 3))
    assert distribution.log_prob(torch.zeros(0, 1, 4, 3)).shape == batch
    assert distribution.sample().shape == (*batch, 1, 4, 3)


@pytest.mark.parametrize(
    ("n_channels", "n_parameters", "levels", "message"),
    [
        (
            1,
            3,
            False,
            r"n_parameters = 3 a pixel of shape \(3, 1, 1\), .* \(C, 1, 1\) = \(1, 1, 1\)",
        ),
        (
            3,
            1,
            False,
            r"n_parameters = 1 a pixel of shape \(1, 1, 1\), .* \(C, 1, 1\) = \(3, 1, 1\)",
        ),
        (1, 5, True, "failed on n_parameters = 5 a pixel: if it takes another number, pass that"),
    ],
)
def test_parameters_that_do_not_fit_the_likelihood_are_named(
    n_channels, n_parameters, levels, message
):
    likelihood = partial(DiscretizedLogisticMixture, n_channels=n_channels) if levels else bernoulli
    model = tiny_images.recipe(
        "vanilla",
        image_size=(n_channels, 2, 2),
        likelihood=likelihood,
        n_parameters=n_parameters,
    )
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(2, n_channels, 2, 2).double())
