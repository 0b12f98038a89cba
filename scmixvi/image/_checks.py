"""What an image VAE refuses, each in one sentence."""

import math
from collections.abc import Collection, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from torch.distributions.constraints import Constraint

from scmixvi._messages import is_whole
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
    if not isinstance(x, Tensor):
        raise ValueError(
            f"images must be one tensor [B, C, H, W], but they are of type {type(x).__name__}: "
            "make one of an array by torch.as_tensor, or take the images alone out of a batch."
        )
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


def check_dtype(x: Tensor, module: nn.Module) -> None:
    """Refuse weights of 16 bits and images of another precision, but where autocast converts."""
    weight = next(module.parameters(), x)
    if torch.is_autocast_enabled(x.device.type):
        return
    if weight.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"the model's weights are {weight.dtype}, but latents and densities are at least "
            "float32: keep weights and images float32, and let torch.autocast (a trainer's "
            "precision bf16-mixed) compute in 16 bits where that does no harm."
        )
    if x.dtype != weight.dtype:
        raise ValueError(
            f"the images are {x.dtype} and the model's weights {weight.dtype}: convert one of "
            f"them, as by x.to({weight.dtype})."
        )


def check_range(x: Tensor) -> None:
    """Refuse values outside [0, 1]."""
    if not bool(((x >= 0) & (x <= 1)).all()):
        raise ValueError(
            "images must lie in [0, 1], but there are values outside it or NaN "
            f"(smallest {x.min().item():g}, largest {x.max().item():g})."
        )


class WithoutEnds(Constraint):
    """Images within a support that have no pixel of exactly these values.

    Parameters
    ----------
    within
        The support.
    ends
        Of 0 and 1, those at which a density is not finite.
    """

    event_dim = 3

    def __init__(self, within: Constraint, ends: Sequence[float]) -> None:
        self.within, self.ends = within, tuple(ends)
        super().__init__()

    def __repr__(self) -> str:
        """As the support, and what is left out of it."""
        return f"{self.within} without {' and '.join(f'{end:g}' for end in self.ends)}"

    def check(self, value: Tensor) -> Tensor:
        """Whether images `[..., C, H, W]` are such: `[...]`."""
        inside = self.within.check(value)
        while inside.dim() > value.dim() - self.event_dim:
            inside = inside.all(-1)
        return inside & ~torch.isin(value, value.new_tensor(self.ends)).flatten(-3).any(-1)


def finite_support(decoded: Distribution, like: Tensor) -> Constraint:
    """Images that have a likelihood: the support that a distribution names, or all in [0, 1].

    Without the ends at which it says there is a density that is not finite, as of a Beta. A model
    whose density of grey images is not finite either, as one that diverged, says nothing of them.

    Parameters
    ----------
    decoded
        Batch `[1]`, event `[C, H, W]`.
    like
        A tensor of the model's type and device.
    """
    try:
        support = decoded.support or constraints.unit_interval
    except NotImplementedError:
        support = constraints.unit_interval
    if support.is_discrete:
        return support

    def lacks(grey: float) -> bool:
        image = like.new_full((1, *decoded.event_shape), grey)
        is_named = bool(support.check(image).all())
        return is_named and not bool(decoded.log_prob(image).isfinite().all())

    ends = [end for end in (0.0, 1.0) if lacks(end)]
    return WithoutEnds(support, ends) if ends and not lacks(0.5) else support


def check_support(x: Tensor, support: Constraint) -> None:
    """Refuse images to which a decoder's distribution gives no likelihood."""
    if isinstance(support, WithoutEnds):
        check_support(x, support.within)
        if not bool(support.check(x).all()):
            raise ValueError(
                "the density of the decoder's distribution is not finite at pixels of exactly "
                f"{' or '.join(f'{end:g}' for end in support.ends)}, and there are such pixels: "
                "move grey values inside, as by (255 * x + 0.5) / 256, or compose a decoder of "
                "binary pixels (bernoulli) or of levels (DiscretizedLogisticMixture)."
            )
        return
    if not bool(support.check(x).all()):
        raise ValueError(
            "there are pixels outside the support of the decoder's distribution, "
            f"{_named(support)}: draw binary pixels from grey ones (torch.bernoulli(x)), or "
            "compose a decoder of grey values (likelihood DiscretizedLogisticMixture)."
        )


def _named(support: Constraint) -> str:
    """How a support is written, or its kind alone where bounds of every pixel would be too."""
    text = str(support)
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return text if len(text) <= 80 else type(support).__name__.lstrip("_")


def is_row(sizes: Any) -> bool:
    """Whether it holds sizes one after the other, as a list or an array, and keeps them."""
    return isinstance(sizes, Collection) and getattr(sizes, "ndim", 1) == 1


def check_layers(name: str, sizes: Any, n_layers: int | None = None, at_least: int = 1) -> None:
    """Refuse sizes of layers that are not whole numbers from 1: so many, or at least so many."""
    found = list(sizes) if is_row(sizes) else [0]
    fits = len(found) == n_layers if n_layers else len(found) >= at_least
    if not fits or not all(is_whole(size) for size in found):
        raise ValueError(
            f"{name} must be {n_layers or f'{at_least} or more'} whole numbers, one a layer, each "
            f"at least 1, but it is {sizes!r}."
        )


def check_precision(precision: str | int | None) -> None:
    """Refuse what makes every weight a half: images stay float32."""
    if precision in ("16-true", "bf16-true"):
        raise ValueError(
            f"the trainer's precision {precision} leaves weights of a type that the images do not "
            "have: use bf16-mixed, 16-mixed or 32-true."
        )


def check_one_device(n_devices: int) -> None:
    """Refuse several: the pixels lie on one."""
    if n_devices > 1:
        raise ValueError(
            f"these batches feed one device, not {n_devices}: pass --trainer.devices 1 "
            "(and one node)."
        )


def check_not_learned(log_weights: Tensor | None) -> None:
    """Refuse to train weights by some of the components, which gives them no right gradient."""
    if log_weights is not None and log_weights.requires_grad:
        raise ValueError(
            "the estimators 's2a' and 's2s' draw components by their weights, which gives weights "
            "that are learned no right gradient: use the estimator 'all', or weights without one."
        )


def check_drawn_by(log_weights: Tensor | None, found: Tensor | None) -> None:
    """Refuse a mixture of other weights than those that its components were drawn by.

    Draws count equally, so components must come as often as the mixture's weights say.
    """
    if found is log_weights:
        return
    n_components = len(found if found is not None else cast("Tensor", log_weights))
    uniform = torch.full((n_components,), -math.log(n_components))
    drawn_by, scored_by = (
        uniform if w is None else w.detach().float() for w in (log_weights, found)
    )
    same = drawn_by.shape == scored_by.shape
    if same and can_look_at(drawn_by) and can_look_at(scored_by):
        same = torch.allclose(drawn_by, scored_by)
    if not same:
        raise ValueError(
            "the estimator 's2a' draws components by the posterior's attribute log_weights, [S] or "
            "None for uniform, but posterior(x) has other weights: give it that attribute, or use "
            "the estimator 'all' where weights depend on the image."
        )
