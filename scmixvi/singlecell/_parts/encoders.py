"""All components' encoders in one pass: their weights are stacked, not looped over.

Every component keeps its own :class:`scvi.nn.Encoder`, so that saving, scArches surgery, frozen
layers and gradient hooks work as in scvi-tools. Only the computation is joined: the first layer
of all S encoders is one matrix product, the later ones are batched products.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from scvi.nn import Encoder
from torch import Tensor, nn
from torch.nn import functional

from scmixvi.core.precision import at_least_float32
from scmixvi.singlecell._loops.dropout import dropped
from scmixvi.singlecell._loops.sparse import linear


def encode_components(
    encoders: Sequence[Encoder], x: Tensor, *cat_list: Tensor
) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
    """Encode a batch with S encoders of one architecture.

    Parameters
    ----------
    encoders
        S encoders.
    x
        What they encode, `[n, F]`.
    cat_list
        Categorical covariates, `[n, 1]` each.

    Returns
    -------
    loc, scale: means and standard deviations, `[n, S, D]`, float32 or wider.
    hidden: a function that gives the last hidden layer, `[n, S, n_hidden]`.
    """
    first = encoders[0]
    if can_stack(encoders):
        hidden = _stacked_layers([e.encoder for e in encoders], x, cat_list)
        heads = [head for e in encoders for head in (e.mean_encoder, e.var_encoder)]
        loc, raw_variance = _batched_linear(heads, hidden).chunk(2, dim=-1)
    else:
        hidden = torch.stack([e.encoder(x, *cat_list) for e in encoders], dim=1)
        rows = list(zip(encoders, hidden.unbind(1), strict=True))
        loc = torch.stack([e.mean_encoder(h) for e, h in rows], dim=1)
        raw_variance = torch.stack([e.var_encoder(h) for e, h in rows], dim=1)
    # Autocast may hand over bfloat16, in which the bound's differences would drown.
    loc, raw_variance = at_least_float32(loc), at_least_float32(raw_variance)
    variance = first.var_activation(raw_variance) + first.var_eps
    return loc, variance.sqrt(), lambda: hidden


def can_stack(encoders: Sequence[Encoder]) -> bool:
    """True where the S copies of every layer can be computed together, and no hook listens."""
    return not has_hooks(part for e in encoders for part in e.modules()) and all(
        layer is None
        or isinstance(layer, nn.Linear | nn.LayerNorm | nn.Dropout)
        or (isinstance(layer, nn.BatchNorm1d) and layer.momentum is not None)
        or next(layer.parameters(), next(layer.buffers(), None)) is None
        for block in encoders[0].encoder.fc_layers
        for layer in block
    )


def has_hooks(parts: Iterable[nn.Module]) -> bool:
    """Whether someone would notice that one of these is not called."""
    return any(
        part._forward_hooks
        or part._forward_pre_hooks
        or part._backward_hooks
        or part._backward_pre_hooks
        for part in parts
    )


def _stacked_layers(stacks: Sequence[nn.Module], x: Tensor, cat_list: Sequence[Tensor]) -> Tensor:
    """The hidden layers of S `FCLayers`, `[n, F] -> [n, S, n_hidden]`."""
    n_components = len(stacks)
    covariates = one_hot_covariates(stacks[0].n_cat_list, cat_list)
    hidden = x
    for i, blocks in enumerate(zip(*(s.fc_layers for s in stacks), strict=True)):
        for layers in zip(*blocks, strict=True):
            layer = layers[0]
            if layer is None:
                continue
            if isinstance(layer, nn.Linear):
                if covariates and stacks[0].inject_into_layer(i):
                    hidden = with_covariates(hidden, covariates)
                hidden = _stacked_linear(layers, hidden)
            elif isinstance(layer, nn.BatchNorm1d):
                normed = _stacked_batch_norm(layers, hidden.flatten(1))
                hidden = normed.unflatten(1, (n_components, -1))
            elif isinstance(layer, nn.LayerNorm):
                hidden = _stacked_layer_norm(layers, hidden)
            elif type(layer) is nn.Dropout:
                hidden = dropped(layer, hidden)
            else:
                hidden = layer(hidden)
    return hidden


def one_hot_covariates(n_cat_list: Sequence[int], cat_list: Sequence[Tensor]) -> list[Tensor]:
    if len(n_cat_list) > len(cat_list):
        raise ValueError(
            f"the encoders expect {len(n_cat_list)} categorical covariates, got {len(cat_list)}."
        )
    return [
        cat if cat.size(1) == n_cat else functional.one_hot(cat.squeeze(-1), n_cat)
        for n_cat, cat in zip(n_cat_list, cat_list, strict=False)
        if n_cat > 1
    ]


def with_covariates(hidden: Tensor, covariates: list[Tensor]) -> Tensor:
    if hidden.dim() == 3:
        n_components = hidden.shape[1]
        covariates = [c.unsqueeze(1).expand(-1, n_components, -1) for c in covariates]
    return torch.cat([hidden, *covariates], dim=-1)


def _stacked_linear(layers: Sequence[nn.Linear], hidden: Tensor) -> Tensor:
    """S linear layers: `[n, F]` or `[n, S, F] -> [n, S, n_out]`."""
    if hidden.dim() == 3:
        return _batched_linear(layers, hidden)
    return _joined_linear(layers, hidden).unflatten(1, (len(layers), -1))


def _joined_linear(layers: Sequence[nn.Linear], hidden: Tensor) -> Tensor:
    """Linear layers of one input, their outputs side by side: `[n, F] -> [n, sum of n_out]`."""
    bias = None if layers[0].bias is None else _joined([m.bias for m in layers])
    return linear(hidden, _joined([m.weight for m in layers]), bias)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat(tensors) if len(tensors) > 1 else tensors[0]


def _batched_linear(layers: Sequence[nn.Linear], hidden: Tensor) -> Tensor:
    """S linear layers, or S times as many side by side, of `[n, S, F]`: `[n, S, n_out]`.

    Their weights are put end to end and then seen as S, so that their gradients are too: those of
    a stack would be copied one by one.
    """
    shape = hidden.shape[1], -1
    if shape[0] == 1:
        return _joined_linear(layers, hidden[:, 0]).unsqueeze(1)
    weight = torch.cat([m.weight for m in layers]).unflatten(0, shape)
    product = torch.bmm(hidden.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)
    if layers[0].bias is None:
        return product
    return product + torch.cat([m.bias for m in layers]).unflatten(0, shape)


def _stacked_batch_norm(layers: Sequence[nn.BatchNorm1d], hidden: Tensor) -> Tensor:
    """Each component keeps its own statistics: the features of all S stand side by side."""
    first = layers[0]
    owned = None, None
    if first.track_running_stats:
        owned = [m.running_mean for m in layers], [m.running_var for m in layers]
    statistics = [None if own is None else _joined(own) for own in owned]
    weight = _joined([m.weight for m in layers]) if first.affine else None
    bias = _joined([m.bias for m in layers]) if first.affine else None
    use_batch = first.training or not first.track_running_stats
    normed = functional.batch_norm(
        hidden, *statistics, weight, bias, use_batch, first.momentum, first.eps
    )
    if first.training and first.track_running_stats:
        if len(layers) > 1:
            for own, joined in zip(owned, statistics, strict=True):
                torch._foreach_copy_(own, joined.chunk(len(layers)))
        torch._foreach_add_([m.num_batches_tracked for m in layers], 1)
    return normed


def _stacked_layer_norm(layers: Sequence[nn.LayerNorm], hidden: Tensor) -> Tensor:
    first = layers[0]
    hidden = functional.layer_norm(hidden, first.normalized_shape, None, None, first.eps)
    if first.elementwise_affine:
        hidden = hidden * torch.stack([m.weight for m in layers])
        if first.bias is not None:
            hidden = hidden + torch.stack([m.bias for m in layers])
    return hidden
