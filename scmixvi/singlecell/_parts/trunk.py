"""One encoder for all components: a vector of its own is all that tells a component apart.

The trunk is a plain :class:`scvi.nn.Encoder`. Its last hidden layer also sees a one-hot code of
the component, whose weights are one vector a component, e_s:

    hidden_s = dropout(activation(norm(W h + b + e_s)))

W h + b, and every layer before, is computed once for all components. Heads are shared.
"""

from collections.abc import Callable

import torch
from scvi.nn import Encoder
from torch import Tensor, nn

from scmixvi.core.precision import at_least_float32
from scmixvi.singlecell._loops.dropout import kept_units
from scmixvi.singlecell._loops.sparse import linear
from scmixvi.singlecell._parts.encoders import has_hooks, one_hot_covariates, with_covariates


def initial_offsets(encoder: Encoder, n_components: int, spread: float = 1.0) -> Tensor:
    """Random vectors e_s, `[S, n_hidden]`: as far apart as the layer's answers to unit noise.

    Weights of a one-hot input drawn like those of the other inputs would be too small to make
    components differ: there is one of it and hundreds of genes.

    Parameters
    ----------
    encoder
        The trunk.
    n_components
        S.
    spread
        Standard deviation of e_s, in units of the norm of each hidden unit's weights.
    """
    weight = _last_layer(encoder)[0].weight.detach()
    return spread * weight.norm(dim=1) * torch.randn(n_components, len(weight)).to(weight)


def encode_trunk(
    encoder: Encoder, offsets: Tensor, x: Tensor, *cat_list: Tensor, drawn: Tensor | None = None
) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
    """Encode a batch with S components that share a trunk, or with the drawn ones alone.

    Parameters
    ----------
    encoder
        The trunk.
    offsets
        e_s, `[S, n_hidden]`.
    x
        What it encodes, `[n, F]`.
    cat_list
        Categorical covariates, `[n, 1]` each.
    drawn
        `[A]`, components; None is all S.

    Returns
    -------
    loc, scale: means and standard deviations, `[n, A, D]`, float32 or wider.
    hidden: a function that gives the last hidden layer, `[n, A, n_hidden]`.
    """
    shared = _shared_part(encoder.encoder, x, cat_list)
    layers = [layer for layer in list(_last_layer(encoder))[1:] if layer is not None]
    if layers and isinstance(layers[0], nn.BatchNorm1d):
        shared, offsets = _batch_norm_of_sums(layers.pop(0), shared, offsets)
    if drawn is not None:
        offsets = offsets[drawn]
    hidden, kept = shared.unsqueeze(1) + offsets, None
    for layer in layers:
        if type(layer) is nn.Dropout:  # the last one of scvi-tools' layers
            kept = _dropout_a_cell(layer, hidden)
        elif type(layer) is nn.ReLU and not has_hooks([layer]):
            hidden = hidden.relu_()  # nothing else needs the sum
        else:
            hidden = layer(hidden)
    loc, raw_variance = _heads(encoder, hidden, kept)
    variance = encoder.var_activation(raw_variance) + encoder.var_eps
    return loc, variance.sqrt(), lambda: hidden if kept is None else hidden * kept


def fold_offset(state: dict[str, Tensor], component: int) -> dict[str, Tensor]:
    """A trunk's weights as those of one plain encoder: e_s added to the bias, before any norm.

    Raises
    ------
    ValueError
        If the encoder's layers have no bias.
    """
    layers = [k.rsplit(".", 2)[0] for k in state if k.startswith("z_encoder.encoder.fc_layers.")]
    name = f"{max(layers, key=_layer_number)}.0.bias"
    if name not in state:
        raise ValueError(
            "an encoder without biases cannot stand for one component of a trunk: "
            "train with bias=True (the default), or keep the MixtureSCVI."
        )
    return state | {name: state[name] + state["component_offsets"][component]}


def _layer_number(name: str) -> int:
    return int(name.split("Layer ")[1].split(".")[0])


def _last_layer(encoder: Encoder) -> nn.Sequential:
    return encoder.encoder.fc_layers[-1]


def _shared_part(stack: nn.Module, x: Tensor, cat_list: tuple[Tensor, ...]) -> Tensor:
    """W h + b of the last layer, `[n, n_hidden]`, through all layers before it."""
    covariates = one_hot_covariates(stack.n_cat_list, cat_list)
    hidden, n_layers = x, len(stack.fc_layers)
    for i, block in enumerate(stack.fc_layers):
        if covariates and stack.inject_into_layer(i):
            hidden = with_covariates(hidden, covariates)
        for layer in list(block)[: 1 if i == n_layers - 1 else None]:
            if type(layer) is nn.Linear and not has_hooks([layer]):
                hidden = linear(hidden, layer.weight, layer.bias)
            else:
                hidden = hidden if layer is None else layer(hidden)
    return hidden


def _batch_norm_of_sums(
    norm: nn.BatchNorm1d, shared: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor]:
    """Batch norm of all n*S sums, from their parts: means and variances of sums add up.

    The statistics are those of all S components, whichever of them are drawn.
    """
    if norm.training or not norm.track_running_stats:
        n_rows = len(shared) * len(offsets)
        mean = shared.mean(0) + offsets.mean(0)
        variance = shared.var(0, correction=0) + offsets.var(0, correction=0)
        _update_statistics(norm, mean, variance * n_rows / max(1, n_rows - 1))
    else:
        mean, variance = norm.running_mean, norm.running_var
    slope = (variance + norm.eps).rsqrt()
    if norm.affine:
        slope = slope * norm.weight
        return (shared - mean) * slope + norm.bias, offsets * slope
    return (shared - mean) * slope, offsets * slope


@torch.no_grad()
def _update_statistics(norm: nn.BatchNorm1d, mean: Tensor, variance: Tensor) -> None:
    if not norm.track_running_stats:
        return
    norm.num_batches_tracked += 1
    share = 1 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean), share)
    norm.running_var.lerp_(variance.to(norm.running_var), share)


def _dropout_a_cell(layer: nn.Dropout, hidden: Tensor) -> Tensor | None:
    """What to multiply `[n, A, n_hidden]` by: the same units of a cell for all components.

    They are one network. None is nothing, where no unit is dropped.
    """
    if not layer.training or layer.p == 0:
        return None
    return kept_units(hidden[:, :1], layer.p)


def _heads(encoder: Encoder, hidden: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and variance, `[n, A, D]` each, of `hidden * kept`: both heads are one product.

    With many components the units that a cell keeps are put into a copy of the heads' weights for
    each cell, which then is smaller than the hidden layer.
    """
    heads = encoder.mean_encoder, encoder.var_encoder
    plain = not has_hooks(heads) and all(type(head) is nn.Linear for head in heads)
    if kept is not None and not (plain and hidden.shape[1] > 2 * len(heads[0].weight)):
        hidden, kept = hidden * kept, None
    if plain:
        weight = torch.cat([head.weight for head in heads])
        bias = torch.cat([head.bias for head in heads])
        if kept is None:
            joined = linear(hidden, weight, bias)
        else:
            joined = torch.bmm(hidden, (weight * kept).transpose(1, 2)) + bias
        found = joined.chunk(2, dim=-1)
    else:
        found = [head(hidden) for head in heads]
    # Autocast may hand over bfloat16, in which the bound's differences would drown.
    return at_least_float32(found[0]), at_least_float32(found[1])
