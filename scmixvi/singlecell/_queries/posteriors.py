"""What a MixtureSCVI says of the posterior of every cell."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from anndata import AnnData
from scvi import settings
from scvi.data._constants import ADATA_MINIFY_TYPE
from scvi.data._utils import _validate_adata_dataloader_input
from scvi.utils import track
from torch import Tensor

from scmixvi._messages import check_whole
from scmixvi.singlecell._checks.arguments import (
    check_in_memory,
    check_minification,
    check_refinement_steps,
)
from scmixvi.singlecell._exchange.twins import register_widths
from scmixvi.singlecell._module import MixtureVAE
from scmixvi.singlecell._parts.cell_refinement import refined
from scmixvi.singlecell._parts.distributions import MixtureOfNormals, without_library
from scmixvi.singlecell._parts.passes import CELLS_A_PASS, reads_sparse, to_encode

REPRESENTATIONS = ("mean", "components", "params")
Representation = Literal["mean", "components", "params"]


class Posteriors:
    """Methods of :class:`~scmixvi.MixtureSCVI` about q(z | x)."""

    @torch.inference_mode()
    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        give_mean: bool = True,
        mc_samples: int = 5_000,
        batch_size: int | None = None,
        return_dist: bool = False,
        dataloader: Iterator[dict[str, Tensor | None]] | None = None,
        representation: Representation = "mean",
        n_refinement_steps: int = 0,
        progress: bool = True,
        **data_loader_kwargs: Any,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Latent representation of every cell.

        Parameters
        ----------
        adata, indices, give_mean, mc_samples, batch_size, dataloader, **data_loader_kwargs
            As in :meth:`scvi.model.SCVI.get_latent_representation`.
            Without a `batch_size` cells are encoded 1024 at a time, and refined as many at a time
            as scvi-tools says.
        return_dist
            Return mean and variance of the mixture, `(n, D)` each.
        representation
            "mean": the mixture's mean, `(n, D)`; "components": the S component means side by
            side, `(n, S*D)`; "params": component means, then component variances, `(n, 2*S*D)`,
            the paper's choice. With a logistic-normal latent distribution the last two are the
            parameters before the softmax.
        n_refinement_steps
            Gradient steps that every cell's own posterior takes from where the encoders put it, the
            decoder as it is; 0 leaves it there, 100 bring it close to the best of its family.
        progress
            Show a progress bar while cells are refined.

        Returns
        -------
        An array with one row a cell, or two with `return_dist`.

        Raises
        ------
        ValueError
            If the representation is unknown, or does not go with `give_mean` or `return_dist`, if
            `indices` are neither positions nor a mask of cells, if other cells have other genes or
            a category that the model does not know, if counts, covariates or size factors are not
            finite, if `batch_size` or `mc_samples` is not a whole number of at least 1, or if
            `n_refinement_steps` is not one of at least 0, or not 0 for data minified without
            counts.

        References
        ----------
        Cremer et al. 2018, "Inference suboptimality in variational autoencoders".
        """
        _check_representation(representation, is_moments=return_dist or not give_mean)
        check_whole("mc_samples", mc_samples)
        self._check_if_trained(warn=False)
        check_refinement_steps(n_refinement_steps, self.module.minified_data_type)
        transformed = self.module.latent_distribution == "ln"
        as_in_scvi = representation == "mean" and not return_dist
        sampled = as_in_scvi and (transformed or not give_mean)
        wrapped = as_in_scvi and not isinstance(self.module, MixtureVAE)
        if n_refinement_steps == 0 and (sampled or wrapped):
            return super().get_latent_representation(
                adata,
                indices,
                give_mean,
                mc_samples,
                batch_size,
                return_dist,
                dataloader,
                **data_loader_kwargs,
            )
        rows = []
        if batch_size is None and n_refinement_steps == 0:
            batch_size = max(settings.batch_size, CELLS_A_PASS)
        for qz in self._posteriors(
            adata,
            indices,
            batch_size,
            dataloader,
            n_refinement_steps,
            progress,
            **data_loader_kwargs,
        ):
            if sampled:
                draws = qz.sample((mc_samples if give_mean else 1,))
                row = self.module.z_encoder.z_transformation(draws).mean(0)
            else:
                row = _represented(qz, "moments" if return_dist else representation)
            rows.append(row.cpu())
        found = torch.cat(rows).numpy()
        return tuple(np.split(found, 2, axis=1)) if return_dist else found

    @torch.inference_mode()
    def get_component_weights(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        dataloader: Iterator[dict[str, Tensor | None]] | None = None,
    ) -> np.ndarray:
        """Mixture weights of every cell, `(n, S)`; rows sum to 1.

        They differ from cell to cell only with `mixture_weights="amortized"`.

        Parameters
        ----------
        adata, indices, batch_size, dataloader
            As in :meth:`get_latent_representation`.
        """
        posteriors = self._posteriors(adata, indices, batch_size, dataloader)
        return torch.cat([qz.c_log_weights.exp().cpu() for qz in posteriors]).numpy()

    @torch.inference_mode()
    def get_posterior_diversity(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        n_samples: int = 100,
        batch_size: int | None = None,
        dataloader: Iterator[dict[str, Tensor | None]] | None = None,
    ) -> np.ndarray:
        """How much the components disagree about each cell: their Jensen-Shannon divergence.

        A Monte Carlo estimate in nats, `(n,)`: near 0 where all components say the same, at most
        log S where they do not overlap (Eq. 19 of the paper). It is in units of the components' own
        spread, and no measure of noise: cells of few counts get less of it. What finds those is the
        variance, `get_latent_representation(return_dist=True)[1]`.

        Parameters
        ----------
        adata, indices, batch_size, dataloader
            As in :meth:`get_latent_representation`.
        n_samples
            Draws from each component.

        Raises
        ------
        ValueError
            If `n_samples` is not a whole number of at least 1.
        """
        check_whole("n_samples", n_samples)
        posteriors = self._posteriors(adata, indices, batch_size, dataloader)
        return torch.cat([qz.posterior.jsd(n_samples).cpu() for qz in posteriors]).numpy()

    def minify_adata(
        self,
        minified_data_type: str = ADATA_MINIFY_TYPE.LATENT_POSTERIOR,
        use_latent_qzm_key: str = "X_latent_qzm",
        use_latent_qzv_key: str = "X_latent_qzv",
        n_refinement_steps: int = 0,
        progress: bool = True,
    ) -> None:
        """Replace the counts by every component's means and variances, `(n, S*D)` each.

        Behind the means stand the S log weights of the cell, where these are amortised.
        As :meth:`scvi.model.SCVI.minify_adata`, which stores one mean and variance a cell. Those
        may be in `adata.obsm` under the two keys, as scvi-tools' users put them there; they are
        not looked at, for the components' parameters are computed afresh: also of data that are
        minified with counts already.

        With `n_refinement_steps` they are first refined as in :meth:`get_latent_representation`:
        latents, diversity, expression, differential expression and all else that reads the stored
        posterior then have the refined one. Bounds are of the encoders', as in scvi-tools:
        :meth:`get_variational_gap` and :meth:`get_marginal_ll` refine for themselves.

        Raises
        ------
        ValueError
            If `n_refinement_steps` is not a whole number of at least 0, if the data are minified
            without counts already, if library sizes are latent, or if the counts lie in files.
        NotImplementedError
            If the kind of minified data is unknown.
        """
        self._check_if_trained(warn=False)
        check_refinement_steps(n_refinement_steps, self.module.minified_data_type)
        module = self.module
        check_minification(
            minified_data_type, module.minified_data_type, module.use_observed_lib_size
        )
        check_in_memory(self._own)
        with torch.inference_mode():
            posteriors = self._posteriors(
                n_refinement_steps=n_refinement_steps, progress=progress, stored=False
            )
            packed = [self.module.pack_posterior(qz) for qz in posteriors]
        means, variances = (torch.cat(part).cpu().numpy() for part in zip(*packed, strict=True))
        own = {"_scmixvi_qzm": means, "_scmixvi_qzv": variances}
        full = self.adata
        full.obsm.update(own)
        register_widths(self.adata_manager.registry, means.shape[1], variances.shape[1])
        try:
            super().minify_adata(minified_data_type, *own)
        finally:
            for data in (full, self.adata):
                for key in own:
                    data.obsm.pop(key, None)

    def _posteriors(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        dataloader: Iterator[dict[str, Tensor | None]] | None = None,
        n_refinement_steps: int = 0,
        progress: bool = False,
        stored: bool = True,
        **data_loader_kwargs: Any,
    ) -> Iterator[MixtureOfNormals]:
        """q(z|x) of every minibatch, refined or not; if `stored`, what minified data hold."""
        self._check_if_trained(warn=False)
        _validate_adata_dataloader_input(self, adata, dataloader)
        if dataloader is None:
            adata = self._validate_anndata(adata)
            sparse = n_refinement_steps == 0 and reads_sparse(self.module)
            data_loader_kwargs.setdefault("load_sparse_tensor", sparse)
            dataloader = self._make_data_loader(
                adata=adata, indices=indices, batch_size=batch_size, **data_loader_kwargs
            )
        if n_refinement_steps > 0:
            for tensors in track(dataloader, "cells", disable=not progress):
                q = refined(self.module, tensors, n_refinement_steps, not stored)
                yield without_library(q, self.module.n_latent)[0]
            return
        for tensors in dataloader:
            inputs = self.module._get_inference_input(to_encode(tensors), not stored)
            yield self.module.inference(**inputs)["qz"]


def _check_representation(representation: str, is_moments: bool) -> None:
    """Raise ValueError for one that is unknown, or that has no draws and moments."""
    if representation not in REPRESENTATIONS:
        raise ValueError(
            f"representation must be one of {list(REPRESENTATIONS)}, but it is {representation!r}."
        )
    if representation != "mean" and is_moments:
        raise ValueError(
            f"representation={representation!r} is one array of parameters: leave out "
            "return_dist and give_mean, which go with representation='mean'."
        )


def _represented(qz: MixtureOfNormals, representation: str) -> Tensor:
    """One row a cell: the mixture's mean, its moments, or its components' means or parameters."""
    if representation == "mean":
        return qz.mean
    if representation == "moments":
        return torch.cat([qz.mean, qz.variance], dim=1)
    means = qz.c_loc.flatten(1)
    if representation == "params":
        return torch.cat([means, qz.c_scale.square().flatten(1)], dim=1)
    return means
