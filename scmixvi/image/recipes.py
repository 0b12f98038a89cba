"""The paper's image models, composed from parts; every size is a keyword with the paper's value.

A recipe is a function `(n_components=1, **sizes) -> ImageVAE`. The architectures are those of
Tomczak & Welling 2018 and of Kviman et al. 2022, section 4.2 and appendices C and D.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from scmixvi._messages import check_whole, is_whole
from scmixvi.core import (
    GaussianConditional,
    Level,
    Prior,
    StandardNormal,
    VampPrior,
    log_weights_from,
)
from scmixvi.image._checks import check_layers, is_row
from scmixvi.image.decoders import (
    Decoder,
    DiscretizedLogisticMixture,
    Likelihood,
    bernoulli,
    mlp_net,
)
from scmixvi.image.flows import InverseAutoregressiveFlow
from scmixvi.image.nets import (
    ComponentSequential,
    ConvFeatures,
    TrunkConvFeatures,
    linear,
    trunk_mlp,
)
from scmixvi.image.nets import mlp as mlp_layers
from scmixvi.image.pixelcnn import PixelCNNDecoder
from scmixvi.image.posteriors import AmortizedPosterior, LowerEncoder, TopEncoder
from scmixvi.image.vae import ImageVAE

ENCODER_SHARING = ("separate", "trunk")
TOP_KERNELS, LOWER_KERNELS, STRIDES = (7, 3, 5, 3, 3), (3, 3, 3, 3, 3), (1, 2, 1, 2, 1)


class PseudoInputs(nn.Module):
    """K learned images: parameters clamped to [0, 1].

    Parameters
    ----------
    n_pseudo_inputs
        K.
    image_size
        (C, H, W).
    mean, std
        Of the Gaussian that the pixels start from. A pixel outside [0, 1] gets no gradient.
    """

    def __init__(
        self,
        n_pseudo_inputs: int,
        image_size: Sequence[int],
        mean: float = 0.05,
        std: float = 0.01,
    ) -> None:
        super().__init__()
        self.pixels = nn.Parameter(torch.randn(n_pseudo_inputs, *image_size) * std + mean)

    def forward(self) -> Tensor:
        """Return the images, `[K, C, H, W]`."""
        return self.pixels.clamp(0.0, 1.0)


def mlp(
    n_components: int = 1,
    *,
    image_size: tuple[int, int, int] = (1, 28, 28),
    n_latent: int | Sequence[int] = 40,
    encoder_hidden: Sequence[int] = (300, 300),
    decoder_hidden: Sequence[int] = (300, 300),
    encoder_gated: bool = True,
    decoder_gated: bool = True,
    weights: Sequence[float] | None = None,
    encoder_sharing: str = "separate",
) -> ImageVAE:
    """Fully connected encoders and decoder, one level, standard normal prior, binary pixels.

    Parameters
    ----------
    n_components
        S.
    image_size
        (C, H, W).
    n_latent
        D.
    encoder_hidden, decoder_hidden
        Units of every hidden layer; the decoder has at least one, and so has a trunk.
    encoder_gated, decoder_gated
        Gated layers, or ReLUs. Table 7 has an encoder without gates and a gated decoder.
    weights
        S mixture weights that sum to 1; None is uniform.
    encoder_sharing
        "separate": S encoders; "trunk": one for all, told apart by a vector a component in the
        last hidden layer.

    Raises
    ------
    ValueError
        If S, D or a layer is below 1, the decoder or a trunk has no hidden layer, the weights do
        not fit, or the sharing is unknown.
    """
    _check(image_size, n_components=n_components)
    trunk = _is_trunk(encoder_sharing)
    (n_latent,) = _level_sizes(n_latent, 1)
    check_layers("encoder_hidden", encoder_hidden, at_least=int(trunk))
    check_layers("decoder_hidden", decoder_hidden)
    n_pixels = image_size[0] * image_size[1] * image_size[2]
    sizes = [n_pixels, *encoder_hidden]
    layers = (trunk_mlp if trunk else mlp_layers)(sizes, encoder_gated, n_components)
    features = ComponentSequential(nn.Flatten(), layers)
    top = TopEncoder(features, sizes[-1], n_latent, n_components, 1 if trunk else None)
    posterior = AmortizedPosterior(
        [top], n_components, image_size, log_weights=_log_weights(weights, n_components)
    )
    net = mlp_net(n_latent, decoder_hidden, image_size, decoder_gated)
    floats = 4 * max(n_pixels, *decoder_hidden)
    decoder = Decoder(net, bernoulli, [n_latent], image_size, floats)
    return ImageVAE(posterior, Prior(StandardNormal(n_latent)), decoder)


def convolutional(
    n_components: int = 1,
    *,
    n_levels: int = 1,
    n_flow_steps: int = 0,
    n_pseudo_inputs: int = 0,
    image_size: tuple[int, int, int] = (1, 28, 28),
    n_latent: int | Sequence[int] = 40,
    channels: Sequence[int] = (32, 32, 64, 64, 6),
    n_hidden: int = 300,
    n_flow_hidden: int = 320,
    n_features: int = 64,
    n_layers: int = 8,
    likelihood: Likelihood = bernoulli,
    n_parameters: int | None = None,
    weights: Sequence[float] | None = None,
    encoder_sharing: str = "separate",
) -> ImageVAE:
    """Gated convolutional encoders and a PixelCNN: what all recipes but `mlp` are made of.

    Parameters
    ----------
    n_components
        S.
    n_levels
        H, levels of latents.
    n_flow_steps
        T, steps of the inverse autoregressive flow on the lowest level; 0 is no flow.
    n_pseudo_inputs
        K, pseudo-inputs of a VampPrior on the top level; 0 is a standard normal.
    image_size
        (C, H, W).
    n_latent
        D of every level, or one number a level, top first.
    channels
        Of the five convolutions of an encoder.
    n_hidden
        Units of the joint layer of a lower encoder and of both layers of p(z | level above).
    n_flow_hidden
        Units of both hidden layers of a flow's networks.
    n_features, n_layers
        Size of the PixelCNN.
    likelihood, n_parameters
        Distribution of the pixels given n_parameters maps; None is one map a channel.
    weights
        S mixture weights that sum to 1; None is uniform.
    encoder_sharing
        "separate": S encoders; "trunk": one for all, whose convolutions are followed by a dense
        gated layer with a vector a component, as many features wide.

    Raises
    ------
    ValueError
        If S, H, a layer or `n_parameters` is no whole number of at least 1, the numbers of
        channels, of latents or the weights do not fit, the likelihood is no function, or the
        sharing is unknown.
    """
    counts = {"n_components": n_components, "n_levels": n_levels}
    counts |= {} if n_parameters is None else {"n_parameters": n_parameters}
    _check(image_size, **counts, n_hidden=n_hidden, n_features=n_features, n_layers=n_layers)
    check_layers("channels", channels, len(STRIDES))
    if not callable(likelihood):
        raise ValueError(
            "likelihood must be a function from parameters to a distribution over images, such as "
            f"scmixvi.image.decoders.bernoulli, the default, but it is {likelihood!r}."
        )
    trunk = _is_trunk(encoder_sharing)
    for name, value in (("n_flow_steps", n_flow_steps), ("n_pseudo_inputs", n_pseudo_inputs)):
        if not is_whole(value, least=0):
            raise ValueError(
                f"{name} must be a whole number of at least 0, which is none, but it is {value!r}."
            )
    sizes = _level_sizes(n_latent, n_levels)
    log_weights = _log_weights(weights, n_components)
    kind, n_heads = (TrunkConvFeatures, 1) if trunk else (ConvFeatures, n_components)
    features = partial(kind, n_components, image_size, channels, strides=STRIDES)
    net = features(TOP_KERNELS)
    levels: list[Level] = [TopEncoder(net, net.n_features, sizes[0], n_components, n_heads)]
    for above, size in pairwise(sizes):
        net = features(LOWER_KERNELS)
        lower = LowerEncoder(net, net.n_features, above, size, n_hidden, n_components, n_heads)
        levels.append(lower)
    flows: list[nn.Module | None] = [None] * n_levels
    if n_flow_steps:
        flows[-1] = InverseAutoregressiveFlow(sizes[-1], n_flow_steps, (n_flow_hidden,) * 2)
    posterior = AmortizedPosterior(levels, n_components, image_size, flows, log_weights)
    top: Level = StandardNormal(sizes[0])
    if n_pseudo_inputs:
        pseudo_inputs = PseudoInputs(n_pseudo_inputs, image_size)
        top = VampPrior(levels[0], pseudo_inputs, sizes[0], log_weights)
    below = [_conditional_prior(*pair, n_hidden) for pair in pairwise(sizes)]
    n_maps = image_size[0] if n_parameters is None else n_parameters
    decoder = PixelCNNDecoder(sizes, image_size, likelihood, n_maps, n_features, n_layers)
    return ImageVAE(posterior, Prior(top, *below), decoder)


def vanilla(n_components: int = 1, **sizes: Any) -> ImageVAE:
    """One level, standard normal prior, PixelCNN: the base of Table 1. See `convolutional`."""
    return convolutional(n_components, **sizes)


def hierarchical(n_components: int = 1, **sizes: Any) -> ImageVAE:
    """Two levels (Eq. 5, 6), learned Gaussian between them. See `convolutional`."""
    return convolutional(n_components, **{"n_levels": 2, **sizes})


def iaf(n_components: int = 1, **sizes: Any) -> ImageVAE:
    """Vanilla with two steps of an inverse autoregressive flow. See `convolutional`."""
    return convolutional(n_components, **{"n_flow_steps": 2, **sizes})


def vamp(n_components: int = 1, **sizes: Any) -> ImageVAE:
    """Vanilla with a VampPrior of 500 pseudo-inputs (Eq. 8). See `convolutional`."""
    return convolutional(n_components, **{"n_pseudo_inputs": 500, **sizes})


def hierarchical_vamp(n_components: int = 1, **sizes: Any) -> ImageVAE:
    """Two levels with a VampPrior on the top one: the composite without flows."""
    return convolutional(n_components, **{"n_levels": 2, "n_pseudo_inputs": 500, **sizes})


def composite(n_components: int = 1, **sizes: Any) -> ImageVAE:
    """Two levels, a flow on the lower, a VampPrior on the upper (Eq. 16). See `convolutional`."""
    paper = {"n_levels": 2, "n_flow_steps": 2, "n_pseudo_inputs": 500}
    return convolutional(n_components, **{**paper, **sizes})


def cifar_vanilla(n_components: int = 1, *, n_mixtures: int = 3, **sizes: Any) -> ImageVAE:
    """Vanilla for 8-bit colour images, with a mixture of discretised logistics a pixel.

    Parameters
    ----------
    n_components
        S.
    n_mixtures
        Members of the mixture of logistics.
    sizes
        Those of `convolutional`, but for the likelihood and its number of parameters.

    Raises
    ------
    ValueError
        If `n_mixtures` is below 1, a likelihood is given, or `convolutional` refuses a size.
    """
    for name in ("likelihood", "n_parameters"):
        if name in sizes:
            raise ValueError(
                f"cifar_vanilla takes no {name}, for its pixels are discretised logistics: "
                "use the recipe vanilla for another likelihood."
            )
    paper: dict = {"image_size": (3, 32, 32), "n_latent": 124, **sizes}
    _check(paper["image_size"], n_mixtures=n_mixtures)
    n_channels = paper["image_size"][0]
    paper["likelihood"] = partial(DiscretizedLogisticMixture, n_channels=n_channels)
    paper["n_parameters"] = DiscretizedLogisticMixture.n_parameters(n_channels, n_mixtures)
    return convolutional(n_components, **paper)


RECIPES: dict[str, Callable[..., ImageVAE]] = {
    recipe.__name__: recipe
    for recipe in (
        mlp,
        vanilla,
        hierarchical,
        iaf,
        vamp,
        hierarchical_vamp,
        composite,
        cifar_vanilla,
    )
}


def by_name(name: str) -> Callable[..., ImageVAE]:
    """Return the recipe of that name.

    Raises
    ------
    ValueError
        If there is none.
    """
    if name not in RECIPES:
        raise ValueError(f"there is no recipe {name!r}; the recipes are {', '.join(RECIPES)}.")
    return RECIPES[name]


def _conditional_prior(n_above: int, n_latent: int, n_hidden: int) -> GaussianConditional:
    net = mlp_layers([n_above, n_hidden, n_hidden]).append(linear(n_hidden, 2 * n_latent))
    return GaussianConditional(net, n_latent)


def _level_sizes(n_latent: Any, n_levels: int) -> list[int]:
    sizes = list(n_latent) if is_row(n_latent) else [n_latent] * n_levels
    if len(sizes) != n_levels or not all(is_whole(size) for size in sizes):
        raise ValueError(
            f"n_latent (D) must be whole numbers of at least 1, one for all or one for each of the "
            f"{n_levels} levels, but it is {n_latent!r}."
        )
    return [int(size) for size in sizes]


def _log_weights(weights: Sequence[float] | None, n_components: int) -> Tensor | None:
    return None if weights is None else log_weights_from(weights, n_components)


def _is_trunk(encoder_sharing: str) -> bool:
    if encoder_sharing not in ENCODER_SHARING:
        raise ValueError(
            f"encoder_sharing must be one of {list(ENCODER_SHARING)}, "
            f"but it is {encoder_sharing!r}."
        )
    return encoder_sharing == "trunk"


def _check(image_size: Sequence[int], **counts: int) -> None:
    """Refuse sizes that make no model; `counts` are a name's value, at least 1."""
    for name, value in counts.items():
        letter = {"n_components": " (S)", "n_levels": " (H)"}.get(name, "")
        check_whole(f"{name}{letter}", value)
    is_size = isinstance(image_size, Sequence) and len(image_size) == 3
    if not is_size or not all(is_whole(size) for size in image_size):
        raise ValueError(
            f"image_size must be (C, H, W), three positive whole numbers, but it is {image_size!r}."
        )
