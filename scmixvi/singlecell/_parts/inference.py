"""q(z | x) of a MixtureVAE: encoding a minibatch, and drawing from it."""

from collections.abc import Callable

import torch
from scvi import REGISTRY_KEYS
from scvi.module._constants import MODULE_KEYS
from scvi.module.base import auto_move_data
from torch import Tensor
from torch.distributions import Distribution

from scmixvi._messages import check_whole
from scmixvi.core import draw_components
from scmixvi.singlecell._checks.arguments import check_encoded
from scmixvi.singlecell._loops.counts import log_of_counts, row_sums
from scmixvi.singlecell._loops.thinning import thinned
from scmixvi.singlecell._parts.distributions import MixtureOfNormals
from scmixvi.singlecell._parts.draws import stratified_draws
from scmixvi.singlecell._parts.encoders import encode_components
from scmixvi.singlecell._parts.trunk import encode_trunk

# Keys that scvi-tools' dictionaries do not have: the draw before a logistic-normal
# transformation, every component's score of it, and the prior's.
UNTRANSFORMED_KEY, SCORES_KEY, PRIOR_KEY = "u", "log_q_all", "log_prior"


class Inference:
    """Methods of :class:`~scmixvi.singlecell.MixtureVAE` about q(z | x)."""

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
        rest = batch_index, cont_covs, cat_covs
        seen = self._seen(x)
        encoder_input, covariates = self._encoder_input(seen, *rest)
        drawn = self._drawn_components(x.device) if stratified else None
        encoded = drawn if self.estimator == "s2s" else None
        loc, scale, hidden = self._encode(encoder_input, covariates, encoded)
        if not self.training and not torch.compiler.is_compiling():
            check_encoded(loc)
        # Components were drawn in proportion to their weights, so that they count equally.
        log_weights = self._log_weights(len(loc), hidden) if encoded is None else None
        qz = MixtureOfNormals(loc, scale, log_weights, validate_args=False)
        if self.use_observed_lib_size:
            ql, library = None, torch.log(row_sums(x))
        else:
            whole = encoder_input if seen is x else self._encoder_input(x, *rest)[0]
            ql, library = self.l_encoder(whole, *covariates)
        if drawn is not None and encoded is None:
            return self._draw_stratified(qz, ql, library, self.n_importance_samples, drawn)
        return self._draw(qz, ql, library, n_samples, stratified)

    def _seen(self, x: Tensor) -> Tensor:
        """What the encoders of z see of the counts: with `thinning_rate`, in training, a part."""
        if self.thinning_rate > 0 and self.z_encoder.training:
            return thinned(x, self.thinning_rate)
        return x

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
    ) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
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
        return side_by_side(parts), covariates

    def _log_weights(self, n_cells: int, hidden: Callable[[], Tensor]) -> Tensor | None:
        """Log mixture weights `[n, S]`; amortised ones from hidden layers `[n, S, n_hidden]`."""
        if self.mixture_weights != "amortized":
            return self._same_log_weights(n_cells)
        head = self.weight_encoder
        return ((hidden().float() * head.weight).sum(-1) + head.bias).log_softmax(-1)

    def _same_log_weights(self, n_cells: int) -> Tensor | None:
        """Log mixture weights that all cells have, `[n, S]`; None if they are uniform."""
        if self.mixture_weights == "uniform":
            return None
        if self.mixture_weights == "learned":
            log_weights = self.mixture_logits.log_softmax(-1)
        else:
            log_weights = self.given_log_weights
        return log_weights.expand(n_cells, -1)

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
            log_weights = stored if amortized else self._same_log_weights(len(loc))
        return MixtureOfNormals(loc, scale, log_weights, validate_args=False)

    def _draw(
        self,
        qz: MixtureOfNormals,
        ql: Distribution | None,
        library: Tensor,
        n_samples: int,
        stratified: bool,
    ) -> dict[str, Tensor | Distribution | None]:
        """Draw z, stratified or from the mixture; raises ValueError unless n_samples is a count.

        The same random stream gives the same draws whether the data are minified or not.
        """
        if stratified:
            return self._draw_stratified(qz, ql, library, self.n_importance_samples)
        if n_samples == 1:
            return self._outputs(qz, ql, library, qz.sample())
        check_whole("n_samples", n_samples)
        u = qz.sample((n_samples,))
        return self._outputs(qz, ql, repeated(library, ql, n_samples), u)

    def _draw_stratified(
        self,
        qz: MixtureOfNormals,
        ql: Distribution | None,
        library: Tensor,
        n_draws: int,
        drawn: Tensor | None = None,
    ) -> dict[str, Tensor | Distribution | None]:
        """Draw L times from every component: z `[L * S, n, D]`, with every component's scores."""
        u, scores, log_prior = stratified_draws(qz, n_draws, drawn)
        u = u.flatten(0, 1)
        return self._outputs(qz, ql, repeated(library, ql, len(u)), u, scores, log_prior)

    def _outputs(
        self,
        qz: MixtureOfNormals,
        ql: Distribution | None,
        library: Tensor,
        u: Tensor,
        scores: Tensor | None = None,
        log_prior: Tensor | None = None,
    ) -> dict[str, Tensor | Distribution | None]:
        return {
            MODULE_KEYS.Z_KEY: self.z_encoder.z_transformation(u),
            MODULE_KEYS.QZ_KEY: qz,
            MODULE_KEYS.QL_KEY: ql,
            MODULE_KEYS.LIBRARY_KEY: library,
            UNTRANSFORMED_KEY: u,
            SCORES_KEY: scores,
            PRIOR_KEY: log_prior,
        }


def repeated(library: Tensor, ql: Distribution | None, n_draws: int) -> Tensor:
    """Log library sizes for that many draws: the observed one, or one of its own for each."""
    return library.expand(n_draws, *library.shape) if ql is None else ql.rsample((n_draws,))


def side_by_side(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
