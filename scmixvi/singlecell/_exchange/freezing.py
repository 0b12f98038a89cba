"""What a query model (scArches) trains: scvi-tools freezes the rest by flags and hooks."""

import inspect

from scvi.model import SCVI
from scvi.model.base._archesmixin import _set_params_online_update
from torch import nn

# Arguments of `load_query_data` that say which weights a query model trains.
FREEZING = tuple(inspect.signature(_set_params_online_update).parameters)[1:]


def freezing_of(model: SCVI) -> dict[str, bool] | None:
    """The arguments with which a query model was frozen; None for a model that is none.

    Models of scvi-tools do not keep them, but their modules show what was done.
    """
    kept = getattr(model, "query_freezing_", None)
    encoder, decoder = model.module.z_encoder.encoder, model.module.decoder.px_decoder
    if kept is not None or not hasattr(encoder, "hooks"):
        return kept
    return {
        "unfrozen": False,
        "freeze_decoder_first_layer": _is_hooked(decoder.fc_layers[0]),
        "freeze_batchnorm_encoder": _has_fixed_norms(encoder),
        "freeze_batchnorm_decoder": _has_fixed_norms(decoder),
        "freeze_dropout": all(m.p == 0 for m in encoder.modules() if isinstance(m, nn.Dropout)),
        "freeze_expression": _is_hooked(encoder.fc_layers[0]),
        "freeze_classifier": True,
    }


def freeze(model: SCVI, freezing: dict[str, bool] | None) -> None:
    """Freeze a model as a query model was, so that it is loaded as one too; None leaves it."""
    if freezing is not None:
        _set_params_online_update(model.module, **freezing)
        model.query_freezing_ = freezing


def _is_hooked(layer: nn.Module) -> bool:
    """Whether gradients of a layer's weights are changed on their way."""
    return bool(layer[0].weight._backward_hooks)


def _has_fixed_norms(network: nn.Module) -> bool:
    """Whether no batch norm of a network follows its data."""
    return all(m.momentum == 0 for m in network.modules() if isinstance(m, nn.BatchNorm1d))
