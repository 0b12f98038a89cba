"""Stacked encoders equal the loop over encoders: values, gradients, statistics, surgery."""

from copy import deepcopy

import pytest
import torch
from scvi.nn import Encoder
from torch import nn

from scmixvi.singlecell._parts.encoders import can_stack, encode_components

N, F, S, D = 11, 7, 3, 2


class Scale(nn.Module):
    """An activation with a parameter, which the stacked path does not know."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return torch.relu(x) * self.factor


ARCHITECTURES = {
    "plain": {"use_batch_norm": False},
    "batch norm": {},
    "layer norm": {"use_batch_norm": False, "use_layer_norm": True},
    "both norms, three layers": {"n_layers": 3, "use_layer_norm": True},
    "covariates everywhere": {"n_layers": 2, "n_cat_list": [2, 1, 3]},
    "covariates in the first layer": {
        "n_layers": 2,
        "n_cat_list": [2, 1, 3],
        "inject_covariates": False,
    },
    "no bias": {"bias": False, "n_layers": 2},
    "tanh": {"activation_fn": nn.Tanh, "n_layers": 2},
    "softplus variance": {"var_activation": nn.functional.softplus},
    "unknown layer": {"activation_fn": Scale},
}


def make(name):
    torch.manual_seed(0)
    arguments = {"n_hidden": 5, "dropout_rate": 0.0} | ARCHITECTURES[name]
    return [Encoder(F, D, **arguments).double() for _ in range(S)]


def encoded(*args):
    loc, scale, hidden = encode_components(*args)
    return loc, scale, hidden()


def inputs():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, F, generator=generator, dtype=torch.float64)
    cats = [torch.randint(0, k, (N, 1), generator=generator) for k in (2, 1, 3)]
    return x, cats


def looped(encoders, x, cats):
    rows = []
    for encoder in encoders:
        hidden = encoder.encoder(x, *cats)
        variance = encoder.var_activation(encoder.var_encoder(hidden)) + encoder.var_eps
        rows.append((encoder.mean_encoder(hidden), variance.sqrt(), hidden))
    return tuple(torch.stack(part, dim=1) for part in zip(*rows, strict=True))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equals_the_loop(name, training):
    stacked = make(name)
    assert can_stack(stacked) == (name != "unknown layer")
    apart = deepcopy(stacked)
    x, cats = inputs()
    for encoder in (*stacked, *apart):
        encoder.train(training)
    found, expected = encoded(stacked, x, *cats), looped(apart, x, cats)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    (found[0].sum() + found[1].square().sum()).backward()
    (expected[0].sum() + expected[1].square().sum()).backward()
    for a, b in zip(stacked, apart, strict=True):
        for (key, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, msg=key)
        for (key, p), q in zip(a.named_buffers(), b.buffers(), strict=True):
            torch.testing.assert_close(p, q, msg=key)


def test_frozen_statistics_and_hooks_are_respected():
    """What scArches sets after construction: momentum 0, and hooks on first-layer weights."""
    encoders = make("covariates everywhere")
    x, cats = inputs()
    for encoder in encoders:
        encoder.train()
        encoder.encoder.set_online_update_hooks()
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.momentum = 0
    before = [e.encoder.fc_layers[0][1].running_mean.clone() for e in encoders]
    encode_components(encoders, x, *cats)[0].square().sum().backward()
    for encoder, mean in zip(encoders, before, strict=True):
        torch.testing.assert_close(encoder.encoder.fc_layers[0][1].running_mean, mean)
        gradient = encoder.encoder.fc_layers[0][0].weight.grad
        assert not gradient[:, :F].any(), "expression weights are frozen"
        assert gradient[:, F:].any(), "covariate weights are not"


@pytest.mark.parametrize("n_components", [1, S])
def test_hooks_of_layers_are_called(n_components):
    encoders, (x, cats) = make("plain")[:n_components], inputs()
    expected = encoded(encoders, x, *cats)
    heard = []
    for encoder in encoders:
        layer = encoder.encoder.fc_layers[0][0]
        layer.register_forward_hook(lambda *_: heard.append(1))
    found = encoded(encoders, x, *cats)
    assert len(heard) == n_components
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_components_drop_units_independently():
    torch.manual_seed(0)
    encoders = [Encoder(F, D, n_hidden=400, dropout_rate=0.5, use_batch_norm=False)]
    encoders = [encoders[0], deepcopy(encoders[0])]
    hidden = encoded(encoders, torch.ones(1, F))[2]
    alive = hidden != 0
    both = (alive[0, 0] & alive[0, 1]).sum() / alive[0, 0].sum()
    assert 0.3 < both < 0.7, "the second mask is no copy of the first"


def test_a_dropout_layer_of_another_class_is_called():
    class KeepAll(nn.Dropout):
        def forward(self, hidden):
            return hidden

    encoders, (x, cats) = make("plain"), inputs()
    expected = encoded(encoders, x, *cats)[2]
    for encoder in encoders:
        for block in encoder.encoder.fc_layers:
            block.append(KeepAll(0.5))
    assert torch.equal(encoded(encoders, x, *cats)[2], expected)


def test_half_precision_ends_in_float32():
    encoders = [Encoder(F, D, n_hidden=5) for _ in range(S)]
    with torch.autocast("cpu", torch.bfloat16):
        loc, scale, _ = encode_components(encoders, torch.randn(N, F))
    assert loc.dtype == scale.dtype == torch.float32


def test_missing_covariates_are_named():
    with pytest.raises(ValueError, match="expect 3 categorical covariates, got 1"):
        encode_components(make("covariates everywhere"), *inputs()[:1], inputs()[1][0])
