"""The depth of a cell: the sum of its counts, or l, a latent variable with scvi-tools' prior.

SCVI takes the sum for the depth, though what is drawn at a depth does not add up to it: the sum
varies, and dropout lowers it. A model that was trained so can be asked about cells whose depth is
latent, for its decoder takes any.
"""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.model._utils import _init_library_size
from torch import Tensor, nn
from torch.distributions import Normal

from scmixvi._messages import listing, quoted
from scmixvi.singlecell._checks.arguments import check_truth

# Standard deviation of log l where refinement starts, and where no encoder of it was trained.
WIDTH = 0.05


class AtTheSum(nn.Module):
    """q(l | x) without a network: log l is about the log of the sum of the counts.

    Parameters
    ----------
    n_genes
        How many of the columns that encoders see are counts.
    log_variational
        Whether they are log(1 + x).
    """

    def __init__(self, n_genes: int, log_variational: bool) -> None:
        super().__init__()
        self.n_genes, self.log_variational = n_genes, log_variational

    def forward(self, x: Tensor, *covariates: Tensor) -> tuple[Normal, Tensor]:
        """The Gaussian of log l, `[n, 1]`, and a draw from it."""
        counts = x[:, : self.n_genes]
        q = at_the_sum(counts.expm1() if self.log_variational else counts)
        return q, q.sample()


def at_the_sum(counts: Tensor) -> Normal:
    """A narrow Gaussian of log l, `[n, 1]`, at the log of the sum of counts `[n, G]`."""
    total = counts.sum(-1, keepdim=True)
    return Normal(total.log(), torch.full_like(total, WIDTH), validate_args=False)


def with_depth(module: nn.Module, observed: bool | None, *managers: AnnDataManager) -> nn.Module:
    """The module as it is, or a copy to which depths are observed, or latent.

    Parameters
    ----------
    module
        A :class:`scmixvi.singlecell.MixtureVAE`.
    observed
        Whether depths are the sums of the counts; None is as the module was made.
    *managers
        Of data whose log sums have the mean and the variance of the prior, batch by batch; a batch
        counts in the first data that have it.

    Raises
    ------
    ValueError
        If depths are to be latent where they are given as size factors, or the data are no counts,
        or the prior of a batch has no width; or if `observed` is neither True, False nor None.
    """
    if observed is not None:
        check_truth("use_observed_lib_size", observed)
    if observed is None or bool(observed) == module.use_observed_lib_size:
        return module
    if module.use_size_factor_key or module.gene_likelihood == "normal":
        known = "given as size factors" if module.use_size_factor_key else "not those of counts"
        raise ValueError(
            f"depths of this model are {known} and cannot be latent: leave out "
            "use_observed_lib_size."
        )
    with torch.inference_mode(False):  # for refinement takes gradients
        there = copy.deepcopy(module)
        there.use_observed_lib_size = bool(observed)
        if not observed:
            means, variances = _moments(managers, module.n_batch).to(module.device)
            check_prior_widths(variances, managers[0])
            there.register_buffer("library_log_means", means)
            there.register_buffer("library_log_vars", variances)
            there.l_encoder = AtTheSum(module.n_input, module.log_variational)
    return there


def _moments(managers: Sequence[AnnDataManager], n_batch: int) -> Tensor:
    """Means and variances of log sums, `[2, 1, n_batch]`; 0 and 1 of batches that nothing has."""
    found = np.stack([np.zeros((1, n_batch)), np.ones((1, n_batch))])
    unknown = np.ones(n_batch, dtype=bool)
    for manager in managers:
        here = np.unique(manager.get_from_registry(REGISTRY_KEYS.BATCH_KEY)).astype(int)
        new = here[unknown[here]]
        if len(new):  # scvi-tools fails on data of one cell
            found[..., new] = np.stack(_init_library_size(manager, n_batch))[..., new]
            unknown[new] = False
    return torch.from_numpy(found).float()


def check_prior_widths(variances: Tensor, manager: AnnDataManager) -> None:
    """Raise ValueError if the latent library sizes of a batch have a prior of no width."""
    if (variances <= 0).any():
        names = manager.get_state_registry(REGISTRY_KEYS.BATCH_KEY).categorical_mapping
        narrow = np.flatnonzero((variances <= 0).flatten().cpu())
        raise ValueError(
            f"all cells of batch {listing(quoted(names[narrow]))} have one library size, "
            "or it has one cell, so that its prior has no width: merge it with another, or take "
            "use_observed_lib_size=True."
        )
