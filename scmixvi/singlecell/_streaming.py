"""Bounded memory where no gradient is needed: decode some of the draws at a time."""

from typing import TYPE_CHECKING, Any

import torch
from scvi import REGISTRY_KEYS
from scvi.module._constants import MODULE_KEYS
from torch import Tensor

from scmixvi.singlecell._likelihoods import log_likelihood

if TYPE_CHECKING:
    from scmixvi.singlecell._module import MixtureVAE

# Elements of one likelihood tensor that an evaluation pass may hold (64 MB in float32).
MAX_ELEMENTS_A_PASS = 2**24

# What `generative` returns besides scvi-tools' keys: the dispersion before it is broadcast, and,
# for draws decoded in several passes, log p(x | z) `[K, n]` in the place of the distribution.
DISPERSION_KEY, LOG_LIK_KEY = "px_r", "log_lik"


def must_stream(tensors: dict[str, Tensor], outputs: dict[str, Any]) -> bool:
    """Whether the draws `[K, n, D]` are too many to decode at once, and need no gradient."""
    draws = outputs[MODULE_KEYS.Z_KEY]
    if torch.is_grad_enabled() or draws.dim() != 3:
        return False
    return len(draws) * tensors[REGISTRY_KEYS.X_KEY].numel() > MAX_ELEMENTS_A_PASS


def decode(
    module: "MixtureVAE", tensors: dict[str, Tensor], outputs: dict[str, Any], **inputs: Any
) -> dict[str, Any]:
    """`generative`, in as many passes over the K draws as memory asks for.

    Parameters
    ----------
    module
        In evaluation mode if the draws are many: a pass has no batch statistics of its own then.
    tensors
        A minibatch.
    outputs
        What inference returned, draws `[K, n, D]`.
    inputs
        Further arguments of `_get_generative_input`.

    Returns
    -------
    What `generative` returns; in several passes with `LOG_LIK_KEY` in the place of the
    distribution of counts.
    """
    if not must_stream(tensors, outputs):
        return module.generative(**module._get_generative_input(tensors, outputs, **inputs))
    z, library = outputs[MODULE_KEYS.Z_KEY], outputs[MODULE_KEYS.LIBRARY_KEY]
    x = tensors[REGISTRY_KEYS.X_KEY].to(z.device)
    per_pass = max(1, MAX_ELEMENTS_A_PASS // x.numel())
    log_liks: list[Tensor] = []
    for some_z, some_library in zip(z.split(per_pass), library.split(per_pass), strict=True):
        some = {**outputs, MODULE_KEYS.Z_KEY: some_z, MODULE_KEYS.LIBRARY_KEY: some_library}
        decoded = module.generative(**module._get_generative_input(tensors, some, **inputs))
        log_liks.append(log_likelihood(decoded[MODULE_KEYS.PX_KEY], x, decoded[DISPERSION_KEY]))
    return {
        LOG_LIK_KEY: torch.cat(log_liks),
        DISPERSION_KEY: None,
        MODULE_KEYS.PL_KEY: decoded[MODULE_KEYS.PL_KEY],
    }
