"""From scvi-tools' SCVI and back: models that share data, arguments and weights."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data._constants import (
    _DATA_REGISTRY_KEY,
    _FIELD_REGISTRIES_KEY,
    _SETUP_ARGS_KEY,
    _STATE_REGISTRY_KEY,
)
from scvi.data._utils import _get_adata_minify_type
from scvi.data.fields import ObsmField
from scvi.model import SCVI
from torch import Tensor, nn

from scmixvi.singlecell._exchange.freezing import freeze, freezing_of
from scmixvi.singlecell._parts.trunk import fold_offset, initial_offsets

_STORED = (REGISTRY_KEYS.LATENT_QZM_KEY, REGISTRY_KEYS.LATENT_QZV_KEY)

MIXTURE_ARGUMENTS = (
    "n_components",
    "n_importance_samples",
    "mixture_weights",
    "encoder_sharing",
    "estimator",
    "n_drawn",
    "thinning_rate",
)


def components_from_one(state: dict[str, Tensor], n_components: int) -> dict[str, Tensor]:
    """SCVI's weights with its encoder S times, in memory of their own."""
    copies = {
        name.replace("z_encoder.", f"z_encoder_{s}.", 1): tensor
        for s in range(1, n_components)
        for name, tensor in state.items()
        if name.startswith("z_encoder.")
    }
    return _copied(state | copies)


def one_of_components(state: dict[str, Tensor], component: int) -> dict[str, Tensor]:
    """A mixture's weights with one of its encoders as SCVI's, in memory of their own."""
    if "component_offsets" in state:
        return _copied(fold_offset(state, component))
    prefix = "z_encoder." if component == 0 else f"z_encoder_{component}."
    chosen = {
        "z_encoder." + name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }
    if not chosen:
        raise ValueError(f"the weights hold no component {component!r}.")
    return _copied(state | chosen)


def _copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies, for scvi-tools' embeddings are not loaded into but replaced by what is given."""
    return {name: tensor.clone() for name, tensor in state.items()}


def data_of(source: SCVI, adata: AnnData | None) -> AnnData:
    """The data given, or the model's own; raises ValueError if there are neither."""
    adata = source.adata if adata is None else adata
    if adata is None:
        raise ValueError("the model carries no adata: pass the one it was trained on as `adata`.")
    return adata


def of_component(adata: AnnData, component: int, n_latent: int) -> AnnData:
    """Minified data with the parameters of one component, in a copy; other data as they are."""
    if _get_adata_minify_type(adata) is None:
        return adata
    adata = adata.copy()
    for key in (SCVI._LATENT_QZM_KEY, SCVI._LATENT_QZV_KEY):
        if adata.obsm[key].shape[1] > n_latent:  # or SCVI itself has minified them
            adata.obsm[key] = adata.obsm[key][:, component * n_latent : (component + 1) * n_latent]
    return adata


def register_widths(registry: dict, *widths: int) -> None:
    """Let a registry of minified data take stored latents of other widths, means and variances."""
    for key, width in zip(_STORED, widths, strict=True):
        field = registry[_FIELD_REGISTRIES_KEY].get(key)
        if field is not None:
            field[_STATE_REGISTRY_KEY][ObsmField.COLUMN_NAMES_KEY] = np.arange(width)


def _registry_for(adata: AnnData, registry: dict) -> dict:
    """A copy of a registry with no more columns of stored latents than the data have."""
    registry = deepcopy(registry)
    for key in _STORED:
        field = registry[_FIELD_REGISTRIES_KEY].get(key)
        if field is not None and _get_adata_minify_type(adata) is not None:
            width = adata.obsm[field[_DATA_REGISTRY_KEY]["attr_key"]].shape[1]
            state = field[_STATE_REGISTRY_KEY]
            state[ObsmField.COLUMN_NAMES_KEY] = state[ObsmField.COLUMN_NAMES_KEY][:width]
    return registry


def twin(cls: type[SCVI], source: SCVI, adata: AnnData, **mixture_kwargs: Any) -> SCVI:
    """A model of class `cls` on data, with the source's arguments, not yet with its weights.

    It trains what the source does, and holds out the cells that the source does if they are its.
    """
    registry = _registry_for(adata, source.registry)
    cls.setup_anndata(adata, source_registry=registry, **registry[_SETUP_ARGS_KEY])
    parameters = dict(source.init_params_["non_kwargs"])
    for further in source.init_params_["kwargs"].values():
        parameters |= further
    shared = {k: v for k, v in parameters.items() if k not in MIXTURE_ARGUMENTS}
    model = cls(adata, **shared, **mixture_kwargs)
    model.to_device(source.device)
    model.module.eval()
    freeze(model, freezing_of(source))
    model.is_trained_ = source.is_trained_
    split = source.train_indices_, source.validation_indices_, source.test_indices_
    if _is_split_of(adata, split, source.adata):
        model.train_indices_, model.validation_indices_, model.test_indices_ = split
    return model


def _is_split_of(adata: AnnData, split: Sequence, its_own: AnnData | None) -> bool:
    """Whether positions of cells are those of data: of the same cells or, unknown, as many."""
    if its_own is not None:
        return adata.obs_names.equals(its_own.obs_names)
    return sum(len(part) for part in split if part is not None) == adata.n_obs


@torch.no_grad()
def tell_apart(module: nn.Module, jitter: float) -> None:
    """Make the components differ that all hold the same encoder; the first stays as it is."""
    if module.encoder_sharing == "trunk":
        offsets = initial_offsets(module.z_encoder, module.n_components, jitter)
        module.component_offsets.copy_(offsets)
        module.component_offsets[0] = 0.0
        return
    for encoder in module.z_encoders[1:]:
        for head in (encoder.mean_encoder, encoder.var_encoder):
            add_noise(head, jitter)


@torch.no_grad()
def add_noise(head: nn.Linear, jitter: float) -> None:
    """Move a layer by normal noise, `jitter` times the spread of its weights."""
    for parameter in (head.weight, head.bias):
        spread = parameter.std() if parameter.numel() > 1 else parameter.abs().mean()
        parameter.add_(jitter * spread * torch.randn_like(parameter))
