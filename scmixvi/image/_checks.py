"""What an image VAE refuses, each in one sentence."""

import torch
from torch import Tensor
from torch.distributions.constraints import Constraint

from scmixvi.core.objectives import can_look_at


def can_read(x: Tensor, training: bool) -> bool:
    """Whether pixels are read: not where a graph is made, nor where a training step would wait."""
    if torch.compiler.is_compiling() or not len(x):
        return False
    if x.device.type != "cpu" and training and torch.is_grad_enabled():
        return False
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def check_images(x: Tensor, image_size: tuple[int, ...]) -> None:
    """Refuse what is not `[B, C, H, W]` of this size, in floating-point numbers."""
    if x.dim() != 4 or tuple(x.shape[1:]) != image_size:
        raise ValueError(
            f"images must have shape [B, C, H, W] with (C, H, W) = {image_size}, but "
            f"their shape is {tuple(x.shape)}."
        )
    if not x.is_floating_point():
        raise ValueError(
            f"images must be floating-point numbers in [0, 1], but their type is {x.dtype}: "
            "divide 8-bit pixels by 255."
        )


def check_range(x: Tensor) -> None:
    """Refuse values outside [0, 1]."""
    if not bool(((x >= 0) & (x <= 1)).all()):
        raise ValueError(
            "images must lie in [0, 1], but there are values outside it or NaN "
            f"(smallest {x.min().item():g}, largest {x.max().item():g})."
        )


def check_support(x: Tensor, support: Constraint) -> None:
    """Refuse images to which a decoder's distribution gives no likelihood."""
    if not bool(support.check(x).all()):
        raise ValueError(
            f"there are pixels outside the support of the decoder's distribution, {support}: draw "
            "binary pixels from grey ones (torch.bernoulli(x)), or compose a decoder of grey "
            "values (likelihood DiscretizedLogisticMixture)."
        )


def check_drawn_by(log_weights: Tensor | None, found: Tensor | None) -> None:
    """Refuse a mixture of other weights than those that its components were drawn by.

    Draws count equally, so components must come as often as the mixture's weights say.
    """
    same = found is log_weights or (
        found is not None
        and log_weights is not None
        and found.shape == log_weights.shape
        and not (can_look_at(found) and bool((found != log_weights).any()))
    )
    if not same:
        raise ValueError(
            "the estimator 's2a' draws components by the posterior's attribute log_weights, [S] or "
            "None for uniform, but posterior(x) has other weights: give it that attribute, or use "
            "the estimator 'all' where weights depend on the image."
        )
