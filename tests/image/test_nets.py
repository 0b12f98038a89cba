"""Networks of S components evaluated together equal S networks evaluated one by one."""

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal

from scmixvi.image.nets import ConvFeatures, StackedLinear, mlp
from scmixvi.image.posteriors import LowerEncoder, TopEncoder

S, B = 3, 5


def gated(values):
    halves = values.chunk(2, dim=1)
    return halves[0] * torch.sigmoid(halves[1])


@pytest.mark.parametrize("shared", [True, False])
def test_stacked_linear_is_one_product_a_component(shared):
    layer = StackedLinear(S, 7, 2)
    inputs = torch.randn(B, 7) if shared else torch.randn(S, B, 7)
    for s, out in enumerate(layer(inputs)):
        own = inputs if shared else inputs[s]
        torch.testing.assert_close(out, own @ layer.weight[s] + layer.bias[s])


@pytest.mark.parametrize("gates", [True, False])
def test_stacked_mlp_is_one_network_a_component(gates):
    net = mlp([7, 4, 2], gates, n_components=S)
    inputs = torch.randn(B, 7)
    activation = gated if gates else torch.relu
    for s, out in enumerate(net(inputs)):
        hidden = inputs
        for layer in (net[0], net[2]):
            hidden = activation(hidden @ layer.weight[s] + layer.bias[s])
        torch.testing.assert_close(out, hidden)


@pytest.mark.parametrize("n_components", [1, S])
@pytest.mark.parametrize("n_channels", [1, 2])
def test_stacked_convolutions_are_one_network_a_component(n_components, n_channels):
    net = ConvFeatures(n_components, (n_channels, 7, 5), (2, 3, 4), (7, 3, 5), (1, 2, 1))
    x = torch.rand(B, n_channels, 7, 5)
    features = net(x)
    assert features.shape == (n_components, B, net.n_features)
    for s, out in enumerate(features):
        hidden = x
        for layer in net.layers[::2]:
            padding = layer.weight.shape[-1] // 2
            weights = layer.weight[s], layer.bias[s]
            hidden = gated(F.conv2d(hidden, *weights, layer.stride, padding))
        torch.testing.assert_close(out, hidden.flatten(1))


def test_top_encoder_clamps_log_variances():
    encoder = TopEncoder(torch.nn.Identity(), 4, 2, S)
    features = 100 * torch.randn(S, B, 4)
    base = encoder(features)()
    mean, log_variance = encoder.head(features).chunk(2, dim=-1)
    torch.testing.assert_close(base.mean, mean)
    torch.testing.assert_close(base.variance, log_variance.clamp(-6, 2).exp())
    assert log_variance.abs().max() > 6


def test_lower_encoder_scores_every_sample_under_every_component():
    """Entry l, s, j, b is component j's encoder, given what component s drew: pair by pair."""
    n_samples, n_features, n_above, n_latent = 2, 7, 2, 4
    encoder = LowerEncoder(mlp([6, 7], n_components=S), n_features, n_above, n_latent, 5, S)
    x, above = torch.randn(B, 6), torch.randn(n_samples, S, B, n_above)
    base = encoder(x)(torch.randn(n_samples, S, B, 3), above)
    assert base.batch_shape == (n_samples, S, S, B)
    for j in range(S):

        def through(layer, inputs, j=j):
            return inputs @ layer.weight[j] + layer.bias[j]

        from_x = gated(through(encoder.features[0], x))
        for s in range(S):
            for sample in range(n_samples):
                from_z = gated(through(encoder.above[0], above[sample, s]))
                both = torch.cat([from_x, from_z], dim=1)
                parameters = through(encoder.head, gated(through(encoder.joint, both)))
                mean, log_variance = parameters.chunk(2, dim=1)
                scale = (0.5 * log_variance.clamp(-6, 2)).exp()
                torch.testing.assert_close(base.mean[sample, s, j], mean)
                z = torch.randn(B, n_latent)
                expected = Normal(mean, scale).log_prob(z).sum(-1)
                torch.testing.assert_close(base.log_prob(z)[sample, s, j], expected)
