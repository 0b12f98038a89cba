"""Whether the uncertainty of a cell's latents is right where the truth is known (not in the paper).

MixtureSCVI with its defaults, S = 1 and 4; one posterior is that of the encoders, one is refined by
100 steps of each cell's own, and one is made of draws of the exact posterior
(:meth:`scmixvi.MixtureSCVI.get_posterior_samples`).

DATASET/simulated/S=1 and 4, for every seed
    Cells that the model draws: z from the prior, counts from the decoder, at the depths of held-out
    cells. How often do central intervals that should hold 90 % of a posterior hold the true z, and
    the true expression of a gene? Once the depth is known, and once it is taken to be the sum of
    the counts that were drawn, as SCVI takes it.
DATASET/types/S=1 and 4
    Held-out cells. A logistic regression learns the cell types from the encoders' means of the
    cells that the model was trained on. Its probabilities at a posterior's mean, and averaged over
    draws: how much do they give to the true type, and how often are they sure and wrong?

    python -m scmixvi.experiments.calibration --seed 0
"""

import copy
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import anndata as ad
import numpy as np
import torch
from scipy.sparse import csr_matrix
from scvi import REGISTRY_KEYS
from scvi.data._constants import _SETUP_ARGS_KEY
from scvi.module._constants import MODULE_KEYS
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from scmixvi import MixtureSCVI
from scmixvi.experiments import cortex
from scmixvi.experiments._cells.coverage import AT_ONCE, LEVEL, cell_means, expression_covered
from scmixvi.experiments._cells.trained_models import TrainedModels
from scmixvi.experiments.decoders import COMPONENTS, by_data, cells, looked_at, run_by_data
from scmixvi.singlecell._parts.cell_refinement import refined
from scmixvi.singlecell._parts.distributions import without_library
from scmixvi.singlecell._queries.evidence import posterior_draws

RESULT = Path(__file__).parent / "results" / "calibration.json"
KINDS = ("simulated", "types")
N_STEPS, N_DRAWS, N_SIMULATED = 100, 200, 101
STAGES = ("encoders", f"{N_STEPS} steps", "exact")
DEPTHS = ("depth known", "depth summed")
LABELS = {"sc_mixology": "cell_type", "pbmc68k": "bulk_labels"}
SURE, DEPTH = 0.9, "depth"


def draws_of(
    module: nn.Module, tensors: dict, encoded: dict, smoke: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of every posterior the mean `[n, D]` and draws `[L, n, D]`."""
    n_draws, n_steps = (20, 2) if smoke else (N_DRAWS, N_STEPS)
    sizes = {"n_rounds": 2, "n_draws": 50, "n_final": 100} if smoke else {}
    ahead, _ = without_library(refined(module, tensors, n_steps), module.n_latent)
    own = encoded[MODULE_KEYS.QZ_KEY], ahead
    exact = posterior_draws(module, tensors, n_draws, **sizes)[0][..., : module.n_latent]
    means = [*(qz.mean for qz in own), exact.mean(0)]
    draws = [*(qz.sample((n_draws,)) for qz in own), exact]
    return dict(zip(STAGES, means, strict=True)), dict(zip(STAGES, draws, strict=True))


def simulated(model: MixtureSCVI, indices: np.ndarray) -> tuple[ad.AnnData, Tensor]:
    """Cells that a model draws, of the depths and batches of these cells; and their z `[n, D]`.

    Depths that are latent are drawn too.
    """
    module = model.module
    tensors = next(iter(model._make_data_loader(model.adata, indices, batch_size=len(indices))))
    z = torch.randn(len(indices), module.n_latent)
    with torch.no_grad():
        given = module._get_generative_input(tensors, module._encoded_whole(tensors)) | {"z": z}
        if not module.use_observed_lib_size:
            given[MODULE_KEYS.LIBRARY_KEY] = module.generative(**given)[MODULE_KEYS.PL_KEY].sample()
        x = module.generative(**given)[MODULE_KEYS.PX_KEY].sample()
    obs, var = model.adata.obs.iloc[indices].copy(), model.adata.var[[]]
    obs[DEPTH] = tensors[REGISTRY_KEYS.X_KEY].sum(1).numpy()
    return ad.AnnData(csr_matrix(x.numpy()), obs=obs, var=var), z


def of_known_depth(model: MixtureSCVI, drawn: ad.AnnData) -> MixtureSCVI:
    """The model of these cells which is given their depths, and is the same otherwise."""
    setup = model.registry[_SETUP_ARGS_KEY] | {"size_factor_key": DEPTH}
    MixtureSCVI.setup_anndata(drawn, **setup)
    there = MixtureSCVI(drawn, n_components=model.module.n_components)
    there.module = copy.deepcopy(model.module)  # with size factors scvi-tools makes other decoders
    there.module.use_size_factor_key = there.is_trained_ = True
    return there


def simulated_figures(
    model: MixtureSCVI, indices: np.ndarray, smoke: bool
) -> dict[str, dict[str, float]]:
    """How often intervals hold the truth, once the depth is known and once it is the sum."""
    drawn, z = simulated(model, indices)
    known = of_known_depth(model, drawn.copy())
    found = held(known, None, z, smoke), held(model, drawn, z, smoke)
    return dict(zip(DEPTHS, found, strict=True))


def held(model: MixtureSCVI, adata: ad.AnnData | None, z: Tensor, smoke: bool) -> dict[str, float]:
    """How often intervals hold the truth: of each latent, and of each gene's expression."""
    module, parts = model.module, iter(z.split(AT_ONCE))
    tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2])

    def figures(tensors: dict, encoded: dict) -> dict[str, Tensor]:
        truth, found = next(parts), {}
        with torch.no_grad():
            _, draws = draws_of(module, tensors, encoded, smoke)
            for stage, own in draws.items():
                low, high = own.quantile(tails, dim=0)
                found[f"z/{stage}"] = ((truth >= low) & (truth <= high)).float().mean(-1)
                found[f"expression/{stage}"] = expression_covered(
                    module, tensors, encoded, own, truth.unsqueeze(0), torch.ones(1, len(truth))
                )
        return found

    return cell_means(model, None, figures, adata)


def type_figures(
    model: MixtureSCVI, indices: np.ndarray, trained_on: np.ndarray, labels: np.ndarray, smoke: bool
) -> dict[str, float]:
    """What a classifier makes of means and of draws."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    classifier.fit(model.get_latent_representation(indices=trained_on), labels[trained_on])
    known = {label: place for place, label in enumerate(classifier.classes_)}
    indices = indices[[label in known for label in labels[indices]]]
    truths = (np.array([known[label] for label in part]) for part in _parts(labels[indices]))

    def figures(tensors: dict, encoded: dict) -> dict[str, Tensor]:
        truth, found = torch.from_numpy(next(truths)), {}
        with torch.no_grad():
            of_means, of_draws = draws_of(model.module, tensors, encoded, smoke)
        for what, latents in (("mean", of_means), ("draws", of_draws)):
            for stage, z in latents.items():
                for name, values in scored(probabilities(classifier, z), truth).items():
                    found[f"{name}/{what}/{stage}"] = values
        return found

    return cell_means(model, indices, figures) | {"n_cells": len(indices)}


def probabilities(classifier: LogisticRegression, z: Tensor) -> Tensor:
    """Of every class `[n, K]`, the mean over draws where z `[..., n, D]` has them."""
    flat = classifier.predict_proba(z.flatten(0, -2).numpy())
    return torch.from_numpy(flat).reshape(-1, z.shape[-2], flat.shape[-1]).mean(0)


def scored(p: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Scores `[n]` of probabilities `[n, K]`: proper ones, and how often the first guess is right.

    The logarithmic score is in nats, Brier's is the squared distance to the truth.
    """
    sure, guess = p.max(1)
    target = torch.nn.functional.one_hot(truth, p.shape[1])
    return {
        "log_score": p.gather(1, truth.unsqueeze(1)).squeeze(1).log(),
        "brier": (p - target).square().sum(1),
        "right": (guess == truth).double(),
        "sure_and_wrong": ((sure > SURE) & (guess != truth)).double(),
    }


def _parts(values: np.ndarray) -> Iterator[np.ndarray]:
    return (values[start : start + AT_ONCE] for start in range(0, len(values), AT_ONCE))


def jobs(arguments: Namespace, name: str) -> dict[str, Callable[[], dict]]:
    """Name to job for every question and size on one data set."""
    smoke, seed = arguments.smoke, arguments.seed
    adata, split, training = cells(name, seed, smoke)
    labels = adata.obs[LABELS[name]] if name in LABELS else cortex.load(smoke)[1]
    labels = np.asarray(labels).astype(str)
    models = TrainedModels(arguments, adata, split, training, f"{name}/")

    def job(kind: str, size: int) -> dict:
        model, n_epochs = models.default(size)
        if kind == "types":
            found = type_figures(model, split.test, split.train, labels, smoke)
        else:
            some = looked_at(split, seed, N_SIMULATED)["test"]
            found = simulated_figures(model, some, smoke) | {"n_cells": len(some)}
        return found | {"n_epochs": n_epochs}

    return {
        f"{name}/{kind}/S={size}": partial(job, kind, size)
        for kind, size in product(KINDS, COMPONENTS)
        if kind in arguments.models
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Ask what is not yet in the JSON for this seed."""
    run_by_data(by_data(__doc__, RESULT, KINDS).parse_args(argv), jobs)


if __name__ == "__main__":
    main()
