"""Networks that evaluate S components at once, and the gated layers of the paper's models.

Weights of the S networks are stacked along a first axis: one batched product or one grouped
convolution serves all of them.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS_LAST = torch.channels_last


class StackedLinear(nn.Module):
    """S linear layers, evaluated together.

    Parameters
    ----------
    n_components
        S.
    n_in, n_out
        Features in and out.
    """

    def __init__(self, n_components: int, n_in: int, n_out: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(n_in)
        self.weight = nn.Parameter(torch.empty(n_components, n_in, n_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n_components, 1, n_out).uniform_(-bound, bound))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map `[S, N, n_in]`, or `[N, n_in]` shared by all components, to `[S, N, n_out]`."""
        shared = inputs.expand(self.weight.shape[0], *inputs.shape[-2:])
        return torch.baddbmm(self.bias, shared, self.weight)


class StackedConv2d(nn.Module):
    """S convolutions, evaluated together, with padding that keeps the size at stride 1.

    Parameters
    ----------
    n_components
        S.
    n_in, n_out
        Channels in and out, of one component.
    kernel_size
        Odd side of the kernel.
    stride
        1 keeps the size, 2 halves it (rounding up).
    shared_input
        Whether all components look at the same input (the first layer, on images).
    """

    def __init__(
        self,
        n_components: int,
        n_in: int,
        n_out: int,
        kernel_size: int,
        stride: int = 1,
        shared_input: bool = False,
    ) -> None:
        super().__init__()
        bound = 1 / math.sqrt(n_in * kernel_size**2)
        shape = (n_components, n_out, n_in, kernel_size, kernel_size)
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n_components, n_out).uniform_(-bound, bound))
        self.stride, self.groups = stride, 1 if shared_input else n_components

    def forward(self, inputs: Tensor) -> Tensor:
        """Map `[N, S * n_in, H, W]` (shared: `[N, n_in, H, W]`) to `[N, S * n_out, H', W']`."""
        maps = F.conv2d(
            inputs,
            self.weight.flatten(0, 1),
            self.bias.flatten(),
            stride=self.stride,
            padding=self.weight.shape[-1] // 2,
            groups=self.groups,
        )
        return maps.contiguous(memory_format=CHANNELS_LAST)  # one input channel leaves it open


class StackedGLU(nn.Module):
    """Gate the maps of S components: a half of each one's channels times the sigmoid of the other.

    Parameters
    ----------
    n_components
        S.
    """

    def __init__(self, n_components: int) -> None:
        super().__init__()
        self.n_components = n_components

    def forward(self, maps: Tensor) -> Tensor:
        """Map `[N, S * 2 * C, H, W]` to `[N, S * C, H, W]`, channels last in memory."""
        pixels = maps.permute(0, 2, 3, 1).unflatten(-1, (self.n_components, -1))
        return F.glu(pixels, dim=-1).flatten(-2).permute(0, 3, 1, 2)


def mlp(sizes: Sequence[int], gated: bool = True, n_components: int | None = None) -> nn.Sequential:
    """Layers through `sizes`, each gated or with a ReLU; the output is the last hidden layer.

    Parameters
    ----------
    sizes
        Features in, then of every layer.
    gated
        h(x) * sigmoid(g(x)) instead of a ReLU.
    n_components
        S networks evaluated together; None is one plain network.

    Returns
    -------
    A network from `[..., sizes[0]]` to `[..., sizes[-1]]`; with S, to `[S, N, sizes[-1]]`.
    """
    layers: list[nn.Module] = []
    for n_in, n_out in zip(sizes[:-1], sizes[1:], strict=True):
        layers.append(linear(n_in, 2 * n_out if gated else n_out, n_components))
        layers.append(nn.GLU(dim=-1) if gated else nn.ReLU())
    return nn.Sequential(*layers)


def linear(n_in: int, n_out: int, n_components: int | None = None) -> nn.Module:
    """One linear layer, or S of them stacked."""
    if n_components is None:
        return nn.Linear(n_in, n_out)
    return StackedLinear(n_components, n_in, n_out)


class ConvFeatures(nn.Module):
    """S gated convolutional networks from images to flat features.

    Parameters
    ----------
    n_components
        S.
    image_size
        (C, H, W).
    channels, kernels, strides
        One number a layer.
    """

    def __init__(
        self,
        n_components: int,
        image_size: tuple[int, int, int],
        channels: Sequence[int],
        kernels: Sequence[int],
        strides: Sequence[int],
    ) -> None:
        super().__init__()
        n_in, height, width = image_size
        layers: list[nn.Module] = []
        for n_out, kernel, stride in zip(channels, kernels, strides, strict=True):
            first = not layers
            layers += [
                StackedConv2d(n_components, n_in, 2 * n_out, kernel, stride, shared_input=first),
                StackedGLU(n_components),
            ]
            n_in, height, width = n_out, -(-height // stride), -(-width // stride)
        self.n_components, self.n_features = n_components, n_in * height * width
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[N, C, H, W]` to features `[S, N, n_features]`."""
        maps = self.layers(x.contiguous(memory_format=CHANNELS_LAST))
        return maps.unflatten(1, (self.n_components, -1)).transpose(0, 1).flatten(2)
