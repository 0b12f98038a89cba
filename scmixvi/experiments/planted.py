"""Does differential expression find what is there? Changes planted into one cell type.

In a random half of the cells of the largest type the counts of some genes are thinned to a half,
binomially: a tenth of the genes whose mean count in that type is at least 0.5. Their log2 fold
change between the halves is 1; that of the others is 0, but for what proportions gain where others
lose (less than 0.1, and scvi-tools' test asks for more than 0.25). Models are trained on these
data and compare the two halves, with MixtureSCVI's and scvi-tools' defaults.

DATASET/METHOD/DRAWS, for cortex, sc_mixology and pbmc68k (see
:mod:`scmixvi.experiments.integration`), of MixtureSCVI

- all `weights` of `differential_expression`;
- "refined": uniform weights, and posteriors of the cells' own after 100 steps, which
  `minify_adata` stores;
- "refined_by_cell": the weights "importance_by_cell", of draws from such posteriors;

and of SCVI "uniform" and "refined", the latter by :meth:`scmixvi.MixtureSCVI.from_scvi_model` with
one component.

For every expected false discovery rate

recall
    the share of the planted genes that are called;
false
    the share of the called genes that are not planted, 0 where none is called;

and over genes `auroc`, with which the probability of a difference tells planted genes from others,
and `fold_change`, the mean over planted genes of the estimated log2 fold change.

    python -m scmixvi.experiments.planted --seed 0
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import anndata as ad
import numpy as np
from scipy.sparse import csr_matrix
from scvi.data._constants import ADATA_MINIFY_TYPE

from scmixvi import MixtureSCVI
from scmixvi.experiments._cells import biology
from scmixvi.experiments._cells import training as singlecell
from scmixvi.experiments._cells.methods import DATA, LABEL, Methods, Protocol, data_sets
from scmixvi.experiments._common import parser, run_missing
from scmixvi.singlecell._checks.expression import WEIGHTS

RESULT = Path(__file__).parent / "results" / "planted.json"
PAPER, SMOKE = Protocol(), Protocol(2, 150)
SHARE, THINNED, MEAN_COUNT = 0.1, 0.5, 0.5
N_STEPS = 100  # of refinement
WITH_COUNTS = ADATA_MINIFY_TYPE.LATENT_POSTERIOR_WITH_COUNTS
# Arguments of `differential_expression`.
DRAWS: dict[str, dict[str, Any]] = {
    **{weights: {"weights": weights} for weights in WEIGHTS},
    "refined": {"weights": "uniform"},
    "refined_by_cell": {
        "weights": "importance_by_cell",
        "importance_weighting_kwargs": {"n_refinement_steps": N_STEPS},
    },
}
COMPARED = [
    ("scvi", "uniform"),
    ("scvi", "refined"),
    *(("mixture", draws) for draws in DRAWS),
]


class Planted(NamedTuple):
    """Data with a planted change, the cells of both halves, and which genes are thinned `[G]`."""

    adata: ad.AnnData
    whole: np.ndarray
    thinned: np.ndarray
    genes: np.ndarray


def plant(adata: ad.AnnData, label: str, seed: int) -> Planted:
    """Thin a tenth of the expressed genes in a random half of the largest cell type, in a copy."""
    rng = np.random.default_rng(seed)
    labels = adata.obs[label]
    cells = rng.permutation(np.flatnonzero(labels == labels.value_counts().index[0]))
    whole, thinned = np.array_split(cells, 2)
    counts = adata.X.toarray().astype(np.int64)
    candidates = np.flatnonzero(counts[cells].mean(0) >= MEAN_COUNT)
    chosen = rng.permutation(candidates)[: max(1, round(SHARE * len(candidates)))]
    block = np.ix_(thinned, chosen)
    counts[block] = rng.binomial(counts[block], THINNED)
    copy = adata.copy()
    copy.X = csr_matrix(counts.astype(np.float32))
    return Planted(copy, whole, thinned, np.isin(np.arange(adata.n_vars), chosen))


def refined(methods: Methods, method: str) -> MixtureSCVI:
    """A model of its own (for it keeps them) whose data hold refined posteriors."""
    if method == "scvi":
        (scvi_model,) = methods(method).models
        model = MixtureSCVI.from_scvi_model(scvi_model, n_components=1)
    else:
        (model,) = getattr(methods, method)().models
    model.minify_adata(WITH_COUNTS, n_refinement_steps=N_STEPS, progress=False)
    return model


def found(methods: Methods, planted: Planted, method: str, draws: str) -> dict:
    """How well one method tells the planted genes from others."""
    model = methods(method).models[0]
    if draws == "refined":
        model = refined(methods, method)
    table = model.differential_expression(
        idx1=planted.whole, idx2=planted.thinned, mode="change", silent=True, **DRAWS[draws]
    ).loc[planted.adata.var_names]
    probability = table["proba_de"].to_numpy()
    others = ~planted.genes
    figures: dict[str, object] = {
        "auroc": round(biology.auroc(probability[others], probability[planted.genes]), 4),
        "fold_change": round(float(table["lfc_median"].to_numpy()[planted.genes].mean()), 4),
        "n_planted": int(planted.genes.sum()),
    }
    for level in biology.FDR_LEVELS:
        calls = biology.called(probability, level)
        figures[str(level)] = {
            "recall": round(float(calls[planted.genes].mean()), 4),
            "false": round(float(calls[others].sum() / max(1, calls.sum())), 4),
        }
    return figures


def jobs(methods: Methods, planted: Planted) -> dict[str, Callable[[], dict]]:
    """Name to job of every method and its draws on one data set."""
    return {
        f"{methods.name}/{method}/{draws}": partial(found, methods, planted, method, draws)
        for method, draws in COMPARED
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is not yet in the JSON for this seed."""
    made = parser(__doc__, RESULT)
    made.add_argument("--data", nargs="+", choices=DATA, default=list(DATA), help="some sets only")
    arguments = made.parse_args(argv)
    protocol = SMOKE if arguments.smoke else PAPER
    singlecell.quiet()
    for name, load in data_sets(protocol, arguments.data).items():
        planted = plant(load(), LABEL, arguments.seed)
        methods = Methods(arguments, name, planted.adata, protocol)
        run_missing(arguments, jobs(methods, planted))


if __name__ == "__main__":
    main()
