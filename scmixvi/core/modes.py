"""Evaluation mode, and weights without gradients, for a while; which way torch differentiates."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.autograd import forward_ad


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and afterwards every part of it back into its own."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def rest_frozen(module: nn.Module) -> None:
    """Put into evaluation mode what is frozen, so that its batch statistics are fixed too.

    That are parts, and parts of parts, with parameters of which none requires a gradient.
    """
    for part in module.modules():
        parameters = list(part.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            part.eval()


@contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let weights require no gradient for a while; what did not before does not after."""
    held = [p for p in parameters if p.requires_grad]
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)


def differentiates_forwards() -> bool:
    """Whether torch differentiates forwards (`torch.func.jvp`), which not all functions know."""
    return getattr(forward_ad, "_current_level", -1) >= 0
