"""Networks that evaluate S components at once, and the gated layers of the paper's models.

Weights of the S networks are stacked along a first axis: one batched product or one grouped
convolution serves all of them.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scmixvi.core import products

CHANNELS_LAST = torch.channels_last


def chosen(weights: Tensor, components: Tensor | None) -> Tensor:
    """Weights `[S, ...]` of all components, or of `components`, `[A]`."""
    return weights if components is None else weights[components]


def check_components(inputs: Tensor, n_components: int) -> None:
    """Refuse inputs `[S, N, n]` of other components; those shared by all pass."""
    if inputs.dim() == 3 and len(inputs) not in (1, n_components):
        raise ValueError(
            f"features of {len(inputs)} components came where {n_components} are encoded: "
            "n_components must be the same everywhere, and layers that tell components apart must "
            "be of class PerComponent, so that some of them can run alone (s2s)."
        )


class PerComponent(nn.Module):
    """A layer that tells components apart: `layer(inputs, components)` runs A of the S alone.

    :class:`ComponentSequential` passes `components`, `[A]` or None for all, to such layers.
    """


class StackedLinear(PerComponent):
    """S linear layers, evaluated together, or one for all components.

    Parameters
    ----------
    n_components
        S, sets of weights. With 1 every component goes through the same layer.
    n_in, n_out
        Features in and out.
    """

    def __init__(self, n_components: int, n_in: int, n_out: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(n_in)
        self.weight = nn.Parameter(torch.empty(n_components, n_in, n_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n_components, 1, n_out).uniform_(-bound, bound))

    def forward(self, inputs: Tensor, components: Tensor | None = None) -> Tensor:
        """Map `[S, N, n_in]`, or `[N, n_in]` shared by all components, to `[S, N, n_out]`.

        With `components`, `[A]`, the S axes are those of these components alone.
        """
        weight, bias = self.of(components)
        if len(self.weight) > 1:
            check_components(inputs, len(weight))
        return products.stacked_linear(inputs, weight, bias)

    def of(self, components: Tensor | None) -> tuple[Tensor, Tensor]:
        """Weights and biases of all components or some; of one layer, that it serves all with."""
        own = components if len(self.weight) > 1 else None
        return chosen(self.weight, own), chosen(self.bias, own)


class StackedConv2d(PerComponent):
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

    def forward(self, inputs: Tensor, components: Tensor | None = None) -> Tensor:
        """Map `[N, S * n_in, H, W]` (shared: `[N, n_in, H, W]`) to `[N, S * n_out, H', W']`.

        With `components`, `[A]`, the S axes are those of these components alone.
        """
        weight, bias = chosen(self.weight, components), chosen(self.bias, components)
        maps = F.conv2d(
            inputs,
            weight.flatten(0, 1),
            bias.flatten(),
            stride=self.stride,
            padding=weight.shape[-1] // 2,
            groups=1 if self.groups == 1 else len(weight),
        )
        return maps.contiguous(memory_format=CHANNELS_LAST)  # one input channel leaves it open


class StackedGLU(PerComponent):
    """Gate the maps of S components: a half of each one's channels times the sigmoid of the other.

    Parameters
    ----------
    n_components
        S.
    """

    def __init__(self, n_components: int) -> None:
        super().__init__()
        self.n_components = n_components

    def forward(self, maps: Tensor, components: Tensor | None = None) -> Tensor:
        """Map `[N, S * 2 * C, H, W]` to `[N, S * C, H, W]`, channels last in memory."""
        n_components = self.n_components if components is None else len(components)
        pixels = maps.permute(0, 2, 3, 1).unflatten(-1, (n_components, -1))
        return F.glu(pixels, dim=-1).flatten(-2).permute(0, 3, 1, 2)


class ComponentOffsets(PerComponent):
    r"""Tell the components of a shared network apart: h becomes h + e_s, a vector a component.

    It stands between a linear layer and its gate or ReLU, and is then what a one-hot code of the
    component adds to that layer. All that comes before is computed once for all components.

    Parameters
    ----------
    n_components
        S.
    n_features
        Features of h.
    spread
        Standard deviation of the vectors at the start. Those of a one-hot input drawn like the
        weights of the pixels, of which there are hundreds, would hardly differ.

    References
    ----------
    Hotti et al. 2024, "Efficient mixture learning in black-box variational inference".
    """

    def __init__(self, n_components: int, n_features: int, spread: float = 0.5) -> None:
        super().__init__()
        self.offsets = nn.Parameter(spread * torch.randn(n_components, 1, n_features))

    def forward(self, features: Tensor, components: Tensor | None = None) -> Tensor:
        """Map `[N, n_features]` to `[S, N, n_features]`, or to the `components` `[A]` alone."""
        return features + chosen(self.offsets, components)


class ComponentSequential(nn.Sequential, PerComponent):
    """Layers in a row, of which some, :class:`PerComponent`, hold weights for each component."""

    def forward(self, inputs: Tensor, components: Tensor | None = None) -> Tensor:
        """Run all components, or those of `components`, `[A]`, alone."""
        for layer in self:
            if isinstance(layer, PerComponent):
                inputs = layer(inputs, components)
            else:
                inputs = layer(inputs)
        return inputs


def mlp(
    sizes: Sequence[int], gated: bool = True, n_components: int | None = None
) -> ComponentSequential:
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
    return ComponentSequential(*layers)


def trunk_mlp(sizes: Sequence[int], gated: bool, n_components: int) -> ComponentSequential:
    """One network for S components, told apart before the last gate or ReLU.

    Parameters
    ----------
    sizes, gated
        As for :func:`mlp`.
    n_components
        S.

    Returns
    -------
    A network from `[N, sizes[0]]` to `[S, N, sizes[-1]]`.
    """
    layers = mlp(sizes, gated)
    n_features = 2 * sizes[-1] if gated else sizes[-1]
    layers.insert(len(layers) - 1, ComponentOffsets(n_components, n_features))
    return layers


def linear(n_in: int, n_out: int, n_components: int | None = None) -> nn.Module:
    """One linear layer, or S of them stacked."""
    if n_components is None:
        return products.Linear(n_in, n_out)
    return StackedLinear(n_components, n_in, n_out)


class ConvFeatures(PerComponent):
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
        self.layers = ComponentSequential(*layers)

    def forward(self, x: Tensor, components: Tensor | None = None) -> Tensor:
        """Map images `[N, C, H, W]` to features `[S, N, n_features]`, or to A of the S."""
        maps = self.layers(x.contiguous(memory_format=CHANNELS_LAST), components)
        n_components = self.n_components if components is None else len(components)
        return maps.unflatten(1, (n_components, -1)).transpose(0, 1).flatten(2)


class TrunkConvFeatures(PerComponent):
    """One gated convolutional network for S components, told apart by a last dense gated layer.

    Parameters
    ----------
    n_components
        S.
    image_size, channels, kernels, strides
        As for :class:`ConvFeatures`.
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
        self.maps = ConvFeatures(1, image_size, channels, kernels, strides)
        self.n_features = self.maps.n_features
        self.dense = trunk_mlp([self.n_features, self.n_features], True, n_components)

    def forward(self, x: Tensor, components: Tensor | None = None) -> Tensor:
        """Map images `[N, C, H, W]` to features `[S, N, n_features]`, or to A of the S."""
        return self.dense(self.maps(x)[0], components)
