"""Importance-sampled log p(x) of a MixtureVAE, and its components one by one."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.module._constants import MODULE_KEYS
from scvi.module.base import auto_move_data
from torch import Tensor
from torch.distributions import Distribution

from scmixvi._messages import check_whole
from scmixvi.core import component_elbos, log_mixture, miselbo, siwelbo
from scmixvi.singlecell._checks.arguments import check_refinement_steps, check_truth
from scmixvi.singlecell._parts.bound import library_ratio
from scmixvi.singlecell._parts.cell_refinement import refined
from scmixvi.singlecell._parts.distributions import MixtureOfNormals, without_library
from scmixvi.singlecell._parts.inference import SCORES_KEY
from scmixvi.singlecell._parts.passes import cells_in_passes, draws_a_pass

_Q_KEYS = MODULE_KEYS.QZ_KEY, MODULE_KEYS.QL_KEY


class Evaluation:
    """Methods of :class:`~scmixvi.singlecell.MixtureVAE` that estimate log p(x)."""

    @torch.inference_mode()
    @auto_move_data
    def marginal_ll(
        self,
        tensors: dict[str, Tensor],
        n_mc_samples: int,
        return_mean: bool = False,
        n_mc_samples_per_pass: int | None = None,
        pooled: bool = True,
        n_refinement_steps: int = 0,
    ) -> Tensor | float:
        r"""Importance-sampled log p(x) with the true mixture as proposal.

        `n_mc_samples` draws are spread evenly over the components (rounded up to a multiple of
        S). Pooled, all weights are averaged inside one logarithm; else (Eq. 17 of the paper) there
        is one logarithm a component. Both are lower bounds in expectation, and the pooled one is
        never below the other for the same draws.

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
        pooled
            Whether to pool the components' draws in one logarithm.
        n_refinement_steps
            Gradient steps of each cell's own posterior before it is drawn from: it then is a
            better proposal, and the bound is closer to log p(x).

        Returns
        -------
        `[n]` on the CPU, or its mean; in nats.

        Raises
        ------
        ValueError
            If `n_mc_samples` is not a whole number of at least 1, `pooled` neither True nor False,
            or `n_refinement_steps` not a whole number of at least 0, or not 0 for data minified
            without counts.
        """
        check_refinement_steps(n_refinement_steps, self.minified_data_type)
        check_whole("n_mc_samples", n_mc_samples)
        check_truth("pooled", pooled)
        bound = siwelbo if pooled else miselbo
        log_ll = torch.cat(
            [
                self._marginal_ll(part, encoded, n_mc_samples, n_mc_samples_per_pass, bound)
                for part, encoded in self._encoded_in_passes(tensors, n_refinement_steps, True)
            ]
        )
        return log_ll.mean().item() if return_mean else log_ll.cpu()

    def _marginal_ll(
        self,
        tensors: dict,
        encoded: dict[str, Any],
        n_samples: int,
        n_samples_per_pass: int | None,
        bound: Callable,
    ) -> Tensor:
        """Log p(x) of some cells, `[n]`."""
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

    def _encoded_whole(self, tensors: dict, n_refinement_steps: int = 0) -> dict[str, Any]:
        """What inference gives for counts, also where minified data hold these."""
        return self._encoded(tensors, n_refinement_steps, full_forward_pass=True)

    def _encoded(
        self, tensors: dict, n_refinement_steps: int = 0, full_forward_pass: bool = False
    ) -> dict[str, Any]:
        """What inference gives, with q refined or as it is."""
        encoded = self.inference(**self._get_inference_input(tensors, full_forward_pass))
        if n_refinement_steps > 0:
            q = refined(self, tensors, n_refinement_steps, full_forward_pass)
            encoded |= self._in_parts(q)
        return encoded

    def _in_parts(self, q: MixtureOfNormals) -> dict[str, Distribution | None]:
        return dict(zip(_Q_KEYS, without_library(q, self.n_latent), strict=True))

    def _encoded_in_passes(
        self, tensors: dict, n_refinement_steps: int = 0, full_forward_pass: bool = False
    ) -> Iterator[tuple[dict, dict[str, Any]]]:
        """The parts of a minibatch that are decoded at once, and what inference gives for each.

        Refinement decodes one draw a step and has passes of its own, of more cells.
        """
        q, start = None, 0
        if n_refinement_steps > 0:
            q = refined(self, tensors, n_refinement_steps, full_forward_pass)
        for part in cells_in_passes(tensors, tensors[REGISTRY_KEYS.X_KEY]):
            encoded = self._encoded(part, full_forward_pass=full_forward_pass)
            if q is not None:
                end = start + len(part[REGISTRY_KEYS.X_KEY])
                encoded |= self._in_parts(q.rows(slice(start, end)))
                start = end
            yield part, encoded

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
            log_ratio = log_ratio + library_ratio(outputs, decoded).reshape(log_ratio.shape)
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
