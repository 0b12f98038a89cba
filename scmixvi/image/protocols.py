"""What an image VAE asks of its parts. Any module that answers will do; none has to inherit."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor
from torch.distributions import Distribution

from scmixvi.core import MixturePosterior


class JointDensity(Protocol):
    """A distribution over the latents of all levels; it may have `floats_per_row`."""

    def log_prob(self, zs: Sequence[Tensor]) -> Tensor:
        """Log density of latents, one tensor `[..., D]` a level, top first: `[...]`, in nats."""

    def sample(self, n: int) -> tuple[Tensor, ...]:
        """Draw n latents, `[n, D]` a level."""


class PosteriorPart(Protocol):
    """What an :class:`ImageVAE` asks of its posterior.

    Three attributes may be there: `allows_path_gradients` says that encoding the same images twice
    gives the same, whichever components are encoded; `log_weights`, `[S]`, are what the estimators
    "s2a" and "s2s" draw components by before any image is encoded (uniform where it is None or
    not there), for "s2a" those of `posterior(x)`; `floats_per_row` is about how many numbers one
    draw takes while it is scored under all components, by which `ImageVAE.nll` sizes its chunks.
    """

    n_components: int
    latent_sizes: tuple[int, ...]
    image_size: tuple[int, int, int]

    def __call__(self, x: Tensor, *components: Tensor) -> MixturePosterior:
        """Encode images `[B, C, H, W]`.

        The weights of the mixture are those of what is returned: given, learned or one set an
        image.

        For the estimator "s2s", and for "s2a" with path gradients, it is called with the drawn
        components, `[A]`, as second argument, and returns the uniform mixture of these alone.
        """


class PriorPart(Protocol):
    """What an :class:`ImageVAE` asks of its prior."""

    latent_sizes: tuple[int, ...]

    def __call__(self) -> JointDensity:
        """Build the density; what is the same for all latents is computed here."""


class DecoderPart(Protocol):
    """What an :class:`ImageVAE` asks of its decoder; it may have `floats_per_row`."""

    latent_sizes: tuple[int, ...]
    image_size: tuple[int, int, int]

    def __call__(self, *zs: Tensor) -> Distribution:
        """Decode latents `[..., D]`, one tensor a level: batch `[...]`, event `[C, H, W]`."""
