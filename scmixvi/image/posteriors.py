"""Amortised mixture posteriors over images: S encoders a level, any number of levels.

A level is a module: `level(x)` runs what depends on the images alone, once, and returns the
conditional of a :class:`~scmixvi.core.Stage`.
"""

from collections.abc import Callable, Sequence
from typing import cast

from torch import Tensor, nn
from torch.distributions import Independent

from scmixvi.core import Level, MixturePosterior, Stage, diagonal_normal
from scmixvi.core.posterior import Flow
from scmixvi.image.nets import StackedLinear, mlp


class TopEncoder(Level):
    """q(z | x) of the top level, S Gaussians.

    Parameters
    ----------
    features
        Maps images `[B, C, H, W]` to features `[S, B, n_features]`, all components together.
    n_features, n_latent
        Sizes of the features and of the level, D.
    n_components
        S.
    """

    def __init__(
        self, features: nn.Module, n_features: int, n_latent: int, n_components: int
    ) -> None:
        super().__init__()
        self.features, self.n_latent = features, n_latent
        self.head = StackedLinear(n_components, n_features, 2 * n_latent)
        self.floats_per_row = 4 * n_components * n_latent

    def forward(self, x: Tensor) -> Callable[[], Independent]:
        """Encode images; the conditional takes nothing and has batch `[S, B]`, event `[D]`."""
        base = diagonal_normal(self.head(self.features(x)))
        return lambda: base


class LowerEncoder(Level):
    """q(z | level above, x) of a level that is not the top, S Gaussians.

    Every sample, whichever component drew it, runs through all S encoders (Eq. 5): S x S heads,
    evaluated once as S products. What depends on x alone is computed once an image.

    Parameters
    ----------
    features
        Maps images `[B, C, H, W]` to features `[S, B, n_features]`.
    n_features, n_above, n_latent
        Sizes of the features, of the level above, and of the level itself, D.
    n_hidden
        Size of the joint gated layer.
    n_components
        S.
    """

    def __init__(
        self,
        features: nn.Module,
        n_features: int,
        n_above: int,
        n_latent: int,
        n_hidden: int,
        n_components: int,
    ) -> None:
        super().__init__()
        self.features, self.n_latent = features, n_latent
        self.above = mlp([n_above, n_features], n_components=n_components)
        self.joint = StackedLinear(n_components, 2 * n_features, 2 * n_hidden)
        self.gate = nn.GLU(dim=-1)
        self.head = StackedLinear(n_components, n_hidden, 2 * n_latent)
        self.floats_per_row = n_components * (3 * n_features + 5 * n_hidden + 8 * n_latent)

    def forward(self, x: Tensor) -> Callable[..., Independent]:
        """Encode images; the conditional takes the levels above, batch `[L, S, S, B]`."""
        features = self.features(x)
        weight_x, weight_z = self.joint.weight.chunk(2, dim=1)
        from_x = (features @ weight_x + self.joint.bias).unsqueeze(1)  # [S, 1, B, 2 * n_hidden]

        def conditional(*above: Tensor) -> Independent:
            z = above[-1]
            from_z = self.above(z.flatten(0, 2)) @ weight_z  # [S, L * S * B, 2 * n_hidden]
            from_z = from_z.unflatten(1, (-1, z.shape[2]))  # [S, L * S, B, 2 * n_hidden]
            hidden = self.gate(from_z + from_x).flatten(1, 2)
            parameters = self.head(hidden).unflatten(1, z.shape[:3])  # scored under first
            return diagonal_normal(parameters.movedim(0, 2))

        return conditional


class AmortizedPosterior(nn.Module):
    """The mixture posterior as a function of images.

    Parameters
    ----------
    levels
        Modules with `n_latent`, top first: a :class:`TopEncoder`, then :class:`LowerEncoder` s.
    flows
        One a level, or None where a level has no flow; None is no flow at all.
    n_components
        S.
    image_size
        (C, H, W) of the images.
    log_weights
        `[S]`, normalised over S; None is uniform.
    """

    log_weights: Tensor | None

    def __init__(
        self,
        levels: Sequence[Level],
        n_components: int,
        image_size: tuple[int, int, int],
        flows: Sequence[nn.Module | None] | None = None,
        log_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList(levels)
        self.flows = nn.ModuleList(cast("Sequence[nn.Module]", flows or [None] * len(levels)))
        self.n_components, self.image_size = n_components, image_size
        self.latent_sizes = tuple(level.n_latent for level in levels)
        self.floats_per_row = sum(getattr(level, "floats_per_row", 0) for level in levels)
        self.register_buffer("log_weights", log_weights, persistent=False)

    def forward(self, x: Tensor) -> MixturePosterior:
        """Encode images `[B, C, H, W]`; the encoders run here, once, for any number of draws."""
        flows = cast("Sequence[Flow | None]", self.flows)
        stages = [Stage(level(x), flow) for level, flow in zip(self.levels, flows, strict=True)]
        return MixturePosterior(stages, self.log_weights)
