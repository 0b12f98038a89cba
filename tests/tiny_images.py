"""Image models small enough to integrate exactly, built from any combination of parts."""

import itertools
import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scmixvi.core import MixturePosterior, log_mixture
from scmixvi.core.priors import GaussianConditional, Prior, StandardNormal, VampPrior
from scmixvi.image import ImageVAE, recipes
from scmixvi.image.decoders import Decoder, DiscretizedLogisticMixture, bernoulli, mlp_net
from scmixvi.image.flows import AffineCoupling, InverseAutoregressiveFlow
from scmixvi.image.nets import StackedConv2d, StackedLinear, mlp
from scmixvi.image.pixelcnn import PixelCNNDecoder
from scmixvi.image.posteriors import AmortizedPosterior, LowerEncoder, TopEncoder

SIZES = {
    "image_size": (1, 2, 2),
    "channels": (2, 3, 2, 2, 2),
    "n_hidden": 5,
    "n_flow_hidden": 7,
    "n_features": 4,
    "n_layers": 2,
    "n_pseudo_inputs": 3,
}


# Sizes for every recipe at 28 x 28 (CIFAR-10: 32 x 32) pixels, as a configuration holds them.
_TINY_CONV = {
    "channels": [2, 2, 2, 2, 2],
    "n_latent": 4,
    "n_hidden": 8,
    "n_features": 4,
    "n_layers": 2,
}
TINY_RECIPES = {
    "mlp": {"n_latent": 4, "encoder_hidden": [16], "decoder_hidden": [16]},
    "vanilla": _TINY_CONV,
    "hierarchical": _TINY_CONV,
    "iaf": _TINY_CONV | {"n_flow_hidden": 8},
    "vamp": _TINY_CONV | {"n_pseudo_inputs": 5},
    "hierarchical_vamp": _TINY_CONV | {"n_pseudo_inputs": 5},
    "composite": _TINY_CONV | {"n_flow_hidden": 8, "n_pseudo_inputs": 5},
    "cifar_vanilla": _TINY_CONV,
}


def combination(n_levels, flow, prior, decoder, n_components, image_size=(1, 3, 2)):
    """A model of D = 2, 3, 4 latents (top first) with the named parts, in float64."""
    latents = [2, 3, 4][:n_levels]
    n_pixels = image_size[0] * image_size[1] * image_size[2]

    def features():
        return nn.Sequential(nn.Flatten(), mlp([n_pixels, 7], n_components=n_components))

    levels = [TopEncoder(features(), 7, latents[0], n_components)]
    for above, size in itertools.pairwise(latents):
        levels.append(LowerEncoder(features(), 7, above, size, 5, n_components))
    flows = [None] * n_levels
    if flow == "iaf":
        flows[-1] = InverseAutoregressiveFlow(latents[-1], 2, (5, 5))
    elif flow == "coupling":
        flows[-1] = AffineCoupling(latents[-1], n_components, 2, (5,))
    posterior = AmortizedPosterior(levels, n_components, image_size, flows)
    top = StandardNormal(latents[0])
    if prior == "vamp":
        top = VampPrior(levels[0], recipes.PseudoInputs(3, image_size, 0.5, 0.1), latents[0])
    below = [
        GaussianConditional(nn.Linear(above, 2 * size), size)
        for above, size in itertools.pairwise(latents)
    ]
    model = ImageVAE(posterior, Prior(top, *below), _decoder(decoder, latents, image_size))
    return model.double()


def _decoder(name, latents, image_size):
    n_channels, *area = image_size
    if name == "mlp":
        return Decoder(mlp_net(sum(latents), [5], image_size), bernoulli, latents, image_size)
    if name == "pixelcnn":
        return PixelCNNDecoder(latents, image_size, bernoulli, n_channels, 4, 2)
    likelihood = partial(DiscretizedLogisticMixture, n_channels=n_channels, n_levels=4)
    n_parameters = DiscretizedLogisticMixture.n_parameters(n_channels, 3)
    net = mlp_net(sum(latents), [5], (n_parameters, *area))
    return Decoder(net, likelihood, latents, image_size)


def recipe(name, n_components=2, **sizes):
    """A recipe at tiny size, in float64 and evaluation mode, its weights spread out.

    Every weight is larger than at the start of training, so that the components differ, images
    depend on latents, and a bound has a gap. The posterior is wider than the prior, so that
    importance weights have a variance.
    """
    torch.manual_seed(1)
    if name == "mlp":
        tiny = {"n_latent": 2, "encoder_hidden": (5,), "decoder_hidden": (5,)}
        tiny["image_size"] = SIZES["image_size"]
    else:
        own = {"n_pseudo_inputs"} if "vamp" not in name and name != "composite" else set()
        tiny = {key: value for key, value in SIZES.items() if key not in own}
        tiny["n_latent"] = (
            (1, 2) if name in ("hierarchical", "hierarchical_vamp", "composite") else 2
        )
    if name == "cifar_vanilla":
        tiny["image_size"] = (3, 2, 2)
    model = recipes.by_name(name)(n_components, **{**tiny, **sizes}).double().eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "pixels" in key:
                parameter.uniform_(0.1, 0.9)
            elif "norm" not in key:
                parameter.mul_(2.5 if "decoder" in key else 1.5)
        for level in model.posterior.levels:
            level.head.bias[..., level.n_latent :] += 1.0
        spread_batch_norms(model)
    return model


def spread_batch_norms(model):
    """Give batch norms running statistics and weights as after training."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.3, 0.3)
            part.running_var.uniform_(0.5, 1.5)
            part.weight.data.uniform_(0.5, 1.5)
            part.bias.data.uniform_(-0.3, 0.3)


def all_images(image_size, levels=(0.0, 1.0)):
    """Every image whose pixels take these values, `[N, C, H, W]`."""
    n_pixels = image_size[0] * image_size[1] * image_size[2]
    values = list(itertools.product(levels, repeat=n_pixels))
    return torch.tensor(values, dtype=torch.float64).reshape(-1, *image_size)


def images_for(name):
    if name == "cifar_vanilla":
        return (torch.randint(0, 256, (3, 3, 2, 2)) / 255).double()
    return all_images((1, 2, 2))[[0, 3, 9, 15]]


class Weighted(nn.Module):
    """A posterior with other weights, `[S]` or `[S, B]` for images: no attribute names them."""

    def __init__(self, posterior, log_weights):
        super().__init__()
        self.inner, self.log_weights_of = posterior, log_weights
        self.n_components, self.latent_sizes = posterior.n_components, posterior.latent_sizes
        self.image_size, self.allows_path_gradients = posterior.image_size, True

    def forward(self, x, *components):
        if components:
            return self.inner(x, *components)
        return MixturePosterior(self.inner(x).stages, self.log_weights_of(x))


def amortised(x):
    """The more pixels are on, the more the last components count."""
    return (x.mean((1, 2, 3)) * x.new_tensor([[-3.0], [0.0], [3.0]])).log_softmax(0)


class Integrals(NamedTuple):
    """What a grid over all latents says: log p(x) `[B]`, the limit of Eq. 17 in L `[B]`, and the
    integral of the prior, which is 1 where the grid is wide and fine enough.
    """

    log_evidence: Tensor
    stratified_limit: Tensor
    prior_mass: Tensor


@torch.no_grad()
def integrate(model, x, half_width=15.0, step=0.6):
    r"""Integrate by the trapezoid rule.

    Eq. 17 tends to :math:`\sum_s \pi_s \log E_{q_s}[p(x, z) / q_\pi(z | x)]`, at most log p(x).
    """
    n_dims = sum(model.latent_sizes)
    axis = torch.arange(-half_width, half_width + step / 2, step, dtype=torch.float64)
    points = torch.cartesian_prod(*[axis] * n_dims)
    log_prior = model.prior().log_prob(points.split(model.latent_sizes, dim=1))
    log_prior = log_prior + n_dims * math.log(step)
    kept = log_prior > log_prior.max() - 32
    zs = [z[:, None, None] for z in points[kept].split(model.latent_sizes, dim=1)]
    log_joint = (model.decoder(*zs).log_prob(x) + log_prior[kept, None, None])[:, 0]  # [N, B]
    posterior = model.posterior(x)
    log_q = posterior.log_prob_all([z.expand(-1, 1, len(x), -1) for z in zs])
    log_weight = log_joint - log_mixture(log_q, posterior.log_weights)[:, 0]
    strata = torch.logsumexp(log_q[:, 0] + log_weight.unsqueeze(1), dim=0)  # [S, B]
    log_pi = posterior.log_weights_like(strata)
    limit = torch.where(log_pi.isneginf(), 0.0, log_pi.exp() * strata).sum(0)
    return Integrals(torch.logsumexp(log_joint, 0), limit, log_prior.logsumexp(0).exp())


def permute_components(model, order):
    """Reorder the components of every stacked layer."""
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, StackedLinear | StackedConv2d):
                part.weight.copy_(part.weight[order])
                part.bias.copy_(part.bias[order])
