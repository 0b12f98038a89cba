r"""A posterior of each cell's own, which starts at the encoders' and climbs that cell's MISELBO.

The encoders answer for all cells at once. With the decoder as it is, gradient steps on the means
and standard deviations of one cell's components bring its posterior closer to the exact one, by
:func:`scmixvi.core.fitted_gaussians`. Mixture weights and library sizes stay the encoders'.
"""

from collections.abc import Callable
from typing import Any

import torch
from scvi import REGISTRY_KEYS
from scvi.module._constants import MODULE_KEYS
from torch import Tensor, nn

from scmixvi.core import fitted_gaussians
from scmixvi.core.modes import evaluating, frozen
from scmixvi.singlecell._distributions import MixtureOfNormals
from scmixvi.singlecell._passes import rows_of

# Elements of one likelihood tensor in a step.
_ELEMENTS_A_STEP, _ELEMENTS_A_STEP_ON_CPU = 2**24, 2**19


def refined(
    module: nn.Module, tensors: dict[str, Any], n_steps: int, full_forward_pass: bool = False
) -> MixtureOfNormals:
    """q(z | x) of every cell of a minibatch after gradient steps of its own.

    Parameters
    ----------
    module
        A :class:`scmixvi.singlecell.MixtureVAE`.
    tensors
        A minibatch of n cells with counts, also where posteriors are stored beside them.
    n_steps
        Gradient steps, each with one draw of every component.
    full_forward_pass
        Start from the encoders although posteriors are stored.
    """
    counts = tensors[REGISTRY_KEYS.X_KEY]
    if counts.layout is not torch.strided:
        tensors = {**tensors, REGISTRY_KEYS.X_KEY: counts.to_dense()}
    n_cells, n_genes = counts.shape
    on_cpu = module.device.type == "cpu"
    elements = _ELEMENTS_A_STEP_ON_CPU if on_cpu else _ELEMENTS_A_STEP
    n_components = module.n_components
    widest = max(n_genes, n_components * module.n_latent)  # decoded, or scored by every component
    at_once = max(1, elements // (n_components * widest))
    found: list[MixtureOfNormals] = []
    # No gradient can flow through what was made in inference mode, but it can through copies.
    with torch.inference_mode(False), frozen(module.parameters()), evaluating(module):
        for start in range(0, n_cells, at_once):
            rows = slice(start, start + at_once)
            part = {k: _copied(rows_of(v, rows, n_cells), module) for k, v in tensors.items()}
            encoded = module.inference(**module._get_inference_input(part, full_forward_pass))
            found.append(_refined(module, part, encoded, n_steps))
    return MixtureOfNormals.joined(found)


def _refined(
    module: nn.Module, tensors: dict[str, Any], encoded: dict[str, Any], n_steps: int
) -> MixtureOfNormals:
    qz = encoded[MODULE_KEYS.QZ_KEY]
    loc, scale = fitted_gaussians(
        qz.c_loc.transpose(0, 1),
        qz.c_scale.transpose(0, 1),
        log_joint_of(module, tensors, encoded),
        n_steps,
        qz.c_log_weights.T,
    )
    return MixtureOfNormals(
        loc.transpose(0, 1), scale.transpose(0, 1), qz.c_log_weights, validate_args=False
    )


def log_joint_of(
    module: nn.Module, tensors: dict[str, Any], encoded: dict[str, Any]
) -> Callable[[Tensor], Tensor]:
    """From u `[L, S, n, D]` to log p(x, z) `[L, S, n]` of an encoded minibatch."""

    def log_joint(u: Tensor) -> Tensor:
        return module._log_joint(tensors, encoded, u.flatten(0, 1)).unflatten(0, u.shape[:2])

    return log_joint


def _copied(value: Any, module: nn.Module) -> Any:
    return value.to(module.device).clone() if isinstance(value, Tensor) else value
