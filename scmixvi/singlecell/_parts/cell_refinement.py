r"""A posterior of each cell's own, which starts at the encoders' and climbs that cell's MISELBO.

The encoders answer for all cells at once. With the decoder as it is, gradient steps on the means
and standard deviations of one cell's components, and of its library size where that is latent,
bring its posterior closer to the exact one, by :func:`scmixvi.core.fit_posterior`. Mixture weights
stay the encoders'. A library size starts at the sum of the counts, for encoders of it put held-out
cells far off (:mod:`scmixvi.experiments.depths`).
"""

from collections.abc import Callable
from typing import Any

import torch
from scvi import REGISTRY_KEYS
from scvi.module._constants import MODULE_KEYS
from torch import Tensor, nn
from torch.distributions import Normal

from scmixvi.core import fit_posterior
from scmixvi.core.modes import evaluating, frozen
from scmixvi.singlecell._loops.counts import dense
from scmixvi.singlecell._parts.depth import at_the_sum
from scmixvi.singlecell._parts.distributions import MixtureOfNormals, with_library
from scmixvi.singlecell._parts.passes import rows_of

# Elements of one likelihood tensor in a step.
_ELEMENTS_A_STEP, _ELEMENTS_A_STEP_ON_CPU = 2**24, 2**19


def refined(
    module: nn.Module, tensors: dict[str, Any], n_steps: int, full_forward_pass: bool = False
) -> MixtureOfNormals:
    """q(z | x) of every cell of a minibatch after gradient steps of its own.

    Where library sizes are latent it is q(z, l | x), log l last.

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
    tensors = {**tensors, REGISTRY_KEYS.X_KEY: dense(counts)}
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
    start = [qz.c_loc, qz.c_scale.log()]
    if encoded[MODULE_KEYS.QL_KEY] is not None:
        ql = at_the_sum(tensors[REGISTRY_KEYS.X_KEY])
        start += [ql.loc, ql.scale.log()]

    def q(loc: Tensor, log_scale: Tensor, *library: Tensor) -> MixtureOfNormals:
        mixture = MixtureOfNormals(loc, log_scale.exp(), qz.c_log_weights, validate_args=False)
        return with_library(mixture, _normal(*library) if library else None)

    parameters = [number.detach().clone().requires_grad_() for number in start]
    log_joint = log_joint_of(module, tensors, encoded)
    fit_posterior(lambda *numbers: q(*numbers).posterior, parameters, log_joint, n_steps)
    return q(*(number.detach() for number in parameters))


def _normal(loc: Tensor, log_scale: Tensor) -> Normal:
    return Normal(loc, log_scale.exp(), validate_args=False)


def log_joint_of(
    module: nn.Module, tensors: dict[str, Any], encoded: dict[str, Any]
) -> Callable[[Tensor], Tensor]:
    """What `module._log_joint` says of an encoded minibatch, from `[L, S, n, D]` to `[L, S, n]`."""

    def log_joint(state: Tensor) -> Tensor:
        flat = module._log_joint(tensors, encoded, state.flatten(0, 1))
        return flat.unflatten(0, state.shape[:2])

    return log_joint


def _copied(value: Any, module: nn.Module) -> Any:
    return value.to(module.device).clone() if isinstance(value, Tensor) else value
