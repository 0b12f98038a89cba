"""Bounded memory where no gradient is needed: decode some of the draws at a time."""

from collections.abc import Callable
from typing import Any

import torch
from scvi.module._constants import MODULE_KEYS
from torch import Tensor

from scmixvi.singlecell._parts.likelihoods import log_likelihood

# Elements of one likelihood tensor that an evaluation pass may hold (64 MB in float32).
MAX_ELEMENTS_A_PASS = 2**24

# What `generative` returns besides scvi-tools' keys: the dispersion before it is broadcast, and,
# for draws decoded in several passes, log p(x | z) `[K, n]` in the place of the distribution.
DISPERSION_KEY, LOG_LIK_KEY = "px_r", "log_lik"


def needs_passes(z: Tensor, counts: Tensor | None) -> bool:
    """Whether draws `[K, n, D]` are too many to decode at once, and need no gradient."""
    if counts is None or torch.is_grad_enabled() or z.dim() != 3 or len(z) == 1:
        return False
    return len(z) * counts.numel() > MAX_ELEMENTS_A_PASS


def decode_in_passes(
    generative: Callable[..., dict[str, Any]], z: Tensor, library: Tensor, counts: Tensor
) -> dict[str, Any]:
    """Log-likelihoods of counts, a few draws at a time.

    Parameters
    ----------
    generative
        Called with some of the draws and library sizes; in evaluation mode, for a pass has no
        batch statistics of all draws.
    z, library
        Draws `[K, n, D]` and log library sizes `[K, n, 1]`.
    counts
        `[n, G]`.

    Returns
    -------
    What `generative` returns, with `LOG_LIK_KEY`, `[K, n]` in nats, for the distribution of counts.
    """
    per_pass = max(1, MAX_ELEMENTS_A_PASS // counts.numel())
    log_liks: list[Tensor] = []
    for some, their_library in zip(z.split(per_pass), library.split(per_pass), strict=True):
        decoded = generative(z=some, library=their_library)
        px, theta = decoded.pop(MODULE_KEYS.PX_KEY), decoded[DISPERSION_KEY]
        log_liks.append(log_likelihood(px, counts, theta))
    return decoded | {LOG_LIK_KEY: torch.cat(log_liks)}
