"""The bound that a MixtureVAE is trained by, and what it is made of."""

import torch
from scvi import REGISTRY_KEYS
from scvi.data._constants import ADATA_MINIFY_TYPE
from scvi.module._constants import MODULE_KEYS
from scvi.module.base import LossOutput, auto_move_data
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from scmixvi.core import jsd, miselbo
from scmixvi.singlecell._checks.queries import check_holds_counts
from scmixvi.singlecell._parts.distributions import log_standard_normal
from scmixvi.singlecell._parts.inference import PRIOR_KEY, SCORES_KEY, UNTRANSFORMED_KEY, repeated
from scmixvi.singlecell._parts.likelihoods import log_likelihood
from scmixvi.singlecell._parts.streaming import DISPERSION_KEY, LOG_LIK_KEY


class Bound:
    """Methods of :class:`~scmixvi.singlecell.MixtureVAE` about MISELBO."""

    @auto_move_data
    def forward(
        self,
        tensors: dict[str, Tensor],
        get_inference_input_kwargs: dict | None = None,
        get_generative_input_kwargs: dict | None = None,
        inference_kwargs: dict | None = None,
        generative_kwargs: dict | None = None,
        loss_kwargs: dict | None = None,
        compute_loss: bool = True,
    ) -> tuple:
        """As in scvi-tools; a pass that computes the loss draws L times from every component."""
        inference_kwargs = dict(inference_kwargs or {})
        if compute_loss and "n_samples" not in inference_kwargs:
            inference_kwargs["stratified"] = True
        if compute_loss:
            counts = tensors[REGISTRY_KEYS.X_KEY]
            generative_kwargs = {"counts": counts, **(generative_kwargs or {})}
        return super().forward(
            tensors,
            get_inference_input_kwargs,
            get_generative_input_kwargs,
            inference_kwargs,
            generative_kwargs,
            loss_kwargs,
            compute_loss,
        )

    def loss(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict[str, Tensor | Distribution | None],
        generative_outputs: dict[str, Distribution | None],
        kl_weight: Tensor | float = 1.0,
    ) -> LossOutput:
        r"""Negative MISELBO, averaged over the batch.

        `reconstruction_loss` is :math:`-\sum_s \pi_s E_{q_s} \log p(x|z)` and `kl_local` is the
        rest, so that at `kl_weight` 1 their sum is -MISELBO for each cell, in nats. A library
        size that is not observed adds its own KL divergence, which is not warmed up.
        """
        if self.minified_data_type == ADATA_MINIFY_TYPE.LATENT_POSTERIOR:
            return super().loss(tensors, inference_outputs, generative_outputs, kl_weight)
        log_lik, log_prior, log_q_all, log_weights = self._bound_terms(
            tensors, inference_outputs, generative_outputs
        )
        ql, pl = inference_outputs[MODULE_KEYS.QL_KEY], generative_outputs[MODULE_KEYS.PL_KEY]
        kl_library = log_lik.new_zeros(log_lik.shape[-1])
        n_samples = log_lik.shape[0]
        stratified = inference_outputs[SCORES_KEY] is not None
        pooled = stratified and n_samples > 1 and float(kl_weight) == 1.0
        if ql is not None:
            kl_library = kl_divergence(ql, pl).sum(dim=1)
        reconstruction = -_expected(log_lik, log_weights)
        if pooled:
            if ql is not None:
                ratio = library_ratio(inference_outputs, generative_outputs)
                log_prior = log_prior + ratio.reshape(log_prior.shape)
            loss = -miselbo(log_lik, log_prior, log_q_all, log_weights)
            kl_z = loss - reconstruction - kl_library
        else:
            folded = _samples_as_inputs(log_lik, log_prior, log_q_all, log_weights)
            zeros = torch.zeros_like(folded[0])
            kl_z = -miselbo(zeros, *folded[1:]).unflatten(0, (n_samples, -1)).mean(0)
            loss = reconstruction + kl_weight * kl_z + kl_library
        return LossOutput(
            loss=loss.mean(),
            reconstruction_loss=reconstruction,
            kl_local={MODULE_KEYS.KL_L_KEY: kl_library, MODULE_KEYS.KL_Z_KEY: kl_z},
            extra_metrics=self._component_metrics(inference_outputs)
            | self._autotune_payload(tensors, inference_outputs),
            n_obs_minibatch=len(reconstruction),
        )

    @torch.no_grad()
    def _component_metrics(self, inference_outputs: dict) -> dict[str, Tensor]:
        """The batch's mean JSD, and mean weights that can change: logged as `jsd`, `weight_0`..."""
        scores, qz = inference_outputs[SCORES_KEY], inference_outputs[MODULE_KEYS.QZ_KEY]
        if scores is None or self.n_components == 1 or scores.shape[1] != scores.shape[2]:
            return {}
        found = {"jsd": jsd(scores, self._weights_of_bound(qz)).mean()}
        if self.mixture_weights in ("learned", "amortized"):
            weights = qz.c_log_weights.exp().mean(0)
            found |= {f"weight_{s}": weight for s, weight in enumerate(weights)}
        return found

    def _autotune_payload(self, tensors: dict, inference_outputs: dict) -> dict[str, Tensor]:
        if not self.extra_payload_autotune:
            return {}
        qz = inference_outputs[MODULE_KEYS.QZ_KEY]
        means = self.z_encoder.z_transformation(qz.c_loc)
        return {
            "z": (qz.c_log_weights.exp().unsqueeze(-1) * means).sum(-2),
            "batch": tensors[REGISTRY_KEYS.BATCH_KEY],
            "labels": tensors[REGISTRY_KEYS.LABELS_KEY],
        }

    def _log_joint(self, tensors: dict, encoded: dict, state: Tensor) -> Tensor:
        """Log p(x, z) of draws u `[K, n, D]` before a logistic-normal transformation: `[K, n]`.

        Where library sizes are latent it is log p(x, z, l), and `[K, n, D + 1]` has log l last.
        """
        ql, library = encoded[MODULE_KEYS.QL_KEY], encoded[MODULE_KEYS.LIBRARY_KEY]
        u, log_l = state.split([self.n_latent, state.shape[-1] - self.n_latent], dim=-1)
        library = repeated(library, None, len(u)) if ql is None else log_l
        outputs = self._outputs(encoded[MODULE_KEYS.QZ_KEY], ql, library, u)
        counts = tensors[REGISTRY_KEYS.X_KEY]
        decoded = self.generative(**self._get_generative_input(tensors, outputs), counts=counts)
        log_prior = log_standard_normal(u)
        if ql is not None:
            log_prior = log_prior + decoded[MODULE_KEYS.PL_KEY].log_prob(library).sum(-1)
        return self._log_likelihood(tensors, decoded).reshape(log_prior.shape) + log_prior

    def _bound_terms(
        self, tensors: dict, inference_outputs: dict, generative_outputs: dict
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """log_lik, log_prior `[L, S, n]`, log_q_all `[L, S, S, n]` and log weights `[S, n]`.

        Draws that were not stratified (a caller asked for `n_samples`) come from the mixture as a
        whole: they are L samples of one component whose density is the mixture's.
        """
        qz = inference_outputs[MODULE_KEYS.QZ_KEY]
        u, scores = inference_outputs[UNTRANSFORMED_KEY], inference_outputs[SCORES_KEY]
        log_lik = self._log_likelihood(tensors, generative_outputs)
        log_prior = inference_outputs.get(PRIOR_KEY)
        if log_prior is None:
            log_prior = log_standard_normal(u)
        if scores is None:
            log_q = qz.log_prob(u).squeeze(-1)
            shape = (-1, 1, log_q.shape[-1])
            return (
                log_lik.reshape(shape),
                log_prior.reshape(shape),
                log_q.reshape(-1, 1, 1, log_q.shape[-1]),
                None,
            )
        shape = (scores.shape[0], scores.shape[1], -1)
        log_weights = self._weights_of_bound(qz)
        return log_lik.reshape(shape), log_prior.reshape(shape), scores, log_weights

    def _log_likelihood(self, tensors: dict, generative_outputs: dict) -> Tensor:
        """Log p(x | z) of every draw, summed over genes."""
        if not self.training:
            check_holds_counts(tensors)
        if LOG_LIK_KEY in generative_outputs:
            return generative_outputs[LOG_LIK_KEY]
        px, theta = generative_outputs[MODULE_KEYS.PX_KEY], generative_outputs[DISPERSION_KEY]
        return log_likelihood(px, tensors[REGISTRY_KEYS.X_KEY], theta)

    def _weights_of_bound(self, qz: Distribution) -> Tensor | None:
        """Log weights `[S, n]`; None where they are uniform, which the bounds compute sooner."""
        return None if self.mixture_weights == "uniform" else qz.c_log_weights.T


def _expected(log_lik: Tensor, log_weights: Tensor | None) -> Tensor:
    """Weighted mean over components of the mean over samples, `[L, S, n] -> [n]`."""
    by_component = log_lik.mean(0)
    if log_weights is None or len(log_weights) != len(by_component):
        return by_component.mean(0)  # drawn in proportion to the weights: they count equally
    return (log_weights.exp() * by_component).sum(0)


def _samples_as_inputs(
    log_lik: Tensor, log_prior: Tensor, log_q_all: Tensor, log_weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """L samples of n cells as one sample of L*n cells: `[L, S, n] -> [1, S, L*n]`."""
    n_samples = log_lik.shape[0]
    if n_samples == 1:
        return log_lik, log_prior, log_q_all, log_weights

    def fold(term: Tensor) -> Tensor:
        return term.movedim(0, -2).flatten(-2).unsqueeze(0)

    if log_weights is not None:
        log_weights = log_weights.repeat(1, n_samples)
    return fold(log_lik), fold(log_prior), fold(log_q_all), log_weights


def library_ratio(inference_outputs: dict, generative_outputs: dict) -> Tensor:
    """Log p(l) - log q(l | x) at the drawn log library sizes, `[K, n]`."""
    library = inference_outputs[MODULE_KEYS.LIBRARY_KEY]
    ql, pl = inference_outputs[MODULE_KEYS.QL_KEY], generative_outputs[MODULE_KEYS.PL_KEY]
    return (pl.log_prob(library) - ql.log_prob(library)).sum(-1)
