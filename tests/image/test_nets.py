"""Networks of S components evaluated together equal S networks evaluated one by one."""

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal

import laws
from scmixvi.image.flows import InverseAutoregressiveFlow
from scmixvi.image.nets import (
    ComponentOffsets,
    ComponentSequential,
    ConvFeatures,
    PerComponent,
    StackedLinear,
    TrunkConvFeatures,
    mlp,
)
from scmixvi.image.posteriors import AmortizedPosterior, LowerEncoder, TopEncoder

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


def test_components_of_a_trunk_start_half_a_unit_apart():
    assert ComponentOffsets(100, 100).offsets.std().item() == pytest.approx(0.5, abs=0.02)


def test_top_encoder_clamps_log_variances():
    encoder = TopEncoder(torch.nn.Identity(), 4, 2, S)
    features = 100 * torch.randn(B, 4)
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


class Own(PerComponent):
    """A user's layer: each component adds a number of its own."""

    def __init__(self, n_components):
        super().__init__()
        self.shifts = torch.nn.Parameter(torch.randn(n_components, 1, 1))

    def forward(self, inputs, components=None):
        return inputs + (self.shifts if components is None else self.shifts[components])


class NotSaid(torch.nn.Module):
    """The same, but it does not say that it takes components."""

    def __init__(self, n_components):
        super().__init__()
        self.own = Own(n_components)

    def forward(self, inputs):
        return self.own(inputs)


@pytest.mark.parametrize("kind", [ConvFeatures, TrunkConvFeatures, Own])
@pytest.mark.parametrize("n_heads", [None, 1])
def test_layers_of_any_kind_run_some_components_alone(kind, n_heads):
    x, drawn = torch.rand(B, 1, 4, 4), torch.tensor([2, 0])
    if kind is Own:
        parts, n_features = [torch.nn.Flatten(), Own(S)], 16
    else:
        parts = [kind(S, (1, 4, 4), (3, 2), (3, 3), (1, 2))]
        n_features = parts[0].n_features
    encoder = TopEncoder(ComponentSequential(*parts), n_features, 2, S, n_heads)
    torch.testing.assert_close(encoder(x, drawn)().mean, encoder(x)().mean[drawn])


@pytest.mark.parametrize("n_heads", [None, 1])
@pytest.mark.parametrize("behind", [[], [StackedLinear(S, 16, 16)]])
def test_a_layer_that_would_run_all_components_is_refused_where_some_are_asked_for(n_heads, behind):
    features = ComponentSequential(torch.nn.Flatten(), NotSaid(S), *behind)
    encoder = TopEncoder(features, 16, 2, S, n_heads)
    assert encoder(torch.rand(B, 1, 4, 4))().batch_shape == (S, B)
    with pytest.raises(ValueError, match="features of 3 components came where 2 are encoded"):
        encoder(torch.rand(B, 1, 4, 4), torch.tensor([2, 0]))


class Alone(torch.nn.Module):
    """Features that know of no components: `[B, n]` for all, or `[S, B, n]`."""

    def __init__(self, *components):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(*components, 16, 16))

    def forward(self, x):
        return x.flatten(1) @ self.weight


@pytest.mark.parametrize("n_heads", [None, 1])
@pytest.mark.parametrize("features", [Alone(), Alone(S), torch.nn.Sequential(Alone(S))], ids=str)
def test_features_of_ones_own_need_not_know_of_components(features, n_heads):
    encoder = TopEncoder(features, 16, 2, S, n_heads)
    x, drawn = torch.rand(B, 1, 4, 4), torch.tensor([2, 0])
    torch.testing.assert_close(encoder(x, drawn)().mean, encoder(x)().mean[drawn])


def posterior_of(n_levels=1, n_components=S, n_features_of=S, **settings):
    levels = [TopEncoder(mlp([16, 7], n_components=n_features_of), 7, 2, S)]
    levels += [LowerEncoder(mlp([16, 7], n_components=S), 7, 2, 4, 5, S)]
    return AmortizedPosterior(levels[:n_levels], n_components, (1, 4, 4), **settings)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: posterior_of(0), "at least one level"),
        (
            lambda: AmortizedPosterior([TopEncoder(mlp([16, 7]), 7, 2, S)] * 2, S, (1, 4, 4)),
            "n_above of a TopEncoder is 0, but the level above it has D = 2",
        ),
        (lambda: posterior_of(n_components=4), "is 4, but its TopEncoder is made for 3"),
        (lambda: posterior_of(2, flows=[None]), "one a level.* 2, but there are 1"),
        (lambda: posterior_of(flows=[]), "one a level.* 1, but there are 0"),
        (lambda: posterior_of(flows=[InverseAutoregressiveFlow(2), None]), "but there are 2"),
        (lambda: posterior_of(log_weights=torch.zeros(1)), r"shape \[S\] = \(3,\)"),
        (
            lambda: posterior_of(n_features_of=2)(torch.rand(B, 16)),
            "features of 2 components came where 3 are encoded",
        ),
    ],
)
def test_counts_that_do_not_fit_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


class SharedFeatures(PerComponent):
    """Features of the images that all components share, of the given shape."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.layer = shape, torch.nn.Linear(6, 7)

    def forward(self, x, components=None):
        return self.layer(x.flatten(1)).reshape(*self.shape, 7)


@pytest.mark.parametrize("n_heads", [None, 1])
@pytest.mark.parametrize("shape", [(B,), (1, B)])
def test_a_lower_level_may_be_the_same_for_all_components(shape, n_heads):
    features = torch.nn.Sequential(torch.nn.Flatten(), mlp([6, 7], n_components=S))
    lower = LowerEncoder(SharedFeatures(shape), 7, 2, 4, 5, S, n_heads)
    posterior = AmortizedPosterior([TopEncoder(features, 7, 2, S), lower], S, (1, 3, 2))
    posterior, x = posterior.double(), torch.rand(B, 1, 3, 2).double()
    encoded = posterior(x)
    laws.assert_draw_law(encoded, 2)
    above, z = torch.randn(2, S, B, 2).double(), torch.randn(2, S, B, 4).double()
    lower_scores = encoded.stages[1].score([above], z)
    assert lower_scores.shape == (2, S, S, B)
    assert torch.equal(lower_scores[:, :, 0], lower_scores[:, :, 1]) == (n_heads == 1)
    some = encoded.sample_stratified(2, torch.tensor([2, 0]))
    assert [z.shape for z in some[0]] == [(2, 2, B, 2), (2, 2, B, 4)]


@pytest.mark.parametrize("shape", [(B,), (1, B)])
def test_components_that_share_everything_are_still_as_many(shape):
    top = TopEncoder(SharedFeatures(shape), 7, 2, S, n_heads=1)
    assert top(torch.rand(B, 1, 3, 2))().batch_shape == (S, B)


@pytest.mark.parametrize("n_heads", [None, 1])
@pytest.mark.parametrize("shape", [(), (B, 1, 1), (1, 1)])
def test_features_of_another_shape_are_named(shape, n_heads):
    class Wrong(SharedFeatures):
        def forward(self, x, components=None):
            return torch.zeros(*shape, 7)

    top = TopEncoder(Wrong(shape), 7, 2, S, n_heads)
    with pytest.raises(ValueError, match="features of a TopEncoder must be .* with B = 5 images"):
        top(torch.rand(B, 1, 3, 2))
