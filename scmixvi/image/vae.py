"""The image VAE: a mixture posterior, a prior and a decoder, and nothing else.

L importance samples a component, S components, B images `[B, C, H, W]` with values in [0, 1].
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from scmixvi._messages import check_whole, raise_failed
from scmixvi.core import MixturePosterior, check_estimator, draw_components
from scmixvi.core.modes import evaluating, rest_frozen
from scmixvi.image._checks import (
    can_read,
    check_drawn_by,
    check_dtype,
    check_images,
    check_not_learned,
    check_range,
    check_support,
    finite_support,
)
from scmixvi.image._evaluation import eq_17_and_pooled, log_mean_ratios, own_posterior
from scmixvi.image._scoring import BoundTerms, scored_by_path, scored_draws
from scmixvi.image.protocols import DecoderPart, PosteriorPart, PriorPart

Representation = Literal["mean", "components", "params"]


class ImageVAE(nn.Module):
    """A VAE over images whose posterior is a mixture of S encoders.

    Parameters
    ----------
    posterior, prior, decoder
        Modules that follow :class:`~scmixvi.image.protocols.PosteriorPart`,
        :class:`~scmixvi.image.protocols.PriorPart` and
        :class:`~scmixvi.image.protocols.DecoderPart`.
        `latent_sizes` is D of every level, top first; `image_size` is (C, H, W). A part may have
        `floats_per_row`, about how many numbers one latent takes while it is scored: `nll` sizes
        its chunks by it.

    Raises
    ------
    ValueError
        If the three do not agree on the sizes of latents or images.
    """

    def __init__(self, posterior: PosteriorPart, prior: PriorPart, decoder: DecoderPart) -> None:
        super().__init__()
        for name, latent_sizes in (
            ("prior", prior.latent_sizes),
            ("decoder", decoder.latent_sizes),
        ):
            if tuple(latent_sizes) != tuple(posterior.latent_sizes):
                raise ValueError(
                    f"the {name} is made for latents of sizes {tuple(latent_sizes)}, top first, "
                    f"but the posterior's are {tuple(posterior.latent_sizes)}."
                )
        if tuple(decoder.image_size) != tuple(posterior.image_size):
            raise ValueError(
                f"the decoder makes images of size {tuple(decoder.image_size)}, but the posterior "
                f"is made for {tuple(posterior.image_size)}."
            )
        self.posterior, self.prior, self.decoder = posterior, prior, decoder
        self.n_components = posterior.n_components
        self.latent_sizes = tuple(posterior.latent_sizes)
        self.image_size = tuple(posterior.image_size)
        self._support: tuple[DecoderPart | None, Constraint] = None, constraints.unit_interval

    @property
    def support(self) -> Constraint:
        """Images that have a likelihood: as the decoder's distribution says, or all in [0, 1].

        Without those that have pixels of exactly 0 or 1 where its density is not finite there, as
        that of a Beta.

        Raises
        ------
        ValueError
            If the decoder fails on latents of these sizes, or its distribution is not over images
            of this size.
        """
        decoder, support = self._support
        if decoder is not self.decoder:
            support = self._decoded_support()
            self._support = self.decoder, support
        return support

    def _decoded_support(self) -> Constraint:
        modules = (part for part in (self.decoder, self) if isinstance(part, nn.Module))
        like = next((w for part in modules for w in part.parameters()), torch.empty(0))
        with torch.no_grad(), evaluating(self):
            zs = [like.new_zeros(1, size) for size in self.latent_sizes]
            try:
                decoded = self.decoder(*zs)
            except (RuntimeError, ValueError) as error:
                raise_failed(
                    f"the decoder failed on latents of sizes {self.latent_sizes}, top first, which "
                    "it says it is made for: look at its network and its likelihood",
                    error,
                )
            if tuple(decoded.event_shape) != self.image_size:
                raise ValueError(
                    f"the decoder's distribution is over images (C, H, W) = "
                    f"{tuple(decoded.event_shape)}, but the model is made for {self.image_size}: "
                    "its network must give parameters [N, P, H, W]."
                )
            return finite_support(decoded, like)

    def train(self, mode: bool = True) -> "ImageVAE":
        """Set the mode of every part but those that are frozen, which stay in evaluation mode.

        Frozen are parts, and parts of parts, that have parameters of which none requires a gradient
        (`requires_grad_(False)`): their batch statistics are fixed too.

        Parameters
        ----------
        mode
            Training mode, or evaluation mode.
        """
        super().train(mode)
        if mode:
            rest_frozen(self)
        return self

    def forward(
        self,
        x: Tensor,
        n_importance_samples: int = 1,
        estimator: Literal["all", "s2a", "s2s"] = "all",
        n_drawn: int = 2,
        path_gradient: bool = False,
    ) -> BoundTerms:
        """Draw L samples from every component, or some, and score them: what the objectives take.

        Parameters
        ----------
        x
            Images `[B, C, H, W]`, values in [0, 1] and in the support of the decoder's
            distribution: 0 or 1 for binary pixels. Values are not looked at in training steps on a
            GPU, which would have to wait, nor under `torch.compile`.
        n_importance_samples
            L.
        estimator
            "all": draw from every component; "s2a": from `n_drawn` chosen at random, scored under
            all, the same bound in expectation; "s2s": from `n_drawn`, scored under those alone, a
            looser bound, for which no other encoder sees the images. (All run on the
            pseudo-inputs of a VampPrior.)
        n_drawn
            A; not looked at with "all".
        path_gradient
            Encoders get their gradient through the draws alone: of "s2a", those of the components
            not drawn need no backward pass. Unbiased for `miselbo` with L = 1, where the gradient
            left out has expectation 0 (Roeder et al. 2017), and for no other objective. Without
            effect with "s2s", and with posteriors that do not allow it: those with a flow, dropout
            or batch norm.

        Returns
        -------
        The terms of the bounds, in nats.

        Raises
        ------
        ValueError
            If the images' rank, size, type or range is wrong, L is below 1, the estimator is
            unknown or A not in 1 to S; if path gradients are asked for with L > 1; if components
            are drawn by other weights than those of the mixture, or by weights that are learned.

        References
        ----------
        Hotti et al. 2024, "Efficient mixture learning in black-box variational inference";
        Roeder et al. 2017, "Sticking the landing: simple, lower-variance gradient estimators for
        variational inference".
        """
        self._check_images(x, scored=True)
        check_estimator(estimator, n_drawn, self.n_components)
        if path_gradient and n_importance_samples != 1:
            raise ValueError(
                "path gradients are right for L = 1 alone: pass n_importance_samples=1 (it is "
                f"{n_importance_samples}) or path_gradient=False."
            )
        path_gradient &= getattr(self.posterior, "allows_path_gradients", False)
        log_weights, drawn = getattr(self.posterior, "log_weights", None), None
        if estimator != "all" and n_drawn != self.n_components:
            check_not_learned(log_weights)
            drawn = draw_components(self.n_components, n_drawn, log_weights, x.device)
        prior = self.prior()
        if drawn is not None and estimator == "s2s":
            posterior = self.posterior(x, drawn)
            check_not_learned(posterior.log_weights)
            return scored_draws(self.decoder, posterior, prior, x, n_importance_samples)
        if path_gradient:
            drawn_from = self.posterior(x) if drawn is None else self.posterior(x, drawn)
            terms = scored_by_path(self.decoder, self.posterior, drawn_from, prior, x)
        else:
            posterior = self.posterior(x)
            terms = scored_draws(self.decoder, posterior, prior, x, n_importance_samples, drawn)
        if drawn is not None:
            check_not_learned(terms.log_weights)
            check_drawn_by(log_weights, terms.log_weights)
        return terms

    @torch.no_grad()
    def nll(
        self,
        x: Tensor,
        n_importance_samples: int = 5000,
        pooled: bool = False,
        memory_budget: float | None = None,
        n_refinement_steps: int = 0,
    ) -> Tensor:
        """Importance-sampled negative log-likelihood, in evaluation mode.

        Images and samples are taken in chunks that fit the budget, and the weights are added up
        as they come, so memory does not grow with L. It runs eagerly also where the model was
        compiled, which is of `forward`; the decoder's network can be compiled by itself.

        Parameters
        ----------
        x
            Images `[B, C, H, W]`, values in [0, 1] and in the support of the decoder's
            distribution: 0 or 1 for binary pixels.
        n_importance_samples
            L, samples a component.
        pooled
            Average all S * L weights inside one logarithm, which tends to -log p(x) with L, instead
            of one logarithm a component (Eq. 17), which keeps a gap where a component answers for
            another share of the posterior than its weight.
        memory_budget
            Bytes that one chunk may take, roughly, above 0; infinite is no limit, None what was
            found to be fast: 32 MiB on a CPU (its caches), 1 GiB elsewhere.
        n_refinement_steps
            Gradient steps of every image's own posterior before its samples are drawn
            (:meth:`refined_posterior`): mostly a better proposal, where encoders are behind what
            their family could say. What is climbed, KL(q || p), lets go of thin tails, so that
            where it wins little it may also lose.

        Returns
        -------
        `[B]`, in nats; in expectation never below -log p(x).

        Raises
        ------
        ValueError
            If the images are not what `forward` takes, L is below 1, `n_refinement_steps` below 0,
            the budget not above 0, or a posterior is to be refined that is not of Gaussians with
            diagonal covariance.

        References
        ----------
        Kviman et al. 2022, Eq. 17.
        """
        found = self.nll_estimates(x, n_importance_samples, memory_budget, n_refinement_steps)
        return found[int(pooled)]

    @torch.no_grad()
    def nll_estimates(
        self,
        x: Tensor,
        n_importance_samples: int,
        memory_budget: float | None = None,
        n_refinement_steps: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Both estimates of :meth:`nll` from the same draws: Eq. 17 and pooled, `[B]` each.

        Parameters
        ----------
        x, n_importance_samples, memory_budget, n_refinement_steps
            As in :meth:`nll`.

        Raises
        ------
        ValueError
            As :meth:`nll`.
        """
        ratios, log_weights = self._log_mean_ratios(
            x, n_importance_samples, memory_budget, n_refinement_steps
        )
        return eq_17_and_pooled(-ratios, log_weights)

    @torch.no_grad()
    def nll_by_component(
        self,
        x: Tensor,
        n_importance_samples: int = 5000,
        memory_budget: float | None = None,
        n_refinement_steps: int = 0,
    ) -> Tensor:
        r"""What Eq. 17 averages: one estimate a component, all of them under the whole mixture.

        Entry (s, b) is :math:`-\log \frac{1}{L} \sum_l p(x_b, z_{ls}) / q_\pi(z_{ls} | x_b)`.
        :meth:`nll` makes one number an image of them, the Eq. 17 or the pooled one.

        Parameters
        ----------
        x, n_importance_samples, memory_budget, n_refinement_steps
            See :meth:`nll`.

        Returns
        -------
        `[S, B]`, in nats.

        Raises
        ------
        ValueError
            As :meth:`nll`.
        """
        return -self._log_mean_ratios(x, n_importance_samples, memory_budget, n_refinement_steps)[0]

    def refined_posterior(self, x: Tensor, n_steps: int) -> MixturePosterior:
        """The posterior of every image after gradient steps of its own.

        Encoders answer for all images at once. With the model as it is, every image's own means and
        standard deviations, a component and level, climb its MISELBO
        (:func:`scmixvi.core.refined_posterior`). Draws and scores of what is returned run the
        model's own lower levels and flows: ask for them in evaluation mode and, unless gradients
        are wanted, under `torch.no_grad()`.

        Parameters
        ----------
        x
            Images `[B, C, H, W]`, all taken together, in the support of the decoder's distribution.
        n_steps
            Gradient steps, each with one draw of every component; 0 is what the encoders say.

        Raises
        ------
        ValueError
            If the images are not what `forward` takes, `n_steps` is below 0, or a level is not one
            of Gaussians with diagonal covariance.
        """
        self._check_images(x, scored=True)
        check_whole("n_steps", n_steps, least=0)
        # No gradient can flow through what was made in inference mode.
        with torch.inference_mode(False), torch.no_grad(), evaluating(self):
            return own_posterior(self, x.clone(), self.prior(), n_steps)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """Draw n images from the prior and the decoder, `[n, C, H, W]`, in evaluation mode."""
        check_whole("n, the number of images,", n)
        with evaluating(self):
            return self.decoder(*self.prior().sample(n)).sample()

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Encode images, draw latents from the mixture, and decode them, `[B, C, H, W]`.

        Where the decoder's distribution has a mean, that is returned; otherwise a draw from it.
        """
        self._check_images(x)
        with evaluating(self):
            zs = [z[0] for z in self.posterior(x).sample(1)]
            decoded = self.decoder(*zs)
            try:
                return decoded.mean
            except NotImplementedError:
                return decoded.sample()

    @torch.no_grad()
    def encode(self, x: Tensor, representation: Representation = "mean") -> Tensor:
        """Represent images by the top level of the posterior.

        Parameters
        ----------
        x
            Images `[B, C, H, W]`.
        representation
            `"mean"`: mean of the mixture, `[B, D]`; `"components"`: means of the components side
            by side, `[B, S * D]`; `"params"`: those, then the components' variances,
            `[B, 2 * S * D]` (the paper's choice). Behind a flow, a mean stands for the base mean
            passed through the flow, and the variances are the base's.

        Raises
        ------
        ValueError
            If the images are not what `forward` takes, or the representation is unknown.
        """
        self._check_images(x, may_be_none=True)
        known = ("mean", "components", "params")
        if representation not in known:
            raise ValueError(f"representation must be one of {known}, not {representation!r}.")
        with evaluating(self):
            posterior = self.posterior(x)
            top = posterior.stages[0]
            base = top.conditional()
            means, variances = base.mean, base.variance
            if top.flow is not None:
                means = top.flow(means.unsqueeze(0))[0][0]
        if representation == "mean":
            weights = posterior.log_weights_like(means[..., 0]).exp()
            return (weights.unsqueeze(-1) * means).sum(0)
        parts = (means,) if representation == "components" else (means, variances)
        return torch.cat([part.transpose(0, 1).flatten(1) for part in parts], dim=1)

    @torch.no_grad()
    def jsd(self, x: Tensor, n_samples: int = 100) -> Tensor:
        """Jensen-Shannon divergence of the components from L draws each, `[B]`, in nats."""
        self._check_images(x)
        with evaluating(self):
            return self.posterior(x).jsd(n_samples)

    def _log_mean_ratios(
        self, x: Tensor, n_samples: int, memory_budget: float | None, n_steps: int
    ) -> tuple[Tensor, Tensor]:
        check_whole("n_importance_samples (L)", n_samples)
        check_whole("n_refinement_steps", n_steps, least=0)
        self._check_images(x, scored=True, may_be_none=True)
        return log_mean_ratios(self, x, n_samples, memory_budget, n_steps)

    def _check_images(self, x: Tensor, scored: bool = False, may_be_none: bool = False) -> None:
        """Refuse what are no images, or have no likelihood where they are to be scored."""
        check_images(x, self.image_size)
        if not len(x) and not may_be_none:
            raise ValueError(f"there must be at least one image, but x has shape {tuple(x.shape)}.")
        if can_read(x, self.training):
            check_range(x)
            if scored:
                check_support(x, self.support)
            check_dtype(x, self)
