"""What a MixtureSCVI knows of the exact posterior of every cell: draws of it, how far q is from it.

The exact posterior p(z | x) follows from the decoder. Both come from draws of a proposal that is
adapted to each cell (:mod:`scmixvi.singlecell._queries.evidence`).
"""

import warnings
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import settings
from scvi.data import AnnDataManager
from scvi.data._constants import ADATA_MINIFY_TYPE
from scvi.utils import track
from torch import Tensor

from scmixvi._messages import check_whole
from scmixvi.singlecell._checks.arguments import check_indices
from scmixvi.singlecell._parts.depth import with_depth
from scmixvi.singlecell._queries.evidence import N_FINAL, posterior_draws, variational_gaps

# Elements of one decoded tensor: 128 MB in float32.
MAX_DECODED = 2**25
# Share of the draws that count below which a cell's are not to be trusted.
FEW = 0.02


class ExactPosteriors:
    """Methods of :class:`~scmixvi.MixtureSCVI` about p(z | x)."""

    @torch.inference_mode()
    def get_posterior_samples(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        n_samples: int = 25,
        batch_size: int | None = None,
        progress: bool = True,
        use_observed_lib_size: bool | None = None,
    ) -> np.ndarray:
        r"""Draws of every cell's exact posterior, the uncertainty of its latents.

        Encoders are too sure of a cell, and draws of q(z | x) too alike. These follow

        .. math:: p(z | x) \propto p(x | z)\, p(z)

        of the model: each is chosen among at least 1600 draws of a proposal that adaptive
        importance sampling fits to the cell, with probability in proportion to p(x, z) over the
        proposal's density. What is computed of each draw, such as the cell type that a classifier
        gives it, has the uncertainty of the cell.

        Where depths are latent the draws are of p(z, l | x), and their z is returned. A model takes
        them to be the sums of the counts, unless it was made with `use_observed_lib_size=False`;
        but the same model can be asked about cells whose depth l is not known, with scvi-tools'
        prior of it. Of cells that the model draws, it then holds what it should
        (`python -m scmixvi.experiments.depths`), which it does not with sums.

        Parameters
        ----------
        adata, indices
            As in :meth:`get_latent_representation`. A cell takes some thousand decoder passes:
            choose some hundred cells first.
        n_samples
            Draws a cell.
        batch_size
            Cells at a time; None fits them into some 100 MB a tensor.
        progress
            Show a progress bar.
        use_observed_lib_size
            Whether to take the sum of a cell's counts for its depth; None is as the model was made.

        Returns
        -------
        `(n_samples, n, D)`; one draw of all cells is an embedding like that of
        :meth:`get_latent_representation`.

        Warns
        -----
        UserWarning
            If less than 2 % of the draws of a cell count, so that the chosen ones repeat.

        Raises
        ------
        ValueError
            If the data are minified without counts, `n_samples` is not a whole number of at least
            1, depths are to be latent and are given as size factors, or all cells of a batch have
            the same, or as in :meth:`get_latent_representation`.

        References
        ----------
        Rubin 1988, "Using the SIR algorithm to simulate posterior distributions"; Cappé et al.
        2008, "Adaptive importance sampling in general mixture classes".
        """
        self._check_if_trained(warn=False)
        check_whole("n_samples", n_samples)
        n_final = max(N_FINAL, 10 * n_samples)
        batches, cells = self._cells_with_counts(adata, indices, batch_size, n_final)
        module = with_depth(self.module, use_observed_lib_size, *self._depths(adata))
        found = [
            posterior_draws(module, self._here(tensors), n_samples, n_final=n_final)
            for tensors in track(batches, "cells", disable=not progress)
        ]
        draws, shares = zip(*found, strict=True)
        few = int((torch.cat(shares) < FEW).sum())
        if few > 0:
            warnings.warn(
                f"of {few} of {len(cells)} cells less than {FEW:.0%} of the draws to choose from "
                "count, so that their samples repeat and may miss a part of the posterior: "
                "get_variational_gap names them (effective_share).",
                UserWarning,
                stacklevel=settings.warnings_stacklevel,
            )
        u = torch.cat(draws, dim=1)[..., : self.module.n_latent]
        return self.module.z_encoder.z_transformation(u).cpu().numpy()

    @torch.inference_mode()
    def get_variational_gap(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        n_samples: int = 1000,
        batch_size: int | None = None,
        progress: bool = True,
        n_refinement_steps: int = 0,
    ) -> pd.DataFrame:
        r"""How far each cell's posterior is from the exact one of this decoder, in nats.

        .. math:: \log p(x) - \text{MISELBO}(x) = \text{KL}(q(z | x) \,\|\, p(z | x))

        Importance-sampled :meth:`get_marginal_ll` depends on the encoders, which are its proposal.
        Here log p(x) is estimated by a proposal of each cell's own, which adaptive importance
        sampling fits to its exact posterior; it starts from the encoders' q and from where 100
        gradient steps bring that. Where library sizes are latent q and p are those of (z, l).

        Parameters
        ----------
        adata, indices
            As in :meth:`get_latent_representation`. A cell takes some thousand decoder passes:
            choose some hundred cells first.
        n_samples
            Draws a cell for MISELBO, spread evenly over the components.
        batch_size
            Cells at a time; None fits them into some 100 MB a tensor.
        progress
            Show a progress bar.
        n_refinement_steps
            Look at posteriors that are refined as in :meth:`get_latent_representation`.

        Returns
        -------
        One row a cell: `log_likelihood`, `miselbo`, `gap`; `effective_share`, the share of the
        proposal's 1600 draws that count, 0 to 1; and `still_rising`, how much the estimate of log
        p(x) is above that from ten times fewer draws. Where the share is below a few per cent, or
        it is still rising, log p(x) and the gap are larger than said.

        Raises
        ------
        ValueError
            If the data are minified without counts, `n_samples` is not a whole number of at least
            1, `n_refinement_steps` not one of at least 0, or as in
            :meth:`get_latent_representation`.

        References
        ----------
        Cappé et al. 2008, "Adaptive importance sampling in general mixture classes".
        """
        self._check_if_trained(warn=False)
        check_whole("n_samples", n_samples)
        check_whole("n_refinement_steps", n_refinement_steps, least=0)
        batches, cells = self._cells_with_counts(adata, indices, batch_size, N_FINAL)
        found = [
            variational_gaps(self.module, self._here(tensors), n_samples, n_refinement_steps)
            for tensors in track(batches, "cells", disable=not progress)
        ]
        columns = {k: torch.cat([part[k] for part in found]).cpu().numpy() for k in found[0]}
        return pd.DataFrame(columns, cells)

    def _cells_with_counts(
        self,
        adata: AnnData | None,
        indices: Sequence[int] | None,
        batch_size: int | None,
        n_draws: int,
    ) -> tuple[Iterable[dict[str, Tensor]], pd.Index]:
        """Minibatches and the cells' names, if p(z | x) can be known."""
        adata = self._validate_anndata(adata)
        if self.minified_data_type == ADATA_MINIFY_TYPE.LATENT_POSTERIOR:
            raise ValueError(
                "the data are minified without counts, from which the exact posterior follows: "
                "load the model with the full data."
            )
        widest = max(adata.n_vars, 2 * self.module.n_components * self.module.n_latent)
        batch_size = batch_size or max(1, MAX_DECODED // (n_draws * widest))
        rows = check_indices(indices, adata.n_obs)
        batches = self._make_data_loader(adata=adata, indices=rows, batch_size=batch_size)
        return batches, adata.obs_names[slice(None) if rows is None else rows]

    def _depths(self, adata: AnnData | None) -> list[AnnDataManager]:
        """Of cells that say how depths are distributed: the model's own, and those asked for."""
        asked = None if adata is None else self.get_anndata_manager(adata, required=True)
        return [manager for manager in (self.adata_manager, asked) if manager is not None]

    def _here(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: value.to(self.device) for key, value in tensors.items()}
