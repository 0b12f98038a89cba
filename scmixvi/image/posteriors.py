"""Amortised mixture posteriors over images: S encoders a level, any number of levels.

A level is a module: `level(x)` runs what depends on the images alone, once, and returns the
conditional of a :class:`~scmixvi.core.Stage`. `level(x, components)` does so for A of the S
components, as if there were no others. `n_latent` is D; `n_components`, where a level has it, is S.
"""

from collections.abc import Callable, Sequence
from typing import cast

from torch import Tensor, nn
from torch.distributions import Independent
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from scmixvi.core import Level, MixturePosterior, Stage, diagonal_normal
from scmixvi.core.objectives import check_distribution
from scmixvi.core.posterior import Flow
from scmixvi.core.products import stacked_linear
from scmixvi.image.nets import PerComponent, StackedLinear, check_components, mlp


class TopEncoder(Level):
    """q(z | x) of the top level, S Gaussians.

    Parameters
    ----------
    features
        Maps images `[B, C, H, W]` to features `[S, B, n_features]`, all components together, or
        `[B, n_features]`, which all share.
    n_features, n_latent
        Sizes of the features and of the level, D.
    n_components
        S.
    n_heads
        S, or 1 for one head that all components share, as behind a shared trunk; None is S.
    """

    n_above = 0

    def __init__(
        self,
        features: nn.Module,
        n_features: int,
        n_latent: int,
        n_components: int,
        n_heads: int | None = None,
    ) -> None:
        super().__init__()
        self.features, self.n_latent, self.n_components = features, n_latent, n_components
        self.n_features = n_features
        self.head = StackedLinear(n_heads or n_components, n_features, 2 * n_latent)
        self.floats_per_row = 4 * n_components * n_latent

    def forward(self, x: Tensor, components: Tensor | None = None) -> Callable[[], Independent]:
        """Encode images; the conditional takes nothing and has batch `[S, B]`, event `[D]`."""
        features = _features(self, x, components)
        base = diagonal_normal(self.head(features, components))
        return lambda: base


class LowerEncoder(Level):
    """q(z | level above, x) of a level that is not the top, S Gaussians.

    Every sample, whichever component drew it, runs through all S encoders (Eq. 5): S x S heads,
    evaluated once as S products. What depends on x alone is computed once an image.

    Parameters
    ----------
    features
        Maps images `[B, C, H, W]` to features `[S, B, n_features]`, or `[B, n_features]`, which
        all components share.
    n_features, n_above, n_latent
        Sizes of the features, of the level above, and of the level itself, D.
    n_hidden
        Size of the joint gated layer.
    n_components
        S.
    n_heads
        S, or 1 for layers that all components share, as behind a shared trunk; None is S.
    """

    def __init__(
        self,
        features: nn.Module,
        n_features: int,
        n_above: int,
        n_latent: int,
        n_hidden: int,
        n_components: int,
        n_heads: int | None = None,
    ) -> None:
        super().__init__()
        self.features, self.n_latent, self.n_components = features, n_latent, n_components
        self.n_features, self.n_above = n_features, n_above
        n_heads = n_heads or n_components
        self.above = mlp([n_above, n_features], n_components=n_heads)
        self.joint = StackedLinear(n_heads, 2 * n_features, 2 * n_hidden)
        self.gate = nn.GLU(dim=-1)
        self.head = StackedLinear(n_heads, n_hidden, 2 * n_latent)
        self.floats_per_row = n_components * (3 * n_features + 5 * n_hidden + 8 * n_latent)

    def forward(self, x: Tensor, components: Tensor | None = None) -> Callable[..., Independent]:
        """Encode images; the conditional takes the levels above, batch `[L, S, S, B]`."""
        features = _features(self, x, components)
        weight, bias = self.joint.of(components)
        weight_x, weight_z = weight.chunk(2, dim=1)
        from_x = stacked_linear(features, weight_x, bias).unsqueeze(1)  # [S, 1, B, 2 * n_hidden]

        def conditional(*above: Tensor) -> Independent:
            z = above[-1]  # [L, S, B, D], drawn by S or A components
            from_z = stacked_linear(self.above(z.flatten(0, 2), components), weight_z)
            from_z = from_z.unflatten(1, (-1, z.shape[2]))  # [S or 1, L * S, B, 2 * n_hidden]
            hidden = self.gate(from_z + from_x).flatten(1, 2)
            parameters = self.head(hidden, components).unflatten(1, z.shape[:3])
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

    Raises
    ------
    ValueError
        If there is no level, not one flow (or None) a level, a level made for another S or for
        another D above it, or the weights are not S numbers, normalised.
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
        flows = [None] * len(levels) if flows is None else flows
        _check_counts(levels, flows, n_components)
        if log_weights is not None:
            _check_weights(log_weights, n_components)
        self.levels = nn.ModuleList(levels)
        self.flows = nn.ModuleList(cast("Sequence[nn.Module]", flows))
        self.n_components, self.image_size = n_components, image_size
        self.latent_sizes = tuple(level.n_latent for level in levels)
        self.floats_per_row = sum(getattr(level, "floats_per_row", 0) for level in levels)
        self.register_buffer("log_weights", log_weights, persistent=False)

    @property
    def allows_path_gradients(self) -> bool:
        """Whether scores can be had a second time, with the weights held constant.

        Not where a layer draws a mask or averages over the batch, for it would not be the same
        mixture, and not with a flow, for it would have to be inverted.
        """
        plain = all(flow is None for flow in self.flows)
        return plain and not any(isinstance(m, _DropoutNd | _BatchNorm) for m in self.modules())

    def forward(self, x: Tensor, components: Tensor | None = None) -> MixturePosterior:
        """Encode images `[B, C, H, W]`; the encoders run here, once, for any number of draws.

        Parameters
        ----------
        x
            Images.
        components
            `[A]`, chosen by :func:`~scmixvi.core.draw_components`: the uniform mixture of these
            alone, and no encoder but theirs runs (but for features that know of no components, as
            :class:`~scmixvi.image.nets.PerComponent` does). None is the whole mixture.

        Raises
        ------
        ValueError
            If some components are asked for and a flow is not shared by all.
        """
        flows = cast("Sequence[Flow | None]", self.flows)
        levels = zip(self.levels, flows, strict=True)
        if components is None:
            return MixturePosterior(
                [Stage(level(x), flow) for level, flow in levels], self.log_weights
            )
        if any(flow is not None and not flow.shared for flow in flows):
            raise ValueError(
                "some components alone (s2s) need flows that all components share: "
                "use such a flow, or the estimator 's2a'."
            )
        return MixturePosterior([Stage(level(x, components), flow) for level, flow in levels])


def _features(level: TopEncoder | LowerEncoder, x: Tensor, components: Tensor | None) -> Tensor:
    """Features of all components or of some, `[S or A, B, n_features]`.

    What is no PerComponent runs all of them, of which some are taken.
    """
    features = level.features
    runs_some = components is not None and isinstance(features, PerComponent)
    found = features(x, components) if runs_some else features(x)
    n_components = level.n_components if components is None else len(components)
    check_components(found, n_components if runs_some else level.n_components)
    if components is not None and not runs_some and found.dim() == 3 and len(found) > 1:
        found = found[components]
    if found.dim() not in (2, 3) or found.shape[-2] != len(x):
        raise ValueError(
            f"features of a {type(level).__name__} must be [S, B, n_features], or [B, n_features] "
            f"for all components, with B = {len(x)} images, but their shape is "
            f"{tuple(found.shape)}."
        )
    if found.shape[-1] != level.n_features:
        raise ValueError(
            f"n_features of a {type(level).__name__} is {level.n_features}, but its features give "
            f"{found.shape[-1]} numbers an image."
        )
    return found.expand(n_components, -1, -1)  # also where one head serves all


def _check_counts(
    levels: Sequence[Level], flows: Sequence[nn.Module | None], n_components: int
) -> None:
    if not levels:
        raise ValueError("a posterior needs at least one level of latents.")
    if len(flows) != len(levels):
        raise ValueError(
            f"flows must be one a level, None where there is none, top first: {len(levels)}, but "
            f"there are {len(flows)}."
        )
    for level in levels:
        found = getattr(level, "n_components", n_components)
        if found != n_components:
            raise ValueError(
                f"n_components (S) of the posterior is {n_components}, but its "
                f"{type(level).__name__} is made for {found}."
            )
    for above, level in zip([0, *(level.n_latent for level in levels)], levels, strict=False):
        made_for = getattr(level, "n_above", above)
        if made_for != above:
            raise ValueError(
                f"n_above of a {type(level).__name__} is {made_for}, but the level above it has "
                f"D = {above}{'' if above else ', for it is the top one: begin with a TopEncoder'}."
            )
    for level, flow in zip(levels, flows, strict=True):
        for name, made_for, wanted in (
            ("n_latent (D)", getattr(flow, "n_latent", None), level.n_latent),
            ("n_components (S)", getattr(flow, "n_components", None), n_components),
        ):
            if made_for not in (None, wanted):
                raise ValueError(
                    f"{name} of a level is {wanted}, but its flow, {type(flow).__name__}, is made "
                    f"for {made_for}."
                )


def _check_weights(log_weights: Tensor, n_components: int) -> None:
    if tuple(log_weights.shape) != (n_components,):
        raise ValueError(
            f"log_weights must have shape [S] = ({n_components},), but its shape is "
            f"{tuple(log_weights.shape)}."
        )
    check_distribution(log_weights)
