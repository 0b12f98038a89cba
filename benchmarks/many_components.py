"""Components in the hundreds: what a training step costs, and what the bound gains.

    python -m benchmarks.many_components times      # seconds a step, all models interleaved
    python -m benchmarks.many_components bounds --seeds 0 1 2    # those not yet in the JSON
    python -m benchmarks.many_components plot       # results/many_components.png
    python -m benchmarks.many_components times bounds plot --smoke --out FILE

Steps are forward, backward and Adam: MixtureSCVI on 128 cells of cortex (1200 genes), the image
recipe `mlp` on 100 digits of MNIST. The reference is four separate encoders that all draw. The
other models share a trunk and draw from a few components (`estimator`, `n_drawn`).

Trainings are short: 50 epochs of cortex with 128 cells a step, 85 % to train on;
400 steps on MNIST's first 10,000 digits. Held out: MISELBO and log p(x) (pooled, 256 draws or more)
under all components, in nats a cell or digit, and the seconds of the processor that training took.
"""

import argparse
import logging
import time
import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import scvi
import torch
from torch import Tensor

import scmixvi
from benchmarks import RESULTS
from benchmarks._report_bounds import over_one
from benchmarks._timing import interleaved, ratios, summary
from scmixvi.core import miselbo
from scmixvi.core.memory import keep_freed_memory
from scmixvi.image import ImageVAE, recipes
from scmixvi.image.readers import load_images
from scmixvi.records import environment, read, write

COMPONENTS = (1, 4, 16, 64, 256)
REFERENCE = "separate, all, S = 4"
N_PIXELS_SIDE = 28
SEED_OF_DATA = 0
Model = dict[str, Any]


def models(n_drawn: list[int], components: list[int]) -> dict[str, Model]:
    """The reference, and a trunk with each estimator, S and number of drawn components."""
    found: dict[str, Model] = {
        REFERENCE: {"n_components": 4, "encoder_sharing": "separate", "estimator": "all"}
    }
    for n_components, estimator, drawn in product(components, ("s2s", "s2a"), n_drawn):
        drawn = min(drawn, n_components)
        found[f"trunk, {estimator} from {drawn}, S = {n_components}"] = {
            "n_components": n_components,
            "encoder_sharing": "trunk",
            "estimator": estimator,
            "n_drawn": drawn,
        }
    return found


# -------------------------------------------------------------------- single cells


def cell_model(model: Model, adata: Any, seed: int = 0) -> scmixvi.MixtureSCVI:
    scvi.settings.seed = seed
    scmixvi.MixtureSCVI.setup_anndata(adata)
    return scmixvi.MixtureSCVI(adata, **model)


def cells(smoke: bool) -> Any:
    adata = scmixvi.datasets.pbmc68k() if smoke else scmixvi.datasets.cortex()
    return adata[:200, :50].copy() if smoke else adata


def cell_step(model: Model, smoke: bool) -> Callable[[], Tensor]:
    mixture = cell_model(model, cells(smoke))
    batch = next(iter(mixture._make_data_loader(adata=mixture.adata, batch_size=128)))
    module = mixture.module.train()
    return _step(module, lambda: module(batch)[2].loss)


def cell_bounds(model: Model, smoke: bool, seed: int) -> dict[str, float]:
    """Train on 85 % of the cells and score the others."""
    mixture = cell_model(model, cells(smoke), seed)
    start = time.process_time()
    mixture.train(
        max_epochs=1 if smoke else 50,
        train_size=0.85,
        batch_size=128,
        latent_key=None,
        accelerator="cpu",
        enable_progress_bar=False,
    )
    seconds = time.process_time() - start
    held_out = mixture.validation_indices
    repeats = 1 + 63 // model["n_components"]
    elbos = [float(mixture.get_elbo(indices=held_out)) for _ in range(repeats)]
    ll = mixture.get_marginal_ll(indices=held_out, n_mc_samples=256)
    diversity = mixture.get_posterior_diversity(indices=held_out[:64], n_samples=1)
    return {
        "seconds": round(seconds, 2),
        "miselbo": round(float(np.mean(elbos)), 3),
        "log_likelihood": round(float(ll), 3),
        "jsd": round(float(diversity.mean()), 3),
    }


# -------------------------------------------------------------------- images


def image_model(model: Model, smoke: bool, seed: int = 0) -> tuple[ImageVAE, dict[str, Any]]:
    torch.manual_seed(seed)
    small = {"n_latent": 4, "encoder_hidden": (8,), "decoder_hidden": (8,)} if smoke else {}
    drawing = {key: model[key] for key in ("estimator", "n_drawn") if key in model}
    drawing["path_gradient"] = model["estimator"] == "s2a"  # as VAETraining does
    vae = recipes.mlp(model["n_components"], encoder_sharing=model["encoder_sharing"], **small)
    return vae, drawing


def digits(smoke: bool) -> tuple[Tensor, Tensor]:
    """Pixels in [0, 1] to train on, and binary ones held out, `[n, 1, 28, 28]`."""
    generator = torch.Generator().manual_seed(SEED_OF_DATA)
    if smoke:
        both = torch.rand(130, 1, N_PIXELS_SIDE, N_PIXELS_SIDE, generator=generator)
        return both[:100], both[100:].round()
    images = load_images("mnist").train_pixels[:11_000].float() / 255
    return images[:10_000], torch.bernoulli(images[10_000:], generator=generator)


def image_step(model: Model, smoke: bool) -> Callable[[], Tensor]:
    vae, drawing = image_model(model, smoke)
    x = digits(smoke)[0][:100].round()
    return _step(vae, lambda: -miselbo(*vae(x, 1, **drawing)).mean())


def image_bounds(model: Model, smoke: bool, seed: int) -> dict[str, float]:
    """Train with fresh binary pixels in every step; no warm-up."""
    vae, drawing = image_model(model, smoke, seed)
    train, held_out = digits(smoke)
    batch: list[Tensor] = []
    step = _step(vae, lambda: -miselbo(*vae(batch[-1], 1, **drawing)).mean())
    start = time.process_time()
    for _ in range(2 if smoke else 400):
        batch[:] = [torch.bernoulli(train[torch.randint(len(train), (100,))])]
        step()
    seconds = time.process_time() - start
    vae.eval()
    per_component = 1 + 255 // model["n_components"]
    held_out = held_out[:500]
    with torch.no_grad():
        repeats = 1 + 15 // model["n_components"]
        bound = torch.stack(
            [miselbo(*vae(x)).mean() for x in held_out.split(50) for _ in range(repeats)]
        )
    nll = vae.nll(held_out, per_component, pooled=True).mean()
    return {
        "seconds": round(seconds, 2),
        "miselbo": round(float(bound.mean()), 3),
        "log_likelihood": round(-float(nll), 3),
        "jsd": round(float(vae.jsd(held_out[:50], 1).mean()), 3),
    }


def _step(module: torch.nn.Module, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, fused=True)

    def step() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return value.detach()

    return step


# -------------------------------------------------------------------- what is written

STEPS = {"cortex": cell_step, "mnist": image_step}
BOUNDS = {"cortex": cell_bounds, "mnist": image_bounds}


def time_steps(result: dict, options: argparse.Namespace) -> None:
    """Milliseconds a step of every model, and their ratio to the reference's in the same round."""
    for data, make in STEPS.items():
        steps = {
            name: make(model, options.smoke)
            for name, model in models(options.n_drawn, options.components).items()
        }
        seconds = interleaved(steps, options.rounds)
        relative = ratios(seconds, REFERENCE)
        rows = {
            name: {"milliseconds": summary(values, 1e3), "ratio": relative[name]}
            for name, values in seconds.items()
        }
        result.setdefault("times", {})[data] = {"environment": environment("cpu"), "models": rows}
        for name, row in rows.items():
            print(f"{data:7} {name:32} {row['milliseconds']['median']:9.1f} ms", end="  ")
            print(f"{row['ratio']['median']:6.2f} x the reference", flush=True)


def train_models(result: dict, options: argparse.Namespace) -> None:
    """Train and score what the JSON does not hold yet; written after each."""
    result.setdefault("bounds", {data: {} for data in BOUNDS})
    trained = models(options.n_drawn[:1], options.components)
    for seed, (name, model), data in product(options.seeds, trained.items(), BOUNDS):
        rows = result["bounds"][data].setdefault(name, {})
        if str(seed) in rows:
            continue
        row = BOUNDS[data](model, options.smoke, seed)
        rows[str(seed)] = row | {"environment": environment("cpu")}
        write(options.out, result)
        print(f"{data:7} seed {seed} {name:32} {row}", flush=True)


def plot(result: dict, options: argparse.Namespace) -> None:
    """Ratio of a step against S; held-out MISELBO against S and against seconds."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(12, 6.5), layout="constrained", squeeze=False)
    for row, data in zip(axes, BOUNDS, strict=True):
        times = result.get("times", {}).get(data, {"models": {}})["models"]
        bounds = result.get("bounds", {}).get(data, {})
        ratio = {name: [entry["ratio"]["median"]] for name, entry in times.items()}
        _lines(row[0], ratio, _size)
        row[0].axhline(3, color="grey", linestyle="--", linewidth=1)
        row[0].set(ylabel="step / step of four encoders", xlabel="components S", title=data)
        gains = {name: over_one(bounds, name, "miselbo") for name in bounds}
        seconds = {
            n: np.mean([run["seconds"] for run in runs.values()]) for n, runs in bounds.items()
        }
        _lines(row[1], gains, _size)
        row[1].set(ylabel="held-out MISELBO over S = 1, nats", xlabel="components S")
        _lines(row[2], gains, seconds.__getitem__)
        row[2].set(ylabel="held-out MISELBO over S = 1, nats", xlabel="seconds of training, CPU")
    for axis in axes.flat:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
    axes[0, 0].legend(frameon=False, fontsize=7)
    figure.savefig(options.out.with_suffix(".png"), dpi=100)


def _size(name: str) -> int:
    return int(name.split("S = ")[1])


def _lines(axis: Any, values: dict[str, list[float]], place: Callable[[str], float]) -> None:
    """One line for each family of names that differ in S alone; bars from lowest to highest."""
    for family in dict.fromkeys(name.split(" from ")[0].split(", S")[0] for name in values):
        names = [name for name in values if name.startswith(family)]
        fewest = {_size(n): n for n in reversed(names)}  # drawn, of several: as in training
        kept = [fewest[size] for size in sorted(fewest)]
        means = np.array([np.mean(values[name]) for name in kept])
        ends = np.array([[min(values[name]), max(values[name])] for name in kept])
        bars = abs(ends.T - means)
        label = kept[-1].split(", S")[0]
        axis.errorbar([place(name) for name in kept], means, bars, marker="o", label=label)


COMMANDS = {"times": time_steps, "bounds": train_models, "plot": plot}


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("commands", nargs="+", choices=tuple(COMMANDS))
    add("--components", nargs="+", type=int, default=list(COMPONENTS))
    add("--n-drawn", nargs="+", type=int, default=[2, 4], help="bounds take the first")
    add("--rounds", type=int, default=7)
    add("--seeds", nargs="+", type=int, default=[0], help="of the trainings")
    add("--out", type=Path, default=RESULTS / "many_components.json")
    add("--smoke", action="store_true", help="tiny models and data, to test this script")
    options = parser.parse_args(words)
    keep_freed_memory()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    result = read(options.out, {})
    for command in options.commands:
        COMMANDS[command](result, options)
        write(options.out, result)


if __name__ == "__main__":
    main()
