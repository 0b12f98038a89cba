r"""Draws of cells, weighted by how well they explain their own cell.

Of many draws z of a cell with counts x, stratified over the components, one is chosen with
probability in proportion to

.. math:: \frac{p(x | z) p(z)}{\sum_s \pi_s q_s(z | x)}

which is self-normalised importance sampling: with more and more to choose from, the chosen draws
follow the exact posterior p(z | x) of the model instead of q(z | x). Every cell has as many of
them, so that a group of cells is its cells' posteriors side by side, of which no cell can take over
the rest.
"""

from typing import Any

import numpy as np
import torch
from scvi.model import SCVI
from scvi.module._constants import MODULE_KEYS
from torch import Tensor, nn

from scmixvi._messages import check_whole
from scmixvi.singlecell._parts.inference import UNTRANSFORMED_KEY
from scmixvi.singlecell._queries.importance import Chosen


def draws_by_cell(
    model: SCVI,
    indices: np.ndarray,
    n_draws: int,
    batch: Any,
    loading: dict[str, Any],
    n_mc_samples: int = 500,
    n_mc_samples_per_pass: int | None = None,
    n_refinement_steps: int = 0,
) -> Chosen:
    """As many draws of every cell (or one more), each chosen among many of that cell.

    Parameters
    ----------
    model, indices, n_draws, loading
        As in :func:`~scmixvi.singlecell._queries.importance.pooled_draws`.
    batch
        Not looked at: a cell's posterior is that in its own batch.
    n_mc_samples
        Draws of a cell to choose from, rounded up to a multiple of S.
    n_mc_samples_per_pass
        Draws decoded at once.
    n_refinement_steps
        Gradient steps of each cell's own posterior before it is drawn from.
    """
    check_whole("n_mc_samples", n_mc_samples)
    check_whole("n_refinement_steps", n_refinement_steps, least=0)
    share, rest = divmod(n_draws, len(indices))
    how_many = np.full(len(indices), share)
    how_many[np.random.permutation(len(indices))[:rest]] += 1  # noqa: NPY002
    (needed,) = how_many.nonzero()
    found, cells, start = [], [], 0
    for tensors in model._make_data_loader(indices=indices[needed], **loading):
        tensors = {k: v if v is None else v.to(model.device) for k, v in tensors.items()}
        for part, encoded in model.module._encoded_in_passes(tensors, n_refinement_steps):
            states, log_importance = _weighted(
                model.module, part, encoded, n_mc_samples, n_mc_samples_per_pass
            )
            here = needed[start : start + states.shape[1]]
            start += len(here)
            picked = torch.multinomial(log_importance.double().softmax(0).T, share + 1, True)
            wanted = torch.arange(share + 1) < torch.from_numpy(how_many[here]).unsqueeze(1)
            of_cell = wanted.nonzero()[:, 0]
            found.append(states[picked[wanted.to(states.device)], of_cell.to(states.device)].cpu())
            cells.append(here[of_cell.numpy()])
    states, cells = torch.cat(found), np.concatenate(cells)
    _, first, places = np.unique(
        np.column_stack([cells, states.numpy()]), axis=0, return_index=True, return_inverse=True
    )
    u, log_library = states[first, :-1], states[first, -1:]
    return Chosen(u, log_library, cells[first], np.random.permutation(places.ravel()))  # noqa: NPY002


def _weighted(
    module: nn.Module,
    tensors: dict[str, Tensor],
    encoded: dict[str, Any],
    n_draws: int,
    a_pass: int | None,
) -> tuple[Tensor, Tensor]:
    """Draws (u, log l) of some cells `[L * S, n, D + 1]` and their log weights `[L * S, n]`."""
    log_share = encoded[MODULE_KEYS.QZ_KEY].c_log_weights.T
    per_component = -(-n_draws // module.n_components)
    states, found = [], []
    for log_ratio, drawn in module._log_ratios(tensors, encoded, per_component, a_pass):
        states.append(torch.cat([drawn[UNTRANSFORMED_KEY], drawn[MODULE_KEYS.LIBRARY_KEY]], -1))
        found.append((log_ratio + log_share).flatten(0, 1))
    return torch.cat(states), torch.cat(found)
