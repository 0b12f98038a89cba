"""p(x | z) of a MixtureVAE: decoding all draws of a minibatch at once."""

from functools import partial

import torch
from scvi import REGISTRY_KEYS
from scvi.distributions import NegativeBinomial, Normal, Poisson, ZeroInflatedNegativeBinomial
from scvi.module._constants import MODULE_KEYS
from scvi.module.base import auto_move_data
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.functional import linear, one_hot

from scmixvi.core.precision import at_least_float32
from scmixvi.singlecell._parts.decoded import Heads, can_defer, undecoded
from scmixvi.singlecell._parts.inference import side_by_side
from scmixvi.singlecell._parts.streaming import DISPERSION_KEY, decode_in_passes, needs_passes


class Generation:
    """Methods of :class:`~scmixvi.singlecell.MixtureVAE` about p(x | z)."""

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
        rows = partial(_flat_rows, draws)
        scale_factor = size_factor if self.use_size_factor_key else library
        parts, covariates = self._decoder_input(z, batch_index, cont_covs, cat_covs)
        flat_input = side_by_side([rows(part) for part in parts])
        covariates = tuple(map(rows, covariates))
        if counts is not None and can_defer(self.decoder, self.gene_likelihood, self.dispersion):
            px_r = self._dispersion(batch_index, y)
            hidden = self.decoder.px_decoder(flat_input, *covariates)
            px = undecoded(self._heads(hidden, rows(scale_factor), px_r), draws)
        else:
            px_scale, px_r, px_rate, px_dropout = (
                None if out is None else at_least_float32(out).unflatten(0, (*draws, -1))
                for out in self.decoder(
                    self.dispersion, flat_input, rows(scale_factor), *covariates
                )
            )
            px_r = self._dispersion(batch_index, y) if px_r is None else px_r.exp()
            px = self._likelihood(px_scale, px_r, px_rate, px_dropout)
        pl = None
        if not self.use_observed_lib_size:
            mean, variance = self._compute_local_library_params(batch_index)
            pl = torch.distributions.Normal(mean, variance.sqrt(), validate_args=False)
        return {
            MODULE_KEYS.PX_KEY: px,
            MODULE_KEYS.PL_KEY: pl,
            MODULE_KEYS.PZ_KEY: torch.distributions.Normal(
                torch.zeros_like(z), torch.ones_like(z), validate_args=False
            ),
            DISPERSION_KEY: px_r,
        }

    def _decoder_input(
        self,
        z: Tensor,
        batch_index: Tensor,
        cont_covs: Tensor | None,
        cat_covs: Tensor | None,
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """What the decoder's input is put together from, and its categorical covariates."""
        parts = [z] if cont_covs is None else [z, cont_covs]
        covariates = () if cat_covs is None else torch.split(cat_covs, 1, dim=1)
        if self.batch_representation == "embedding":
            embedded = self.compute_embedding(REGISTRY_KEYS.BATCH_KEY, batch_index)
            return [*parts, embedded], covariates
        return parts, (batch_index, *covariates)

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
            return Poisson(rate=rate, scale=scale, validate_args=False)
        return Normal(rate, dispersion, normal_mu=scale, validate_args=False)


def _flat_rows(draws: torch.Size, tensor: Tensor) -> Tensor:
    """A row for every draw of every cell, `[n, F]` or `[*draws, n, F] -> [K * n, F]`."""
    return tensor.expand(*draws, *tensor.shape[-2:]).reshape(-1, tensor.shape[-1])
