"""PixelCNN: images drawn pixel by pixel, each given the pixels above and to the left of it.

A 3 x 3 kernel that may see only what comes earlier has no use for its last row, so the kernels
here are 2 x 3, and only the taps that see something have weights: the three above, the left
one, and, from the second layer on, the pixel itself. There is nothing to mask.
"""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

from scmixvi._messages import check_whole, raise_failed
from scmixvi.core.precision import at_least_float32
from scmixvi.image.nets import CHANNELS_LAST, mlp

N_TAPS = 6  # of a 2 x 3 kernel: three above, left, itself, right


class CausalConv2d(nn.Module):
    """Convolution over earlier pixels, then batch norm and ReLU.

    Parameters
    ----------
    n_in, n_out
        Channels in and out.
    sees_itself
        Whether a pixel's own features are seen (all layers but the first).
    """

    def __init__(self, n_in: int, n_out: int, sees_itself: bool) -> None:
        super().__init__()
        n_taps = 5 if sees_itself else 4
        bound = 1 / math.sqrt(n_in * n_taps)
        self.weight = nn.Parameter(torch.empty(n_out, n_in, n_taps).uniform_(-bound, bound))
        self.norm = nn.BatchNorm2d(n_out)

    def forward(self, maps: Tensor) -> Tensor:
        """Map `[N, n_in, H, W]` to `[N, n_out, H, W]`."""
        above = F.pad(maps, (0, 0, 1, 0))
        if self.training:
            return self.norm(F.conv2d(above, self.kernel, padding=(0, 1))).relu_()
        kernel, bias = self.folded()
        return F.conv2d(above, kernel, bias, padding=(0, 1)).relu_()

    @property
    def kernel(self) -> Tensor:
        """`[n_out, n_in, 2, 3]`, zero where there is no tap."""
        return F.pad(self.weight, (0, N_TAPS - self.weight.shape[-1])).unflatten(-1, (2, 3))

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return kernel and bias with the running statistics of the batch norm folded in."""
        mean, variance = (self.norm.get_buffer(f"running_{name}") for name in ("mean", "var"))
        scale = self.norm.weight * torch.rsqrt(variance + self.norm.eps)
        return self.kernel * scale[:, None, None, None], self.norm.bias - mean * scale


class PixelCNN(nn.Module):
    """Network from an image and context maps to every pixel's parameters.

    Parameters
    ----------
    image_size
        (C, H, W).
    n_context
        Context maps, which do not depend on the image.
    n_parameters
        P, parameters a pixel.
    n_features
        Channels of the hidden layers.
    n_layers
        Layers with batch norm, the first included.

    Raises
    ------
    ValueError
        If `n_layers` is no whole number of at least 1.

    References
    ----------
    van den Oord et al. 2016, "Pixel recurrent neural networks".
    """

    def __init__(
        self,
        image_size: tuple[int, int, int],
        n_context: int,
        n_parameters: int,
        n_features: int = 64,
        n_layers: int = 8,
    ) -> None:
        super().__init__()
        check_whole("n_layers of a PixelCNN", n_layers)
        self.image_size = image_size
        widths = [image_size[0] + n_context] + [n_features] * n_layers
        self.layers = nn.ModuleList(
            CausalConv2d(n_in, n_out, sees_itself=layer > 0)
            for layer, (n_in, n_out) in enumerate(zip(widths[:-1], widths[1:], strict=True))
        )
        self.head = nn.Conv2d(n_features, n_parameters, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Map images `[N, C, H, W]` and context `[N, M, H, W]` to parameters `[N, P, H, W]`."""
        maps = torch.cat([x, context], dim=1).contiguous(memory_format=CHANNELS_LAST)
        for layer in self.layers:
            maps = layer(maps)
        return self.head(maps)

    @torch.no_grad()
    def sample(self, context: Tensor, likelihood: Callable[[Tensor], Distribution]) -> Tensor:
        """Draw images `[N, C, H, W]` for context `[N, M, H, W]`, a pixel at a time.

        Every layer's maps are kept, so a pixel costs one small product a layer. Batch norm uses
        its running statistics.
        """
        cache = _Cache(self, context)
        _, height, width = self.image_size
        for row in range(height):
            for column in range(width):
                parameters = cache.parameters(row, column)
                cache.set_pixel(row, column, likelihood(parameters).sample())
        return cache.image


class _Cache:
    """Maps of all layers, filled in as far as the image is drawn.

    `maps[h]` is the input of layer h, `[N, H + 1, W + 2, channels]`: padded by a row above and a
    column at either side, and zero where nothing is drawn yet. `image` is what is drawn so far,
    `[N, C, H, W]`: in float32 at least, for 16 bits have not all levels of a pixel.
    """

    def __init__(self, network: PixelCNN, context: Tensor) -> None:
        self.n_channels, height, width = network.image_size
        layers = cast("Sequence[CausalConv2d]", network.layers)
        folded = [layer.folded() for layer in layers]
        self.kernels = [(kernel.permute(0, 2, 3, 1).flatten(1), bias) for kernel, bias in folded]
        self.head = network.head
        widths = [layer.weight.shape[1] for layer in layers]
        shape = (len(context), height + 1, width + 2)
        self.maps = [context.new_zeros(*shape, n_in) for n_in in widths]
        self.maps[0][:, 1:, 1:-1, self.n_channels :] = context.permute(0, 2, 3, 1)
        self.image = at_least_float32(context.new_zeros(len(context), *network.image_size))

    def parameters(self, row: int, column: int) -> Tensor:
        """Parameters of one pixel given those before it, `[N, P, 1, 1]`."""
        features = self.maps[0][:, row + 1, column + 1]
        for maps, (kernel, bias) in zip(self.maps, self.kernels, strict=True):
            maps[:, row + 1, column + 1] = features
            seen = maps[:, row : row + 2, column : column + 3].flatten(1)
            features = F.linear(seen, kernel, bias).relu_()
        return self.head(features[..., None, None])

    def set_pixel(self, row: int, column: int, values: Tensor) -> None:
        """Write a drawn pixel, `[N, C, 1, 1]`."""
        self.maps[0][:, row + 1, column + 1, : self.n_channels] = values.flatten(1)
        self.image[:, :, row, column] = values.flatten(1)


class AutoregressiveImage(Distribution):
    r"""Distribution over images: :math:`p(x | z) = \prod_i p(x_i | x_{<i}, z)`.

    Parameters
    ----------
    network
        A :class:`PixelCNN`.
    context
        `[..., M, H, W]`.
    likelihood
        From parameters `[..., P, H, W]` to a distribution over images that is independent from
        pixel to pixel given them.
    """

    arg_constraints: ClassVar[dict] = {}
    has_rsample = False

    def __init__(
        self, network: PixelCNN, context: Tensor, likelihood: Callable[[Tensor], Distribution]
    ) -> None:
        self.network, self.context, self.likelihood = network, context, likelihood
        event = torch.Size(network.image_size)
        super().__init__(context.shape[:-3], event, validate_args=False)

    @property
    def support(self) -> Constraint | None:
        """That of the likelihood.

        Raises
        ------
        ValueError
            If the likelihood does not make a pixel of C channels of `n_parameters` numbers.
        """
        one_pixel = self.network.head.weight[:, 0]  # [P, 1, 1], as good as any parameters
        n_parameters = f"n_parameters = {len(one_pixel)}"
        try:
            decoded = self.likelihood(one_pixel)
        except (RuntimeError, ValueError) as error:
            raise_failed(
                f"the likelihood of a PixelCNN failed on {n_parameters} a pixel: if it takes "
                "another number, pass that",
                error,
            )
        found, wanted = tuple(decoded.event_shape), (self.event_shape[0], 1, 1)
        if found != wanted:
            raise ValueError(
                f"the likelihood of a PixelCNN makes of {n_parameters} a pixel of shape {found}, "
                f"but those of the images have (C, 1, 1) = {wanted}: pass a number and a "
                "likelihood that fit."
            )
        return decoded.support

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of images broadcast against the batch: `[...]`, in nats."""
        batch = torch.broadcast_shapes(value.shape[:-3], self.batch_shape)
        value = value.expand(*batch, *self.event_shape)
        context = self.context.expand(*batch, *self.context.shape[-3:])
        rows = value.reshape(-1, *value.shape[-3:]), context.reshape(-1, *context.shape[-3:])
        parameters = self.network(*rows)
        of_batch = parameters.reshape(*batch, *parameters.shape[1:])
        return self.likelihood(of_batch).log_prob(value)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw `[*sample_shape, ..., C, H, W]`; all images advance together, pixel by pixel."""
        batch = torch.Size(sample_shape) + self.batch_shape
        context = self.context.expand(*batch, *self.context.shape[-3:])
        drawn = self.network.sample(context.reshape(-1, *context.shape[-3:]), self.likelihood)
        return drawn.reshape(*batch, *self.event_shape)


class PixelCNNDecoder(nn.Module):
    """A decoder that sees the pixels already drawn: each latent becomes a map beside the image.

    Parameters
    ----------
    latent_sizes
        D of every level, top first.
    image_size
        (C, H, W).
    likelihood
        From parameters to a distribution over images.
    n_parameters
        P, parameters a pixel: C for binary pixels.
    n_features, n_layers
        Size of the :class:`PixelCNN`.
    """

    def __init__(
        self,
        latent_sizes: Sequence[int],
        image_size: tuple[int, int, int],
        likelihood: Callable[[Tensor], Distribution],
        n_parameters: int,
        n_features: int = 64,
        n_layers: int = 8,
    ) -> None:
        super().__init__()
        n_pixels = math.prod(image_size[1:])
        self.latent_sizes, self.image_size = tuple(latent_sizes), image_size
        self.likelihood = likelihood
        self.maps = nn.ModuleList(mlp([n_latent, n_pixels]) for n_latent in latent_sizes)
        self.network = PixelCNN(
            image_size, len(self.latent_sizes), n_parameters, n_features, n_layers
        )
        self.floats_per_row = 3 * max(n_features, n_parameters) * n_pixels

    def forward(self, *zs: Tensor) -> AutoregressiveImage:
        """Decode latents `[..., D]`, one tensor a level: batch `[...]`, event `[C, H, W]`."""
        maps = [
            net(z).unflatten(-1, self.image_size[1:]) for net, z in zip(self.maps, zs, strict=True)
        ]
        return AutoregressiveImage(self.network, torch.stack(maps, dim=-3), self.likelihood)
