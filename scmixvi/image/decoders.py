"""Decoders: modules that map latents of all levels to a torch Distribution over images.

A decoder is a network from latents to parameters `[N, P, H, W]` and a likelihood: a function from
parameters `[..., P, H, W]` to a distribution over images, event `[C, H, W]`, that is independent
from pixel to pixel given the parameters.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributions import Bernoulli, Categorical, Distribution, Independent

from scmixvi._messages import check_whole, is_whole
from scmixvi.core.modes import differentiates_forwards
from scmixvi.core.precision import at_least_float32
from scmixvi.image._checks import check_layers
from scmixvi.image.nets import linear, mlp

Likelihood = Callable[[Tensor], Distribution]


def bernoulli(logits: Tensor) -> Independent:
    """Independent binary pixels.

    Parameters
    ----------
    logits
        `[..., C, H, W]`: one parameter a channel.
    """
    pixels = Bernoulli(logits=at_least_float32(logits), validate_args=False)
    return _BinaryImages(pixels, 3, validate_args=False)


class _BinaryImages(Independent):
    """Independent Bernoulli pixels with a fast log probability."""

    def log_prob(self, value: Tensor) -> Tensor:
        logits, x = self.base_dist.logits.flatten(-3), value.flatten(-3)
        if differentiates_forwards():  # with a jvp of its own torch would not compile the other
            return (x * logits + F.logsigmoid(-logits)).sum(-1)
        return _BernoulliLogProb.apply(logits, x)


class _BernoulliLogProb(torch.autograd.Function):
    r"""Sum over pixels of :math:`x l - \max(l, 0) + \log \sigma(|l|)`, for logits l `[..., P]`.

    The logarithm is taken of products of up to 120 factors, which are at least 1/2 each and so
    cannot underflow: on a CPU a logarithm of every pixel costs ten times as much as all the rest.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, x: Tensor) -> Tensor:
        n_pixels = logits.shape[-1]
        group = max(n for n in range(1, 121) if n_pixels % n == 0)
        factors = logits.abs().sigmoid_().unflatten(-1, (-1, group))
        linear_term = torch.addcmul(logits.relu(), logits, x, value=-1)
        return factors.prod(-1).log_().sum(-1) - linear_term.sum(-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        logits, x = ctx.saved_tensors
        gradient, to_logits, to_x = gradient.unsqueeze(-1), None, None
        if ctx.needs_input_grad[0]:
            to_logits = (x - logits.sigmoid()).mul_(gradient)
        if ctx.needs_input_grad[1]:
            to_x = (logits * gradient).sum_to_size(x.shape)
        return to_logits, to_x


class DiscretizedLogisticMixture(Distribution):
    r"""Mixture of logistics, cut into the levels of a pixel; later channels see earlier ones.

    A pixel value k / (n_levels - 1) stands for all of the continuous values nearest to it, the
    outermost two for everything beyond. So the probabilities of all levels sum to 1. The mean of
    channel c is :math:`m_c + \sum_{b<c} \tanh(a_{cb}) x_b` on a scale from -1 to 1.

    Parameters
    ----------
    parameters
        `[..., P, H, W]`; for each mixture member a logit, C means, C log-scales (clamped to
        [-7, 7]) and C (C - 1) / 2 coefficients between channels.
    n_channels
        C.
    n_levels
        Levels of a pixel, 256 for 8 bits; at least 2.

    Raises
    ------
    ValueError
        If `n_levels` is no whole number of at least 2.

    References
    ----------
    Salimans et al. 2017, "PixelCNN++" (its likelihood, without the approximation at the edges).
    """

    arg_constraints: ClassVar[dict] = {}
    has_rsample = False

    def __init__(self, parameters: Tensor, n_channels: int, n_levels: int = 256) -> None:
        if type(n_levels) is not int or n_levels < 2:
            check_whole("n_levels of a DiscretizedLogisticMixture", n_levels, least=2)
        parameters = at_least_float32(parameters)
        pairs = n_channels * (n_channels - 1) // 2
        members = parameters.unflatten(-3, (-1, 1 + 2 * n_channels + pairs))  # [..., M, P/M, H, W]
        logit, means, log_scales, raw = members.split([1, n_channels, n_channels, pairs], dim=-3)
        self.log_weights = logit.squeeze(-3).log_softmax(dim=-3)
        self.means, self.log_scales = means, log_scales.clamp(-7.0, 7.0)
        self.coefficients = raw.tanh()
        self.n_channels, self.top = n_channels, n_levels - 1
        event = torch.Size((n_channels, *parameters.shape[-2:]))
        super().__init__(parameters.shape[:-3], event, validate_args=False)

    @staticmethod
    def n_parameters(n_channels: int, n_mixtures: int) -> int:
        """P, parameters a pixel."""
        return n_mixtures * (1 + 2 * n_channels + n_channels * (n_channels - 1) // 2)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of images `[..., C, H, W]` with values in [0, 1]: `[...]`, in nats.

        A value between two levels counts as the nearer one.
        """
        level = (value * self.top).round().unsqueeze(-4)
        x = level * (2 / self.top) - 1
        centred, slope = x - self._means_given(x), (-self.log_scales).exp()
        log_below = F.logsigmoid((centred + 1 / self.top) * slope)
        log_above = F.logsigmoid((1 / self.top - centred) * slope)
        inside = log_below + log_above + torch.log(-torch.expm1(-2 / self.top * slope))
        upwards = torch.where(level == self.top, log_above, inside)
        log_pixel = torch.where(level == 0, log_below, upwards).sum(dim=-3)
        return torch.logsumexp(log_pixel + self.log_weights, dim=-3).sum(dim=(-2, -1))

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw `[*sample_shape, ..., C, H, W]`, on the levels."""
        batch = torch.Size(sample_shape) + self.batch_shape
        logits = self.log_weights.expand(*batch, *self.log_weights.shape[-3:])
        member = Categorical(logits=logits.movedim(-3, -1)).sample()[..., None, :, :]
        shape = (*batch, *self.event_shape)
        uniform = torch.rand(shape, dtype=self.means.dtype, device=self.means.device)
        noise = torch.logit(uniform, eps=torch.finfo(self.means.dtype).eps)
        x = torch.zeros_like(noise)
        for c in range(self.n_channels):
            mean = self._of_member(self._means_given(x.unsqueeze(-4))[..., c, :, :], member)
            scale = self._of_member(self.log_scales[..., c, :, :], member).exp()
            level = ((mean + scale * noise[..., c, :, :] + 1) * (self.top / 2)).round()
            x[..., c, :, :] = level.clamp(0, self.top) * (2 / self.top) - 1
        return (x + 1) / 2

    def _means_given(self, x: Tensor) -> Tensor:
        """Means given the earlier channels of x `[..., 1, C, H, W]`: `[..., M, C, H, W]`."""
        shifts = [torch.zeros_like(self.log_weights)]
        start = 0
        for c in range(1, self.n_channels):
            own = self.coefficients[..., start : start + c, :, :] * x[..., :c, :, :]
            shifts.append(own.sum(dim=-3))
            start += c
        return self.means + torch.stack(torch.broadcast_tensors(*shifts), dim=-3)

    @staticmethod
    def _of_member(values: Tensor, member: Tensor) -> Tensor:
        """Take the drawn member's value from `[..., M, H, W]`: `[..., H, W]`."""
        values = values.expand(*member.shape[:-3], *values.shape[-3:])
        return values.gather(-3, member).squeeze(-3)


class Decoder(nn.Module):
    """A decoder whose parameters do not depend on the image: a network and a likelihood.

    Parameters
    ----------
    net
        Maps the latents of all levels, side by side, `[N, sum of D]`, to `[N, P, H, W]`.
    likelihood
        From parameters to a distribution over images.
    latent_sizes
        D of every level, top first.
    image_size
        (C, H, W).
    floats_per_row
        About how many numbers one latent takes while it is decoded; `ImageVAE.nll` sizes its
        chunks by it.
    """

    def __init__(
        self,
        net: nn.Module,
        likelihood: Likelihood,
        latent_sizes: Sequence[int],
        image_size: tuple[int, int, int],
        floats_per_row: int | None = None,
    ) -> None:
        super().__init__()
        self.net, self.likelihood = net, likelihood
        self.latent_sizes, self.image_size = tuple(latent_sizes), image_size
        self.floats_per_row = floats_per_row or 16 * math.prod(image_size)

    def forward(self, *zs: Tensor) -> Distribution:
        """Decode latents `[..., D]`, one tensor a level: batch `[...]`, event `[C, H, W]`."""
        z = torch.cat(zs, dim=-1)
        maps = self.net(z.reshape(-1, z.shape[-1]))
        return self.likelihood(maps.unflatten(0, z.shape[:-1]) if z.dim() > 1 else maps.squeeze(0))


def mlp_net(
    n_latent: int, n_hidden: Sequence[int], shape: Sequence[int], gated: bool = True
) -> nn.Sequential:
    """Fully connected network from latents `[N, n_latent]` to maps `[N, *shape]`.

    Raises
    ------
    ValueError
        If there is no hidden layer.
    """
    check_layers("n_hidden of mlp_net", n_hidden)
    layers = mlp([n_latent, *n_hidden], gated)
    layers.append(linear(n_hidden[-1], math.prod(shape)))
    return layers.append(nn.Unflatten(1, tuple(shape)))


def transposed_conv_net(
    n_latent: int, channels: Sequence[int], shape: Sequence[int], kernel_size: int = 4
) -> nn.Sequential:
    """Transposed convolutions from latents `[N, n_latent]` to maps `[N, *shape]`.

    Parameters
    ----------
    n_latent
        Features in.
    channels
        Channels before each of the layers; every layer doubles height and width.
    shape
        (P, H, W) of the maps; H and W divisible by 2 to the number of layers.
    kernel_size
        Even, at least 2.

    Raises
    ------
    ValueError
        If H or W does not divide, there is no layer, or the kernel is odd.
    """
    check_layers("channels of transposed_conv_net", channels)
    if not is_whole(kernel_size, least=2) or kernel_size % 2:
        raise ValueError(
            "kernel_size of transposed_conv_net must be an even number of at least 2, so that "
            f"every layer doubles height and width, but it is {kernel_size!r}."
        )
    n_out, height, width = shape
    factor = 2 ** len(channels)
    if height % factor or width % factor:
        raise ValueError(
            f"{len(channels)} transposed convolutions need height and width divisible by {factor}, "
            f"but the image is {height} x {width}: give fewer channels."
        )
    first = (channels[0], height // factor, width // factor)
    layers: list[nn.Module] = [linear(n_latent, math.prod(first)), nn.Unflatten(1, first)]
    for n_in, n_next in zip(channels, [*channels[1:], n_out], strict=True):
        up = nn.ConvTranspose2d(n_in, n_next, kernel_size, stride=2, padding=kernel_size // 2 - 1)
        layers += [nn.ReLU(), up]
    return nn.Sequential(*layers)
