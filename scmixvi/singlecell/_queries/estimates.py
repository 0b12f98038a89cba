"""What a MixtureSCVI estimates from draws: log p(x), expression, and what differs in it."""

import inspect
from typing import Any

import numpy as np
import pandas as pd
from scvi.data._constants import _SETUP_ARGS_KEY
from torch import Tensor

from scmixvi._messages import check_whole
from scmixvi.singlecell._checks.arguments import check_indices
from scmixvi.singlecell._checks.data import check_statistics
from scmixvi.singlecell._checks.expression import check_expression, is_left_to_scvi
from scmixvi.singlecell._checks.groups import check_groups, check_rest
from scmixvi.singlecell._checks.queries import check_genes
from scmixvi.singlecell._queries.expression import CHOICES, weighted_expression
from scmixvi.singlecell._queries.parameters import (
    UNDISPERSED,
    check_dispersed,
    likelihood_parameters,
)

# The column of obs in which scvi-tools keeps groups of cells that no column names.
_GROUPS_KEY = "_scvi_temp_de"
WEIGHTED_EXPRESSION_ARGUMENTS = (
    "transform_batch",
    "gene_list",
    "library_size",
    "batch_size",
    "return_numpy",
    "data_loader_kwargs",
)


class Estimates:
    """Methods of :class:`~scmixvi.MixtureSCVI` that average over draws of z."""

    def get_marginal_ll(self, *args: Any, **kwargs: Any) -> Tensor | np.floating:
        """Importance-sampled log p(x), as :meth:`scvi.model.SCVI.get_marginal_ll` gives it.

        The mean is over cells. (scvi-tools averages the means of minibatches, so that the cells of
        a short last one count for more.) Further arguments: :meth:`MixtureVAE.marginal_ll`'s.

        Raises
        ------
        ValueError
            If `n_mc_samples` or `n_mc_samples_per_pass` is not a whole number of at least 1, or as
            :meth:`marginal_ll` of the module, which takes `pooled` and `n_refinement_steps`.
        """
        bound = inspect.signature(super().get_marginal_ll).bind(*args, **kwargs)
        bound.apply_defaults()
        check_whole("n_mc_samples", bound.arguments["n_mc_samples"])
        a_pass = {**bound.arguments, **bound.kwargs}.get("n_mc_samples_per_pass")
        if a_pass is not None:
            check_whole("n_mc_samples_per_pass", a_pass)
        mean = bound.arguments["return_mean"]
        bound.arguments["return_mean"] = False
        by_cell = super().get_marginal_ll(*bound.args, **bound.kwargs)
        return np.mean(np.asarray(by_cell), dtype=np.float64) if mean else by_cell

    def get_normalized_expression(self, *args: Any, **kwargs: Any) -> np.ndarray | pd.DataFrame:
        r"""Decoded expression, as :meth:`scvi.model.SCVI.get_normalized_expression` gives it.

        `n_samples_overall` draws of all cells together may be chosen by `weights`:

        "uniform"
            as they come from q(z | x), like None;
        "importance"
            scvi-tools' estimator, one minibatch at a time: by how well a draw explains the group of
            cells, at their size factors where these are registered (scvi-tools: at their total
            counts). A warning says if the weights rest on few draws;
        "importance_by_cell"
            as many draws of every cell, each one of `n_mc_samples` (500) of that cell in proportion
            to :math:`p(x | z) p(z) / q(z | x)`, so that they follow the model's exact posterior
            more closely than q; with `n_refinement_steps` (0) q is refined first. No cell counts
            for more than another. The posterior is that in a cell's own batch, whatever
            `transform_batch` is; a library size that is latent is that of the draw.

        Memory holds a minibatch, the latents and what is returned. Weights do nothing without
        `n_samples_overall`, there as here. In a DataFrame of chosen draws the index names the cell
        of each. A model that is not trained warns, here and in :meth:`differential_expression`.

        Raises
        ------
        TypeError
            For an argument that is neither scvi-tools' nor one of the `weights` asked for: of
            "importance" `max_cells`, `n_mc_samples`, `n_mc_samples_per_pass` and `truncation`, of
            "importance_by_cell" `n_mc_samples`, `n_mc_samples_per_pass` and `n_refinement_steps`.
        KeyError
            If adata has no gene of a name in `gene_list`.
        ValueError
            If `weights` or the `library_size` is unknown, `n_samples_overall` is not a whole number
            of at least 1 or given together with `n_samples`, "importance" is asked for and the
            likelihood is neither ZINB nor NB, "importance_by_cell" for data minified without
            counts, or as in :meth:`get_latent_representation`.
        NotImplementedError
            If weighted draws are to be averaged over several batches or come from a dataloader, and
            for "importance_by_cell" with `n_samples`.
        """
        self._check_if_trained()
        bound = inspect.signature(super().get_normalized_expression).bind(*args, **kwargs)
        given = bound.arguments
        adata = self._own if given.get("adata") is None else given["adata"]
        if given.get("dataloader") is None and adata is not None:
            # scvi-tools counts them, and names the rows by them.
            given["indices"] = check_indices(given.get("indices"), adata.n_obs)
            check_genes(given.get("gene_list"), adata.var_names)
        check_expression(self, given)
        weights, n_draws = given.get("weights"), given.get("n_samples_overall")
        unnamed = n_draws is None or given.get("return_numpy") or given.get("n_samples", 1) != 1
        if n_draws is not None and adata is None and given.get("dataloader") is None:
            raise ValueError("the model has no data of its own: name the cells, adata=...")
        if weights not in CHOICES and not unnamed and given.get("dataloader") is None:
            # scvi-tools would name draws of random cells by the first cells.
            cells = np.arange(adata.n_obs) if given["indices"] is None else given["indices"]
            given["indices"] = np.random.choice(cells, n_draws)  # noqa: NPY002
            given["n_samples_overall"] = None
        if weights not in CHOICES or is_left_to_scvi(given):
            return super().get_normalized_expression(*bound.args, **bound.kwargs)
        if n_draws is None:
            given["weights"] = None
            return super().get_normalized_expression(*bound.args, **bound.kwargs)
        adata = self._validate_anndata(adata)
        indices = np.arange(adata.n_obs) if given["indices"] is None else given["indices"]
        passed_on = {k: given[k] for k in WEIGHTED_EXPRESSION_ARGUMENTS if k in given}
        passed_on |= given.get("importance_weighting_kwargs", {})
        return weighted_expression(self, adata, indices, n_draws, weights, **passed_on)

    def differential_expression(self, *args: Any, **kwargs: Any) -> pd.DataFrame:
        """Compare groups of cells, as :meth:`scvi.model.SCVI.differential_expression` does.

        `weights` may also be "importance_by_cell": see :meth:`get_normalized_expression`, which
        draws for both groups, with `importance_weighting_kwargs`.

        Raises
        ------
        KeyError
            If there is no column `groupby`.
        TypeError
            If `importance_weighting_kwargs` are none of the `weights`.
        ValueError
            If a group has no cells, `idx1` or `idx2` are neither positions nor a mask of cells, if
            statistics of counts on disk are asked for (`all_stats`), or as in
            :meth:`get_normalized_expression`.
        """
        bound = inspect.signature(super().differential_expression).bind(*args, **kwargs)
        given = bound.arguments
        adata = self._own if given.get("adata") is None else given["adata"]
        if adata is not None:
            for name in ("idx1", "idx2"):
                if given.get(name) is not None and not isinstance(given[name], str):
                    given[name] = check_indices(np.ravel(given[name]), adata.n_obs, name)
            check_rest(given.get("idx1"), given.get("idx2"), adata.n_obs)
            if given.get("idx1") is None:
                names = ("groupby", "group1", "group2")
                subset = given.get("kwargs", {}).get("subset_idx")
                check_groups(adata, *map(given.get, names), subset)
            if given.get("all_stats", True):
                check_statistics(adata, (self.registry.get(_SETUP_ARGS_KEY) or {}).get("layer"))
        try:
            return super().differential_expression(*bound.args, **bound.kwargs)
        finally:
            # Where it ends with an error scvi-tools leaves the groups of `idx1` behind.
            if adata is not None and _GROUPS_KEY in adata.obs:
                del adata.obs[_GROUPS_KEY]

    def posterior_predictive_sample(self, *args: Any, **kwargs: Any) -> Any:
        """Draw counts of every cell, as :meth:`scvi.model.SCVI.posterior_predictive_sample` does.

        Raises
        ------
        KeyError
            If adata has no gene of a name in `gene_list`, which scvi-tools leaves out.
        ValueError
            If `gene_list` is one name, `n_samples` is not a whole number of at least 1, or as in
            :meth:`get_latent_representation`.
        """
        bound = inspect.signature(super().posterior_predictive_sample).bind(*args, **kwargs)
        given = bound.arguments
        adata = self._own if given.get("adata") is None else given["adata"]
        if given.get("dataloader") is None and adata is not None:
            check_genes(given.get("gene_list"), adata.var_names)
        return super().posterior_predictive_sample(*bound.args, **bound.kwargs)

    def get_likelihood_parameters(self, *args: Any, **kwargs: Any) -> dict[str, np.ndarray]:
        """Parameters of p(x | z), as :meth:`scvi.model.SCVI.get_likelihood_parameters` gives them.

        Of "zinb" and "nb" they are scvi-tools'. Of "poisson" there is the "mean" alone, of "normal"
        the "mean" and as "dispersions" the standard deviation, where scvi-tools ends in an
        AttributeError; both `(n, G)`, or `(n_samples, n, G)` of several draws without `give_mean`.
        """
        if self.module is None or self.module.gene_likelihood not in UNDISPERSED:
            return super().get_likelihood_parameters(*args, **kwargs)
        bound = inspect.signature(super().get_likelihood_parameters).bind(*args, **kwargs)
        return likelihood_parameters(self, **bound.arguments)

    def get_feature_correlation_matrix(self, *args: Any, **kwargs: Any) -> pd.DataFrame:
        """Correlate genes as :meth:`scvi.model.SCVI.get_feature_correlation_matrix` does.

        Raises
        ------
        ValueError
            If the likelihood is neither "zinb" nor "nb", whose dispersions it takes.
        """
        if self.module is not None:
            check_dispersed(self.module.gene_likelihood)
        return super().get_feature_correlation_matrix(*args, **kwargs)
