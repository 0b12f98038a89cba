"""The module behind MixtureSCVI: SCVI's generative model, a mixture of S encoders, MISELBO."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.data._constants import ADATA_MINIFY_TYPE
from scvi.distributions import NegativeBinomial, Normal, Poisson, ZeroInflatedNegativeBinomial
from scvi.module import VAE
from scvi.module._constants import MODULE_KEYS
from scvi.module.base import LossOutput, auto_move_data
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence
from torch.nn.functional import linear, one_hot

from scmixvi.core import (
    component_elbos,
    draw_components,
    jsd,
    log_mixture,
    log_weights_from,
    miselbo,
    siwelbo,
)
from scmixvi.singlecell._checks import (
    check_encoded,
    check_many_components,
    check_mixture_arguments,
)
from scmixvi.singlecell._decoded import Heads, can_defer, undecoded
from scmixvi.singlecell._distributions import MixtureOfNormals
from scmixvi.singlecell._encoders import encode_components, widened
from scmixvi.singlecell._likelihoods import log_likelihood
from scmixvi.singlecell._passes import cells_in_passes, draws_a_pass, log_of_counts, row_sums
from scmixvi.singlecell._streaming import (
    DISPERSION_KEY,
    LOG_LIK_KEY,
    decode_in_passes,
    needs_passes,
)
from scmixvi.singlecell._trunk import encode_trunk, initial_offsets

ESTIMATORS = {"pooled": siwelbo, "stratified": miselbo}

# Keys that scvi-tools' dictionaries do not have: the draw before a logistic-normal
# transformation, and every component's score of it.
UNTRANSFORMED_KEY, SCORES_KEY = "u", "log_q_all"


class MixtureVAE(VAE):
    r"""SCVI's variational autoencoder with a mixture posterior.

    The generative model is that of :class:`scvi.module.VAE`, unchanged. The posterior is

    .. math:: q(z | x) = \sum_{s=1}^S \pi_s N(\mu_s(x), \mathrm{diag}\,\sigma_s^2(x))

    with one encoder a component, and training maximises MISELBO (Eq. 4 of the paper).

    Parameters
    ----------
    *args, **kwargs
        Those of :class:`scvi.module.VAE`; the signature lists them by name.
    n_components
        S, the number of encoders.
    n_importance_samples
        L, samples a component and cell in each training step. While the KL weight is below 1 the
        L samples are averaged outside the logarithm, for then an importance-weighted bound of L
        samples bounds nothing.
    mixture_weights
        "uniform", "learned" (one set of S weights), "amortized" (a set for each cell), or S
        numbers that sum to 1.
    encoder_sharing
        "separate": S encoders; "trunk": one encoder for all, whose last hidden layer also sees a
        one-hot code of the component.
    estimator
        Of the training loss: "all" draws from every component; "s2a" from `n_drawn` components
        chosen at random in each step, scored under all (the same bound in expectation); "s2s" from
        `n_drawn`, scored under those alone (a looser bound, whose cost does not depend on S).
        Evaluation mode always takes all.
    n_drawn
        A, components that a training step draws from; not looked at with "all".

    Raises
    ------
    ValueError
        If S or L is not a positive integer, the weights are not a distribution over S, or the
        sharing or the estimator is unknown or does not go with the rest.
    """

    def __init__(
        self,
        *args: Any,
        n_components: int = 4,
        n_importance_samples: int = 1,
        mixture_weights: str | Sequence[float] = "uniform",
        encoder_sharing: str = "separate",
        estimator: str = "all",
        n_drawn: int = 2,
        **kwargs: Any,
    ) -> None:
        check_mixture_arguments(n_components, n_importance_samples, mixture_weights)
        check_many_components(n_components, mixture_weights, encoder_sharing, estimator, n_drawn)
        super().__init__(*args, **kwargs)
        self.n_components = n_components
        self.n_importance_samples = n_importance_samples
        # scArches decides by ".0." and ".1." in a parameter's name whether to train it, so the
        # encoders are attributes of their own and not entries of a ModuleList.
        self.encoder_sharing, self.estimator, self.n_drawn = encoder_sharing, estimator, n_drawn
        if encoder_sharing == "trunk":
            self.component_offsets = nn.Parameter(initial_offsets(self.z_encoder, n_components))
        else:
            for s in range(1, n_components):
                self.add_module(f"z_encoder_{s}", _fresh_copy(self.z_encoder))
        if not isinstance(mixture_weights, str):
            mixture_weights = tuple(float(w) for w in mixture_weights)
        self.mixture_weights = mixture_weights
        if mixture_weights == "learned":
            self.mixture_logits = nn.Parameter(torch.zeros(n_components))
        elif mixture_weights == "amortized":
            self.weight_encoder = nn.Linear(self.z_encoder.mean_encoder.in_features, n_components)
            nn.init.zeros_(self.weight_encoder.weight)
            nn.init.zeros_(self.weight_encoder.bias)
        elif mixture_weights != "uniform":
            given = log_weights_from(mixture_weights, n_components)
            self.register_buffer("given_log_weights", given, persistent=False)

    @property
    def z_encoders(self) -> list[nn.Module]:
        """The S encoders, or the one that all share; the first is `z_encoder`."""
        if self.encoder_sharing == "trunk":
            return [self.z_encoder]
        others = [getattr(self, f"z_encoder_{s}") for s in range(1, self.n_components)]
        return [self.z_encoder, *others]

    # ---------------------------------------------------------------- q(z | x)

    @auto_move_data
    def _regular_inference(
        self,
        x: Tensor,
        batch_index: Tensor,
        cont_covs: Tensor | None = None,
        cat_covs: Tensor | None = None,
        n_samples: int = 1,
        stratified: bool = False,
    ) -> dict[str, Tensor | Distribution | None]:
        """Encode a batch and draw from the mixture, or (`stratified`) L times a component."""
        encoder_input, covariates = self._encoder_input(x, batch_index, cont_covs, cat_covs)
        drawn = self._drawn_components(x.device) if stratified else None
        encoded = drawn if self.estimator == "s2s" else None
        loc, scale, hidden = self._encode(encoder_input, covariates, encoded)
        if not self.training and not torch.compiler.is_compiling():
            check_encoded(loc)
        # Components were drawn in proportion to their weights, so that they count equally.
        log_weights = self._log_weights(hidden) if encoded is None else None
        qz = MixtureOfNormals(loc, scale, log_weights, validate_args=False)
        if self.use_observed_lib_size:
            ql, library = None, torch.log(row_sums(x))
        else:
            ql, library = self.l_encoder(encoder_input, *covariates)
        if drawn is not None and encoded is None:
            return self._draw_stratified(qz, ql, library, self.n_importance_samples, drawn)
        return self._draw(qz, ql, library, n_samples, stratified, skip=1)

    def _drawn_components(self, device: torch.device) -> Tensor | None:
        """Components `[A]` that this training step draws from; None is all."""
        if self.estimator == "all" or not self.training or self.n_drawn == self.n_components:
            return None
        log_weights = None if self.mixture_weights == "uniform" else self.given_log_weights
        if self.estimator == "s2s" and self.encoder_sharing == "separate":
            device = torch.device("cpu")  # the drawn encoders are chosen by number
        return draw_components(self.n_components, self.n_drawn, log_weights, device)

    def _encode(
        self, x: Tensor, covariates: tuple[Tensor, ...], drawn: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Means, standard deviations and last hidden layer of all or the drawn components."""
        if self.encoder_sharing == "trunk":
            return encode_trunk(self.z_encoder, self.component_offsets, x, *covariates, drawn=drawn)
        encoders = self.z_encoders
        if drawn is not None:
            encoders = [encoders[s] for s in drawn.tolist()]
        return encode_components(encoders, x, *covariates)

    @auto_move_data
    def _cached_inference(
        self,
        qzm: Tensor,
        qzv: Tensor,
        observed_lib_size: Tensor,
        n_samples: int = 1,
        stratified: bool = False,
    ) -> dict[str, Tensor | Distribution | None]:
        """Draw from posteriors that were stored by `minify_adata`."""
        qz = self.unpack_posterior(qzm, qzv)
        return self._draw(qz, None, torch.log(observed_lib_size), n_samples, stratified)

    def _encoder_input(
        self, x: Tensor, batch_index: Tensor, cont_covs: Tensor | None, cat_covs: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        parts = [log_of_counts(x) if self.log_variational else x]
        covariates: tuple[Tensor, ...] = ()
        if self.encode_covariates:
            if cont_covs is not None:
                parts.append(cont_covs)
            if cat_covs is not None:
                covariates = torch.split(cat_covs, 1, dim=1)
            if self.batch_representation == "embedding":
                parts.append(self.compute_embedding(REGISTRY_KEYS.BATCH_KEY, batch_index))
        if self.batch_representation != "embedding":
            covariates = (batch_index, *covariates)
        return _side_by_side(parts), covariates

    def _log_weights(self, hidden: Tensor) -> Tensor | None:
        """Log mixture weights `[n, S]` from the last hidden layer `[n, S, n_hidden]`."""
        if self.mixture_weights == "uniform":
            return None
        if self.mixture_weights == "amortized":
            head = self.weight_encoder
            logits = (hidden.float() * head.weight).sum(-1) + head.bias
            return logits.log_softmax(-1)
        if self.mixture_weights == "learned":
            log_weights = self.mixture_logits.log_softmax(-1)
        else:
            log_weights = self.given_log_weights
        return log_weights.expand(len(hidden), -1)

    def pack_posterior(self, qz: MixtureOfNormals) -> tuple[Tensor, Tensor]:
        """Flatten q(z|x) for storage: means (then amortised weights) and variances, `[n, S*D]`."""
        means, variances = qz.c_loc.flatten(1), qz.c_scale.square().flatten(1)
        if self.mixture_weights == "amortized":
            means = torch.cat([means, qz.c_log_weights], dim=1)
        return means, variances

    def unpack_posterior(self, qzm: Tensor, qzv: Tensor) -> MixtureOfNormals:
        """Rebuild q(z|x) from :meth:`pack_posterior`; width D is read as one component."""
        n_components = qzv.shape[1] // self.n_latent
        loc = qzm[:, : qzv.shape[1]].unflatten(1, (n_components, self.n_latent))
        scale = qzv.sqrt().unflatten(1, (n_components, self.n_latent))
        log_weights = None
        if n_components == self.n_components:
            stored = qzm[:, qzv.shape[1] :]
            amortized = self.mixture_weights == "amortized"
            log_weights = stored if amortized else self._log_weights(loc)
        return MixtureOfNormals(loc, scale, log_weights, validate_args=False)

    def _draw(
        self,
        qz: MixtureOfNormals,
        ql: Distribution | None,
        library: Tensor,
        n_samples: int,
        stratified: bool,
        skip: int = 0,
    ) -> dict[str, Tensor | Distribution | None]:
        """Draw z, stratified or from the mixture.

        SCVI's encoder draws once (`skip`) before the `n_samples` that it is asked for: the same
        random stream then gives the same draws whether the data are minified or not.
        """
        if stratified:
            return self._draw_stratified(qz, ql, library, self.n_importance_samples)
        if n_samples == 1:
            return self._outputs(qz, ql, library, qz.sample())
        u = qz.sample((n_samples + skip,))[skip:]
        return self._outputs(qz, ql, _repeated(library, ql, n_samples), u)

    def _draw_stratified(
        self,
        qz: MixtureOfNormals,
        ql: Distribution | None,
        library: Tensor,
        n_draws: int,
        drawn: Tensor | None = None,
    ) -> dict[str, Tensor | Distribution | None]:
        """Draw L times from every component: z `[L * S, n, D]`, with every component's scores."""
        (u,), scores = qz.posterior.sample_stratified(n_draws, drawn)
        u = u.flatten(0, 1)
        return self._outputs(qz, ql, _repeated(library, ql, len(u)), u, scores)

    def _outputs(
        self,
        qz: MixtureOfNormals,
        ql: Distribution | None,
        library: Tensor,
        u: Tensor,
        scores: Tensor | None = None,
    ) -> dict[str, Tensor | Distribution | None]:
        return {
            MODULE_KEYS.Z_KEY: self.z_encoder.z_transformation(u),
            MODULE_KEYS.QZ_KEY: qz,
            MODULE_KEYS.QL_KEY: ql,
            MODULE_KEYS.LIBRARY_KEY: library,
            UNTRANSFORMED_KEY: u,
            SCORES_KEY: scores,
        }

    # ---------------------------------------------------------------- p(x | z)

    @auto_move_data
    def generative(
        self,
        z: Tensor,
        library: Tensor,
        batch_index: Tensor,
        cont_covs: Tensor | None = None,
        cat_covs: Tensor | None = None,
        size_factor: Tensor | None = None,
        y: Tensor | None = None,
        transform_batch: Tensor | None = None,
        counts: Tensor | None = None,
    ) -> dict[str, Distribution | Tensor | None]:
        """Decode z `[n, D]` or `[K, n, D]` in one pass over all K*n rows.

        One pass means that batch norm pools the K draws of a cell, in training as in evaluation.
        Where `counts` are given, nothing but their likelihood is needed: the distribution is then
        computed, with the weights of that moment, when something is first read from it, and
        without gradients draws that take too much memory are decoded some at a time, into
        log-likelihoods of the counts.
        """
        if needs_passes(z, counts):
            again = partial(
                self.generative,
                batch_index=batch_index,
                cont_covs=cont_covs,
                cat_covs=cat_covs,
                size_factor=size_factor,
                y=y,
                transform_batch=transform_batch,
                counts=counts,
            )
            return decode_in_passes(again, z, library, counts)
        if transform_batch is not None:
            batch_index = torch.ones_like(batch_index) * transform_batch
        draws = z.shape[:-2]
        scale_factor = size_factor if self.use_size_factor_key else library

        def rows(tensor: Tensor) -> Tensor:
            return tensor.expand(*draws, *tensor.shape[-2:]).reshape(-1, tensor.shape[-1])

        decoder_input = [z] if cont_covs is None else [z, cont_covs]
        covariates = () if cat_covs is None else torch.split(cat_covs, 1, dim=1)
        if self.batch_representation == "embedding":
            embedded = self.compute_embedding(REGISTRY_KEYS.BATCH_KEY, batch_index)
            decoder_input.append(embedded)
        else:
            covariates = (batch_index, *covariates)
        flat_input = _side_by_side([rows(part) for part in decoder_input])
        covariates = tuple(map(rows, covariates))
        if counts is not None and can_defer(self.decoder, self.gene_likelihood, self.dispersion):
            px_r = self._dispersion(batch_index, y)
            hidden = self.decoder.px_decoder(flat_input, *covariates)
            px = undecoded(self._heads(hidden, rows(scale_factor), px_r), draws)
        else:
            px_scale, px_r, px_rate, px_dropout = (
                None if out is None else widened(out).unflatten(0, (*draws, -1))
                for out in self.decoder(
                    self.dispersion, flat_input, rows(scale_factor), *covariates
                )
            )
            px_r = self._dispersion(batch_index, y) if px_r is None else px_r.exp()
            px = self._likelihood(px_scale, px_r, px_rate, px_dropout)
        pl = None
        if not self.use_observed_lib_size:
            mean, variance = self._compute_local_library_params(batch_index)
            pl = torch.distributions.Normal(mean, variance.sqrt())
        return {
            MODULE_KEYS.PX_KEY: px,
            MODULE_KEYS.PL_KEY: pl,
            MODULE_KEYS.PZ_KEY: torch.distributions.Normal(
                torch.zeros_like(z), torch.ones_like(z), validate_args=False
            ),
            DISPERSION_KEY: px_r,
        }

    def _dispersion(self, batch_index: Tensor, y: Tensor) -> Tensor:
        """Inverse dispersion, `[G]` or `[n, G]`."""
        if self.dispersion == "gene-label":
            px_r = linear(one_hot(y.squeeze(-1), self.n_labels).float(), self.px_r)
        elif self.dispersion == "gene-batch":
            px_r = linear(one_hot(batch_index.squeeze(-1), self.n_batch).float(), self.px_r)
        else:
            px_r = self.px_r
        return px_r.exp()

    def _heads(self, hidden: Tensor, log_library: Tensor, theta: Tensor) -> Heads:
        scale, dropout = self.decoder.px_scale_decoder[0], self.decoder.px_dropout_decoder
        inflated = self.gene_likelihood == "zinb"
        logits = (dropout.weight, dropout.bias) if inflated else (None, None)
        return Heads(hidden, scale.weight, scale.bias, *logits, log_library, theta)

    def _likelihood(
        self, scale: Tensor, dispersion: Tensor, rate: Tensor, dropout: Tensor
    ) -> Distribution:
        if self.gene_likelihood == "zinb":
            return ZeroInflatedNegativeBinomial(
                mu=rate, theta=dispersion, zi_logits=dropout, scale=scale
            )
        if self.gene_likelihood == "nb":
            return NegativeBinomial(mu=rate, theta=dispersion, scale=scale)
        if self.gene_likelihood == "poisson":
            return Poisson(rate=rate, scale=scale)
        return Normal(rate, dispersion, normal_mu=scale)

    # ---------------------------------------------------------------- the bound

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
                ratio = _library_ratio(inference_outputs, generative_outputs)
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
        found = {"jsd": jsd(scores, qz.c_log_weights.T).mean()}
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

    def _bound_terms(
        self, tensors: dict, inference_outputs: dict, generative_outputs: dict
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """log_lik, log_prior `[L, S, n]`, log_q_all `[L, S, S, n]` and log weights `[S, n]`.

        Draws that were not stratified (a caller asked for `n_samples`) come from the mixture as a
        whole: they are L samples of one component whose density is the mixture's.
        """
        qz = inference_outputs[MODULE_KEYS.QZ_KEY]
        u, scores = inference_outputs[UNTRANSFORMED_KEY], inference_outputs[SCORES_KEY]
        x = tensors[REGISTRY_KEYS.X_KEY]
        if LOG_LIK_KEY in generative_outputs:
            log_lik = generative_outputs[LOG_LIK_KEY]
        else:
            px, theta = generative_outputs[MODULE_KEYS.PX_KEY], generative_outputs[DISPERSION_KEY]
            log_lik = log_likelihood(px, x, theta)
        log_prior = _standard_normal(u)
        if scores is None:
            log_q = qz.log_prob(u).squeeze(-1)
            shape = (-1, 1, log_q.shape[-1])
            return (
                log_lik.reshape(shape),
                log_prior.reshape(shape),
                log_q.reshape(-1, 1, 1, log_q.shape[-1]),
                None,
            )
        log_weights = None if self.mixture_weights == "uniform" else qz.c_log_weights.T
        shape = (scores.shape[0], scores.shape[1], -1)
        return log_lik.reshape(shape), log_prior.reshape(shape), scores, log_weights

    # ---------------------------------------------------------------- evaluation

    @torch.inference_mode()
    @auto_move_data
    def marginal_ll(
        self,
        tensors: dict[str, Tensor],
        n_mc_samples: int,
        return_mean: bool = False,
        n_mc_samples_per_pass: int | None = None,
        estimator: str = "pooled",
    ) -> Tensor | float:
        r"""Importance-sampled log p(x) with the true mixture as proposal.

        `n_mc_samples` draws are spread evenly over the components (rounded up to a multiple of
        S). "pooled" averages all weights inside one logarithm; "stratified" (Eq. 17 of the paper)
        takes one logarithm a component. Both are lower bounds in expectation, and pooled is never
        below stratified for the same draws.

        Parameters
        ----------
        tensors
            A minibatch.
        n_mc_samples
            Draws a cell.
        return_mean
            Whether to average over cells.
        n_mc_samples_per_pass
            Draws decoded at once; None fits a pass into the cache of a CPU, or 64 MB a tensor on
            a GPU.
        estimator
            "pooled" or "stratified".

        Returns
        -------
        `[n]` on the CPU, or its mean; in nats.

        Raises
        ------
        ValueError
            If the estimator is unknown or `n_mc_samples` is below 1.
        """
        if estimator not in ESTIMATORS:
            raise ValueError(
                f"estimator must be one of {list(ESTIMATORS)}, but it is {estimator!r}."
            )
        if n_mc_samples < 1:
            raise ValueError(f"n_mc_samples must be at least 1, but it is {n_mc_samples}.")
        log_ll = torch.cat(
            [
                self._marginal_ll(part, n_mc_samples, n_mc_samples_per_pass, ESTIMATORS[estimator])
                for part in cells_in_passes(tensors, tensors[REGISTRY_KEYS.X_KEY])
            ]
        )
        return log_ll.mean().item() if return_mean else log_ll.cpu()

    def _marginal_ll(
        self, tensors: dict, n_samples: int, n_samples_per_pass: int | None, bound: Callable
    ) -> Tensor:
        """Log p(x) of some cells, `[n]`."""
        encoded = self._encoded_whole(tensors)
        qz = encoded[MODULE_KEYS.QZ_KEY]
        per_component = -(-n_samples // self.n_components)
        ratios = self._log_ratios(tensors, encoded, per_component, n_samples_per_pass)
        log_sums = [torch.logsumexp(log_ratio, dim=0) for log_ratio, _ in ratios]
        log_strata = torch.logsumexp(torch.stack(log_sums), dim=0) - np.log(per_component)
        # Each stratum's average weight stands for one sample, already divided by q.
        zeros = torch.zeros_like(log_strata)
        return bound(
            log_strata.unsqueeze(0),
            zeros.unsqueeze(0),
            zeros.unsqueeze(0).unsqueeze(2).expand(-1, -1, len(zeros), -1),
            qz.c_log_weights.T,
        )

    def _encoded_whole(self, tensors: dict) -> dict[str, Any]:
        """What inference gives for counts, also where minified data hold these."""
        return self.inference(**self._get_inference_input(tensors, full_forward_pass=True))

    def _log_ratios(
        self, tensors: dict, encoded: dict, n_draws: int, n_samples_per_pass: int | None = None
    ) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """Log importance weights of n draws a component in passes, `[L, S, n]`, and the draws."""
        a_pass = n_samples_per_pass or draws_a_pass(tensors[REGISTRY_KEYS.X_KEY])
        a_pass = max(1, a_pass // self.n_components)
        names = (MODULE_KEYS.QZ_KEY, MODULE_KEYS.QL_KEY, MODULE_KEYS.LIBRARY_KEY)
        whole = [encoded[name] for name in names]
        for start in range(0, n_draws, a_pass):
            yield self._log_ratio(tensors, *whole, min(a_pass, n_draws - start))

    def _log_ratio(
        self,
        tensors: dict,
        qz: MixtureOfNormals,
        ql: Distribution | None,
        library: Tensor,
        n_draws: int,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Log importance weights of fresh stratified draws, `[L, S, n]`, and the draws."""
        outputs = self._draw_stratified(qz, ql, library, n_draws)
        counts = tensors[REGISTRY_KEYS.X_KEY]
        decoded = self.generative(**self._get_generative_input(tensors, outputs), counts=counts)
        log_lik, log_prior, _, _ = self._bound_terms(tensors, outputs, decoded)
        log_ratio = log_lik + log_prior - log_mixture(outputs[SCORES_KEY], qz.c_log_weights.T)
        if ql is not None:
            log_ratio = log_ratio + _library_ratio(outputs, decoded).reshape(log_ratio.shape)
        return log_ratio, outputs

    @torch.inference_mode()
    @auto_move_data
    def component_bounds(self, tensors: dict[str, Tensor]) -> Tensor:
        """One draw of every component's own ELBO, `[S, n]`, in nats (Theorem 1's right side)."""
        inputs = self._get_inference_input(tensors, full_forward_pass=True)
        outputs = self.inference(**inputs, stratified=True)
        counts = tensors[REGISTRY_KEYS.X_KEY]
        decoded = self.generative(**self._get_generative_input(tensors, outputs), counts=counts)
        return component_elbos(*self._bound_terms(tensors, outputs, decoded)[:3])


def _fresh_copy(encoder: nn.Module) -> nn.Module:
    """An encoder of the same architecture with weights of its own."""
    copy = deepcopy(encoder)
    for module in copy.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return copy


def _side_by_side(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]


def _repeated(library: Tensor, ql: Distribution | None, n_draws: int) -> Tensor:
    """Log library sizes for that many draws: the observed one, or one of its own for each."""
    return library.expand(n_draws, *library.shape) if ql is None else ql.rsample((n_draws,))


def _standard_normal(u: Tensor) -> Tensor:
    """Log N(u; 0, I), summed over the last axis."""
    return -0.5 * (u.square().sum(-1) + u.shape[-1] * np.log(2 * np.pi))


def _library_ratio(inference_outputs: dict, generative_outputs: dict) -> Tensor:
    """Log p(l) - log q(l | x) at the drawn log library sizes, `[K, n]`."""
    library = inference_outputs[MODULE_KEYS.LIBRARY_KEY]
    ql, pl = inference_outputs[MODULE_KEYS.QL_KEY], generative_outputs[MODULE_KEYS.PL_KEY]
    return (pl.log_prob(library) - ql.log_prob(library)).sum(-1)


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


def _named_signature() -> inspect.Signature:
    """VAE's parameters and ours, all by name: scvi-tools rebuilds modules from this list."""
    own = inspect.signature(MixtureVAE.__init__).parameters.values()
    base = inspect.signature(VAE).parameters.values()
    return inspect.Signature(
        [*base, *(p for p in own if p.name != "self" and p.kind == p.KEYWORD_ONLY)]
    )


MixtureVAE.__signature__ = _named_signature()
