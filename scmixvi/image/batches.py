"""Batches of images, cut from one tensor of pixels that stays on its device."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from scmixvi._messages import check_whole

BINARISATION_SEED = 777
"""Seed of the one draw that binarises the validation and test images of MNIST and Fashion-MNIST."""


def binarise_once(*pixels: Tensor, seed: int = BINARISATION_SEED) -> tuple[Tensor, ...]:
    """Draw every pixel of uint8 images once, the same on every machine and call.

    Parameters
    ----------
    pixels
        uint8 tensors; value / 255 is the probability of a 1.
    seed
        Of a generator used for nothing else.

    Returns
    -------
    float32 tensors of zeros and ones, of the same shapes.
    """
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.bernoulli(p.cpu().float().div_(255), generator=generator) for p in pixels)


class ImageBatches:
    """Batches cut from one tensor of pixels that stays on its device.

    Iterating draws a new order each time when `shuffle` is set. The state (`state_dict`) says
    where in which order an interrupted epoch stands, so that it can be finished. Random draws come
    from torch's default generators.

    Parameters
    ----------
    pixels
        `[N, C, H, W]`, uint8, or float within [0, 1].
    batch_size
        B.
    shuffle
        Draw a new order each epoch, and drop the incomplete last batch (if there is another).
    binarise
        Draw every pixel anew as 0 or 1, its value being the probability of a 1.
    flip
        Mirror each image left to right with probability 1/2.

    Raises
    ------
    ValueError
        If the pixels or the batch size do not fit the above.
    """

    def __init__(
        self,
        pixels: Tensor,
        batch_size: int,
        *,
        shuffle: bool = False,
        binarise: bool = False,
        flip: bool = False,
    ) -> None:
        _check_pixels(pixels)
        check_whole("batch_size", batch_size)
        self.pixels, self.batch_size = pixels, batch_size
        self.shuffle, self.binarise, self.flip = shuffle, binarise, flip
        self._seed = self._position = 0
        self._resumed = False

    def __len__(self) -> int:
        whole, rest = divmod(len(self.pixels), self.batch_size)
        return whole if self.shuffle and whole else whole + (rest > 0)

    def __iter__(self) -> Iterator[Tensor]:
        order = self._order()
        for i in range(self._position, len(self)):
            self._position = (i + 1) % len(self)
            chosen = order[i * self.batch_size : (i + 1) * self.batch_size]
            yield self._augmented(self.pixels[chosen])

    def state_dict(self) -> dict[str, int]:
        """Seed of this epoch's order, and the number of batches already given."""
        return {"seed": self._seed, "position": self._position}

    def end(self) -> None:
        """Say that the epoch is over, though batches may be left: what follows is a new one."""
        self._position = 0

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; at the end of an epoch that is a new epoch."""
        self._seed, self._position = state["seed"], state["position"]
        self._resumed = self._position > 0

    def _order(self) -> Tensor:
        if not self._resumed:
            self._seed = int(torch.randint(2**31, ())) if self.shuffle else 0
            self._position = 0
        self._resumed = False
        n = len(self.pixels)
        if not self.shuffle:
            return torch.arange(n, device=self.pixels.device)
        generator = torch.Generator().manual_seed(self._seed)
        return torch.randperm(n, generator=generator).to(self.pixels.device)

    def _augmented(self, x: Tensor) -> Tensor:
        x = x.float().div_(255) if x.dtype == torch.uint8 else x
        if self.flip:
            mirrored = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
            x = torch.where(mirrored, x.flip(-1), x)
        return (torch.rand_like(x) < x).to(x.dtype) if self.binarise else x


def _check_pixels(pixels: Tensor) -> None:
    if not isinstance(pixels, Tensor):
        raise ValueError(
            "pixels must be one tensor [N, C, H, W], but they are of type "
            f"{type(pixels).__name__}: make one of an array by torch.as_tensor."
        )
    if pixels.dim() != 4 or 0 in pixels.shape:
        raise ValueError(
            "pixels must be [N, C, H, W] with no empty axis, but their shape is "
            f"{tuple(pixels.shape)}."
        )
    if pixels.dtype == torch.uint8:
        return
    if not pixels.is_floating_point():
        raise ValueError(f"pixels must be uint8 or float within [0, 1], not {pixels.dtype}.")
    if not bool(((pixels >= 0) & (pixels <= 1)).all()):
        raise ValueError(
            "float pixels must lie within [0, 1] and not be NaN: divide grey values by 255."
        )
