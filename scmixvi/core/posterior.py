"""Mixture posteriors: which component drew z, its base noise, and every component's score.

One letter has one meaning: L importance samples a component, S components, B inputs,
D latent dimensions of one level.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeGuard

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, Normal

from scmixvi._messages import check_whole
from scmixvi.core.objectives import can_look_at, check_distribution, jsd, log_mixture

# Numbers that one pass over scores may hold where no gradient is needed (64 MB in float32).
MAX_NUMBERS_A_PASS = 2**24


class Flow(Protocol):
    """What a :class:`Stage` asks of a normalizing flow: a bijection on the last axis.

    `shared` is True when all components use one bijection T. Then a sample T(z0) is scored under
    component j at the same z0 (Eq. 7 of the paper, which is exact only in this case). When it is
    False every component has its own T_j, on axis -3 of what `inverse` returns, and a sample is
    scored under j at T_j^{-1}(z): the same point z for every component.
    """

    shared: bool

    def __call__(self, z0: Tensor) -> tuple[Tensor, Tensor]:
        """Map base draws `[L, S, B, D]`, each by its own component, to z and log|det dz/dz0|."""

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map `[L, S, 1, B, D]` to z0 `[L, S, S or 1, B, D]` and log|det dz/dz0| there."""


@dataclass(frozen=True)
class Stage:
    """One level of latents: a base distribution a component, and perhaps a flow on top of it.

    Parameters
    ----------
    conditional
        Called with the latents of the levels above, `[L, S, B, D]` each (none for the top
        level), it returns a distribution over `[D]` (event rank 1). Its batch is `[S, B]` for
        the top level; below, `[L, S, S, B]`, entry l, s, j, b being component j given what
        component s drew.
    flow
        A :class:`Flow`, or None.
    """

    conditional: Callable[..., Distribution]
    flow: Flow | None = None

    def sample_and_score(
        self, above: Sequence[Tensor], n_samples: int, drawn: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw z `[L, A, B, D]`, A = S or the `drawn` ones, and its scores `[L, A, S, B]`."""
        base = self._base(above)
        z0 = _draw(base, n_samples) if drawn is None else _draw_own(base, n_samples, drawn)
        if self.flow is None:
            return z0, _log_prob_all(base, z0)
        if self.flow.shared:
            z, log_det = self.flow(z0)
            return z, _log_prob_all(base, z0) - log_det.unsqueeze(2)
        z = self.flow(z0)[0] if drawn is None else self._own_flows(z0, drawn, base.batch_shape[-2])
        return z, self._score(base, z)

    def draw(self, above: Sequence[Tensor], n_samples: int) -> Tensor:
        """Draw z `[L, S, B, D]`, without scoring it."""
        z0 = _draw(self._base(above), n_samples)
        return z0 if self.flow is None else self.flow(z0)[0]

    def score(self, above: Sequence[Tensor], z: Tensor) -> Tensor:
        """Score z `[L, S, B, D]` under every component: `[L, S, S, B]`, in nats."""
        base = self._base(above)
        n_inputs = base.batch_shape[-1] if len(base.batch_shape) == 2 else z.shape[2]
        expected = (n_inputs, *base.event_shape)
        if tuple(z.shape[2:]) != expected:
            raise ValueError(
                f"latents of a stage must have shape [L, S, B, D] with (B, D) = {expected}, but "
                f"their shape is {tuple(z.shape)}."
            )
        return self._score(base, z)

    def _base(self, above: Sequence[Tensor]) -> Distribution:
        base = self.conditional(*above)
        if len(base.event_shape) != 1 or len(base.batch_shape) not in (2, 4):
            raise ValueError(
                "a stage's conditional must return a distribution over [D] with batch [S, B] "
                "(top level) or [L, S, S, B] (below), but it has event "
                f"{tuple(base.event_shape)} and batch {tuple(base.batch_shape)}."
            )
        return base

    def _score(self, base: Distribution, z: Tensor) -> Tensor:
        if self.flow is None:
            return _log_prob_all(base, z)
        z0, log_det = self.flow.inverse(z.unsqueeze(2))
        return base.log_prob(z0) - log_det

    def _own_flows(self, z0: Tensor, drawn: Tensor, n_components: int) -> Tensor:
        """Map draws `[L, A, B, D]` of the `drawn` components, each by its own component's flow."""
        assert self.flow is not None
        everyone = z0.flatten(0, 1).unsqueeze(1).expand(-1, n_components, -1, -1)
        z = self.flow(everyone)[0].unflatten(0, z0.shape[:2])
        return z[:, torch.arange(len(drawn), device=drawn.device), drawn]


def _draw(base: Distribution, n_samples: int) -> Tensor:
    """Draw `[L, S, B, D]`, each by its own component."""
    if not base.batch_shape[:-2]:
        return base.rsample(torch.Size([n_samples]))
    if not is_normal(base):
        return _own(base.rsample())
    loc, scale = (p.expand(base.batch_shape + base.event_shape) for p in _normal(base))
    return Normal(_own(loc), _own(scale), validate_args=False).rsample()


def _own(given: Tensor) -> Tensor:
    """Of `[L, S, S, B, D]`, what every component says of what it drew itself: `[L, S, B, D]`."""
    if given.shape[1] != given.shape[2]:
        raise ValueError(
            "the conditional of a stage below the top must return a distribution with batch "
            f"[L, S, S, B], but its batch is {tuple(given.shape[:-1])}: expand what all components "
            "share to S of them."
        )
    return given.diagonal(dim1=1, dim2=2).movedim(-1, 1)


def _draw_own(base: Distribution, n_samples: int, drawn: Tensor) -> Tensor:
    """Draw `[L, A, B, D]`: place a by component `drawn[a]`, and nothing from the others."""
    if not base.batch_shape[:-2]:
        chosen, shape = _indexed(base, (drawn,)), torch.Size([n_samples])
        return base.rsample(shape)[:, drawn] if chosen is None else chosen.rsample(shape)
    index = (slice(None), torch.arange(len(drawn), device=drawn.device), drawn)
    chosen = _indexed(base, index)
    return base.rsample()[index] if chosen is None else chosen.rsample()


def _check_places(drawn: Tensor | None, n_components: int) -> None:
    """With A = S the bounds take place a to hold component a; raise ValueError if it does not."""
    if drawn is None or len(drawn) != n_components or not can_look_at(drawn):
        return
    if drawn.tolist() != list(range(n_components)):
        raise ValueError(
            f"drawn holds {n_components} places, as many as there are components, so it must be "
            f"0 to {n_components - 1} in order, but it is {drawn.tolist()}: pass None to draw "
            "from every component."
        )


def _indexed(base: Distribution, index: tuple) -> Distribution | None:
    """The members of a batch of Gaussians at `index`; None for other distributions."""
    if not is_normal(base):
        return None
    loc, scale = (p.expand(base.batch_shape + base.event_shape)[index] for p in _normal(base))
    return Independent(Normal(loc, scale, validate_args=False), 1, validate_args=False)


def is_normal(base: Distribution) -> TypeGuard[Independent]:
    """Whether a distribution is one of Gaussians with diagonal covariance, written as here."""
    return (
        type(base) is Independent
        and type(base.base_dist) is Normal
        and base.reinterpreted_batch_ndims == 1
    )


def _normal(base: Independent) -> tuple[Tensor, Tensor]:
    return base.base_dist.loc, base.base_dist.scale


def _log_prob_all(base: Distribution, z: Tensor) -> Tensor:
    """Scores `[L, A, S, B]` of z `[L, A, B, D]`; in passes over A where no gradient is needed."""
    n_components = base.batch_shape[-2]
    places = max(1, MAX_NUMBERS_A_PASS * z.shape[1] // max(1, z.numel() * n_components))
    score = _normal_scorer(base) if is_normal(base) else base.log_prob
    if torch.is_grad_enabled() or base.batch_shape[:-2] or places >= z.shape[1]:
        return score(z.unsqueeze(2))
    return torch.cat([score(part.unsqueeze(2)) for part in z.split(places, 1)], dim=1)


def _normal_scorer(base: Independent) -> Callable[[Tensor], Tensor]:
    """Log density of diagonal Gaussians: what does not depend on z is computed once."""
    loc, scale = _normal(base)
    precision = scale.reciprocal()
    constant = -0.5 * math.log(2 * math.pi) * loc.shape[-1] - scale.log().sum(-1)
    return lambda z: constant - 0.5 * ((z - loc) * precision).square().sum(-1)


class MixturePosterior:
    r"""The mixture :math:`q_\pi(z | x) = \sum_s \pi_s \prod_h q_s(z^h | z^{>h}, x)`.

    Parameters
    ----------
    stages
        The levels, top first. One Gaussian level is one stage; a hierarchy is several; a
        normalizing flow stands on a stage.
    log_weights
        `[S]` or `[S, B]`, normalised over S; None is uniform.

    Raises
    ------
    ValueError
        If there is no stage, or the weights have not the shape `[S]` or `[S, B]` of the top level.

    Examples
    --------
    >>> from torch.distributions import Independent, Normal
    >>> loc = torch.tensor([[[-1.0]], [[1.0]]])
    >>> top = Stage(lambda: Independent(Normal(loc, torch.ones(2, 1, 1)), 1))
    >>> posterior = MixturePosterior([top])
    >>> posterior.mean, posterior.variance
    (tensor([[0.]]), tensor([[2.]]))
    >>> (z,), log_q_all = posterior.sample_stratified(3)
    >>> z.shape, log_q_all.shape
    (torch.Size([3, 2, 1, 1]), torch.Size([3, 2, 2, 1]))
    """

    def __init__(self, stages: Sequence[Stage], log_weights: Tensor | None = None) -> None:
        if not stages:
            raise ValueError("a mixture posterior needs at least one stage (level of latents).")
        self.stages = tuple(stages)
        self.log_weights = log_weights
        if log_weights is None:
            return
        fitting = self.stages[0].conditional().batch_shape
        if tuple(log_weights.shape) not in (tuple(fitting[:1]), tuple(fitting)):
            raise ValueError(
                f"log_weights must have shape [S] or [S, B] of the top level, {tuple(fitting)}, "
                f"but its shape is {tuple(log_weights.shape)}."
            )

    def sample_stratified(
        self, n_samples: int = 1, drawn: Tensor | None = None
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Draw L samples from every component, or some, and score each under all components.

        Parameters
        ----------
        n_samples
            L, samples a component.
        drawn
            `[A]`, the components to draw from (:func:`~scmixvi.core.draw_components`); None is
            all S of them. A component may come twice if A is not S: the bounds tell by the
            lengths whether draws come from all components, in their order, or from some at
            random. Scores under the drawn components alone are `log_q_all[:, :, drawn]`.

        Returns
        -------
        zs: a tuple of latents, top level first, each `[L, A, B, D]`, with gradients.
        log_q_all: `[L, A, S, B]`, in nats; equal to `log_prob_all(zs)`.

        Raises
        ------
        ValueError
            If L is no whole number of at least 1, a stage's conditional has the wrong rank, or
            `drawn` holds as many places as there are components, but not each once and in order
            (looked at on the CPU).
        """
        check_whole("n_samples (L)", n_samples)
        zs: tuple[Tensor, ...] = ()
        log_q_all: Tensor | float = 0.0
        for stage in self.stages:
            z, score = stage.sample_and_score(zs, n_samples, drawn)
            zs, log_q_all = (*zs, z), log_q_all + score
        assert isinstance(log_q_all, Tensor)
        _check_places(drawn, log_q_all.shape[2])
        return zs, log_q_all

    def log_prob_all(self, zs: Sequence[Tensor]) -> Tensor:
        """Score latents under every component.

        Parameters
        ----------
        zs
            One tensor a level, top first, each `[L, S, B, D]`. The S axis may have any length:
            it only says what to score.

        Returns
        -------
        `[L, S, S, B]`; entry l, s, j, b is log q_j(z_ls | x_b), in nats.

        Raises
        ------
        ValueError
            If the number, the rank or a size of the latents does not fit the stages.
        """
        if len(zs) != len(self.stages) or any(z.dim() != 4 for z in zs):
            raise ValueError(
                f"zs must hold {len(self.stages)} tensor(s) of shape [L, S, B, D], one a stage, "
                f"but the shapes are {[tuple(z.shape) for z in zs]}."
            )
        if any(z.shape[:3] != zs[0].shape[:3] for z in zs):
            raise ValueError(
                "the latents of all stages must have the same L, S and B, but their shapes are "
                f"{[tuple(z.shape) for z in zs]}."
            )
        scores = [stage.score(zs[:h], zs[h]) for h, stage in enumerate(self.stages)]
        return torch.stack(torch.broadcast_tensors(*scores)).sum(dim=0)

    def log_prob(self, zs: Sequence[Tensor]) -> Tensor:
        """Log density of the mixture at `zs`, each `[n, B, D]`: `[n, B]`, in nats."""
        return log_mixture(self.log_prob_all([z.unsqueeze(1) for z in zs]), self.log_weights)[:, 0]

    def sample(self, n: int) -> tuple[Tensor, ...]:
        """Draw n independent samples of the mixture for each input, `[n, B, D]` a level.

        Raises
        ------
        ValueError
            If n is no whole number of at least 1.
        """
        check_whole("n", n)
        zs: tuple[Tensor, ...] = ()
        for stage in self.stages:
            zs = (*zs, stage.draw(zs, n))
        each = zs[0][0, ..., 0]
        logits = self.log_weights_like(each).expand(each.shape).T
        drawn = Categorical(logits=logits).sample(torch.Size([n])).unsqueeze(1).unsqueeze(-1)
        return tuple(z.gather(1, drawn.expand(-1, -1, -1, z.shape[-1]))[:, 0] for z in zs)

    @property
    def mean(self) -> Tensor:
        """Mean of the top level's mixture, `[B, D]`; NotImplementedError if it has a flow."""
        weights, base = self._top()
        return (weights * base.mean).sum(dim=0)

    @property
    def variance(self) -> Tensor:
        """Variance of the top level's mixture (law of total variance), `[B, D]`, as for `mean`."""
        weights, base = self._top()
        mean = (weights * base.mean).sum(dim=0)
        return (weights * (base.variance + (base.mean - mean).square())).sum(dim=0)

    def jsd(self, n_samples: int = 100) -> Tensor:
        """Jensen-Shannon divergence of the components from L draws each, `[B]`, in nats."""
        check_whole("n_samples (L)", n_samples)
        n_components, n_inputs = self.stages[0].conditional().batch_shape
        per_pass = max(1, MAX_NUMBERS_A_PASS // max(1, n_components**2 * n_inputs))
        if torch.is_grad_enabled() or per_pass >= n_samples:
            return jsd(self.sample_stratified(n_samples)[1], self.log_weights)
        passes = [min(per_pass, n_samples - start) for start in range(0, n_samples, per_pass)]
        draws = (n * jsd(self.sample_stratified(n)[1], self.log_weights) for n in passes)
        return torch.stack(list(draws)).sum(0) / n_samples

    def log_weights_like(self, like: Tensor) -> Tensor:
        """Log weights `[S, 1 or B]`, in whatever form they were given, for a tensor `[S, B]`."""
        if self.log_weights is None:
            return like.new_full((like.shape[0], 1), -math.log(like.shape[0]))
        check_distribution(self.log_weights)
        return self.log_weights if self.log_weights.dim() == 2 else self.log_weights.unsqueeze(-1)

    def _top(self) -> tuple[Tensor, Distribution]:
        """Weights `[S, B or 1, 1]` and the base distribution of the top level."""
        top = self.stages[0]
        if top.flow is not None:
            raise NotImplementedError(
                "a flow's mean and variance have no closed form: average draws of sample(n)."
            )
        base = top.conditional()
        return self.log_weights_like(base.mean[..., 0]).exp().unsqueeze(-1), base
