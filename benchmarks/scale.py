"""Seconds a cell and peak memory from 10,000 to 1,000,000 cells, in memory and from disk.

    python -m benchmarks.scale                                   # 10,000 and 100,000 cells
    python -m benchmarks.scale --n-cells 1000000 --models mixture
    python -m benchmarks.scale --sources annbatch                # with scvi-tools 1.5

Every measurement is a process of its own, so that its peak memory is its own: the most that was
resident (Linux's VmHWM) since the imports, with what they hold taken off. A training run is whole
epochs of 90 % of the cells, batch size 128, S = 4; the first 20 steps are left out of the seconds
and in the memory. Data are synthetic counts of 2000 genes, 8 % of them not zero, in four h5ad
files with the chunks that anndata gives them, made once in `--folder` and reused.

Sources: "memory" is one CSR matrix, "files" the h5ad files through scmixvi.datasets.on_disk
(scvi-tools' AnnCollection), "annbatch" the zarr collection of scvi-tools 1.5's setup_annbatch.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import scvi
from anndata.io import write_elem
from lightning.pytorch.callbacks import Callback
from scipy import sparse

import scmixvi
from benchmarks import RESULTS
from benchmarks._clock import forget_peak, peak_mb
from benchmarks.singlecell import BATCH_SIZE, quiet, synthetic
from scmixvi.records import environment, read, write

RESULT = RESULTS / "scale.json"
MODELS = {"mixture": scmixvi.MixtureSCVI, "SCVI": scvi.model.SCVI}
SOURCES = ("memory", "files", "annbatch")
N_FILES, BLOCK, LEAST_CELLS, WARM_UP_STEPS = 4, 25_000, 50_000, 20


def write_files(folder: Path, n_cells: int) -> dict[str, Path]:
    """Synthetic counts as h5ad files, never more than a block of cells in memory."""
    paths = {f"part{i}": folder / f"{n_cells}_cells_{i}.h5ad" for i in range(N_FILES)}
    for i, path in enumerate(paths.values()):
        if not path.exists():
            part = path.with_suffix(".part")
            _write_file(part, n_cells // N_FILES, seed=i * n_cells)
            os.replace(part, path)
    return paths


def _write_file(path: Path, n_cells: int, seed: int) -> None:
    with h5py.File(path, "w") as file:
        for start in range(0, n_cells, BLOCK):
            block = synthetic(min(BLOCK, n_cells - start), seed=seed + start)
            if start == 0:
                write_elem(file, "/", block)
                file.pop("raw", None)  # write_h5ad leaves it out where there is none
            else:
                ad.io.sparse_dataset(file["X"]).append(block.X)
        obs = ad.AnnData(shape=(n_cells, 0)).obs
        write_elem(file, "obs", obs)


def in_memory(paths: dict[str, Path]) -> ad.AnnData:
    """All files as one CSR matrix."""
    return ad.AnnData(sparse.vstack([ad.read_h5ad(path).X for path in paths.values()], "csr"))


class StepClock(Callback):
    """Seconds, of the clock and of the processor, and cells from one step to the last."""

    def __init__(self) -> None:
        self.n_steps = 0
        self._first: tuple[float, float, int] | None = None
        self.n_cells = 0

    def on_train_batch_start(self, trainer: Any, plan: Any, batch: dict, index: int) -> None:
        """Start the clocks once the warm-up is over."""
        if self.n_steps == WARM_UP_STEPS:
            self._first = self._now()
        self.n_steps += 1
        self.n_cells += len(batch["X"])

    def on_train_end(self, *_: object) -> None:
        """Stop the clocks."""
        self._last = self._now()

    def _now(self) -> tuple[float, float, int]:
        return time.perf_counter(), time.process_time(), self.n_cells

    def a_cell(self) -> dict[str, float]:
        """Microseconds a cell."""
        clock, processor, n_cells = np.subtract(self._last, self._first)
        return {"clock_us": 1e6 * clock / n_cells, "processor_us": 1e6 * processor / n_cells}


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Train and read out the latents of one case."""
    quiet(case["threads"])
    scvi.settings.seed = 0
    paths = {name: Path(path) for name, path in case["paths"].items()}
    cls = MODELS[case["model"]]
    forget_peak()
    before = peak_mb()
    training = {"max_epochs": case["epochs"], "batch_size": BATCH_SIZE, "accelerator": "cpu"}
    if case["source"] == "annbatch":
        datamodule = _annbatch(cls, paths, case["folder"])
        model = cls(registry=datamodule.registry)
        training |= {"datamodule": datamodule, "train_size": 0.9}
    else:
        from_disk = case["source"] == "files"
        adata = scmixvi.datasets.on_disk(paths) if from_disk else in_memory(paths)
        cls.setup_anndata(adata, layer="counts" if from_disk else None)
        model = cls(adata)
    if case["model"] == "mixture":
        training["latent_key"] = None
    if case["max_steps"]:
        training["limit_train_batches"] = case["max_steps"]
    setup_peak = peak_mb() - before
    forget_peak()  # of reading
    held, clock, start = peak_mb() - before, StepClock(), time.perf_counter()
    model.train(callbacks=[clock], enable_progress_bar=False, **training)
    found = {
        "seconds_of_training": time.perf_counter() - start,
        "steps": clock.n_steps,
        **clock.a_cell(),
        "setup_peak_mb": setup_peak,
        "held_before_training_mb": held,
        "training_peak_mb": peak_mb() - before,
    }
    if case["source"] == "memory" and case["max_steps"] is None:
        start = time.process_time()
        model.get_latent_representation()
        found["latents_processor_us"] = 1e6 * (time.process_time() - start) / adata.n_obs
        found["latents_peak_mb"] = peak_mb() - before
    return {name: round(float(value), 2) for name, value in found.items()}


def _annbatch(cls: type, paths: dict[str, Path], folder: str) -> Any:
    collection = Path(folder) / f"{next(iter(paths.values())).stem}.zarr"
    return cls.setup_annbatch(
        collection_path=str(collection),
        paths=[str(path) for path in paths.values()],
        rebuild=not collection.exists(),
        batch_size=BATCH_SIZE,
        chunk_size=64,
        preload_nchunks=64,
        preload_to_gpu=False,
        dataset_size=100_000,
    )


def run(arguments: argparse.Namespace, folder: Path) -> None:
    """Measure every case and add it to the JSON."""
    for n_cells in arguments.n_cells:
        paths = write_files(folder, n_cells)
        for source in arguments.sources:
            for name in arguments.models:
                case = {
                    "source": source,
                    "n_cells": n_cells,
                    "model": name,
                    "epochs": max(1, LEAST_CELLS // n_cells),
                    "max_steps": arguments.max_steps,
                    "threads": arguments.threads,
                    "load_average": os.getloadavg()[0],
                    "paths": {name: str(path) for name, path in paths.items()},
                    "folder": str(folder),
                }
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    found = pool.apply(measure, (case,))
                shown = {k: v for k, v in case.items() if k not in ("paths", "folder")}
                steps = -(-int(0.9 * n_cells) // BATCH_SIZE)
                shown["whole_epochs"] = (arguments.max_steps or steps) >= steps
                machine = environment("cpu") | {"threads": arguments.threads} | _readers(source)
                row = shown | {"environment": machine} | found
                print({k: v for k, v in row.items() if k != "environment"}, flush=True)
                write(RESULT, read(RESULT, {}) | {f"{source}, {n_cells} cells, {name}": row})


def _readers(source: str) -> dict[str, str]:
    return {name: version(name) for name in ("annbatch", "zarr") if source == "annbatch"}


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-cells", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=["memory", "files"])
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=list(MODELS))
    parser.add_argument("--max-steps", type=int, help="of an epoch; all of them by default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="for the data; a temporary one by default")
    arguments = parser.parse_args()
    if arguments.folder is not None:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        run(arguments, arguments.folder)
    else:
        with tempfile.TemporaryDirectory() as folder:
            run(arguments, Path(folder))


if __name__ == "__main__":
    main()
