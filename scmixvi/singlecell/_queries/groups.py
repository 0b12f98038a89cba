"""What a MixtureSCVI says of the posteriors of groups of cells."""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    Normal,
    StudentT,
)

from scmixvi._messages import check_whole
from scmixvi.singlecell._checks.arguments import check_degrees_of_freedom, check_holds_results
from scmixvi.singlecell._checks.groups import check_samples

# Elements of a value's distance to every component that a pass over the values may hold.
_ELEMENTS_A_PASS = 2**23


class _MixtureInPasses(MixtureSameFamily):
    """A mixture of very many components, which scores some values at a time."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of values `[..., D]`, `[...]`, nats."""
        rows = value.reshape(-1, value.shape[-1])
        at_once = max(1, _ELEMENTS_A_PASS // self.component_distribution.mean.numel())
        scores = torch.cat([super(_MixtureInPasses, self).log_prob(r) for r in rows.split(at_once)])
        return scores.reshape(value.shape[:-1])


class GroupPosteriors:
    """Methods of :class:`~scmixvi.MixtureSCVI` about q(z), averaged over some cells."""

    @torch.inference_mode()
    def get_aggregated_posterior(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        dof: float | None = 3.0,
    ) -> Distribution:
        """The average posterior of some cells: a mixture of n*S components.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_latent_representation`, but that empty `indices` are all cells, as in
            scvi-tools.
        dof
            Degrees of freedom of Student's t components with the Gaussians' locations and scales;
            None keeps the Gaussians.

        Raises
        ------
        ValueError
            If `dof` is not above 0, or as in :meth:`get_latent_representation`.
        """
        check_degrees_of_freedom(dof)
        if indices is not None and np.size(indices) == 0:
            indices = None
        posteriors = list(self._posteriors(adata, indices, batch_size))
        loc = torch.cat([qz.c_loc.flatten(0, 1) for qz in posteriors])
        scale = torch.cat([qz.c_scale.flatten(0, 1) for qz in posteriors])
        log_weights = torch.cat([qz.c_log_weights.flatten() for qz in posteriors])
        components = Normal(loc, scale) if dof is None else StudentT(dof, loc, scale)
        return _MixtureInPasses(Categorical(logits=log_weights), Independent(components, 1))

    def differential_abundance(self, *args: Any, **kwargs: Any) -> Any:
        """Score cells by samples, as :meth:`scvi.model.SCVI.differential_abundance` does.

        Every cell gets the log density of its latents under the aggregated posterior of each
        sample, nats, in `adata.obsm["da_log_probs"]`, one column a sample.

        Raises
        ------
        KeyError
            If there is no column `sample_key`, or none is named.
        ValueError
            If cells have no sample or one without cells to learn it from, which
            scvi-tools scores by all cells; if the data are a collection of files; if
            `num_cells_posterior` is not a whole number of at least 1, `dof` not above 0, or as in
            :meth:`get_latent_representation`.
        """
        bound = inspect.signature(super().differential_abundance).bind(*args, **kwargs)
        given = bound.arguments
        adata = self._own if given.get("adata") is None else given["adata"]
        check_degrees_of_freedom(given.get("dof"))
        if given.get("num_cells_posterior") is not None:
            check_whole("num_cells_posterior", given["num_cells_posterior"])
        if adata is not None:
            sub = given.get("adata_sub")  # from scvi-tools 1.5 on
            scored = adata if sub is None else sub
            check_samples(given.get("sample_key"), adata, scored)
            check_holds_results(scored)
        return super().differential_abundance(*bound.args, **bound.kwargs)
