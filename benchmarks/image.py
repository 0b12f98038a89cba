"""Seconds a training step of the image models: `python -m benchmarks.image`.

Every cell (recipe, sizes, S, precision, mode) runs in a process of its own, so that its peak memory
is its own. A step is what training does: draw a batch of binary images, bound, gradient, a look at
whether it is finite (by the CPU in every step, by others once an epoch), Adam.

Beside the measured time stands its floor: the larger of operations / (rate of a float32 product
measured on this machine) and bytes / (rate of a copy measured here), where operations are those of
the products and convolutions, forward and backward, as torch's counter finds them, and bytes are
ten passes over the weights (read twice, gradient, Adam) and one write and one read of what
autograd keeps. On a CPU both the floor and what is compared with it are seconds of its processors,
all threads added up: on a machine that others use too, they tell more than the clock's.

GPU figures (eager against compiled against CUDA graphs, float32 with TF32 against bfloat16) come
from the same command with `--device cuda`.
"""

import argparse
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from scmixvi.core import miselbo
from scmixvi.core.memory import keep_freed_memory
from scmixvi.core.optimizers import spare_driver
from scmixvi.core.products import product
from scmixvi.image.batches import ImageBatches
from scmixvi.image.checkpoints import build_vae
from scmixvi.image.lightning import is_gradient_finite
from scmixvi.image.report import run_record
from scmixvi.records import write

_TINY_CONV = {"channels": (4,) * 5, "n_latent": 8, "n_hidden": 16, "n_features": 8, "n_layers": 3}
TINY: dict[str, dict[str, Any]] = {
    "mlp": {"n_latent": 8, "encoder_hidden": (32, 32), "decoder_hidden": (32, 32)},
    "vanilla": _TINY_CONV,
    "composite": _TINY_CONV | {"n_flow_hidden": 16, "n_pseudo_inputs": 20},
}
"""Sizes that take milliseconds; the paper's sizes are the recipes' defaults."""

MODES = {"eager": None, "compile": "default", "cudagraphs": "reduce-overhead"}
"""What is measured: nothing, or this mode of torch.compile."""


def main(args: list[str] | None = None) -> dict[str, Any]:
    """Measure all cells, print them, and write the JSON."""
    options = _parser().parse_args(args)
    torch.set_num_threads(options.threads)
    record = run_record(options.device) | {
        "batch_size": options.batch_size,
        "load_average_at_start": os.getloadavg()[0],
        "rates": machine_rates(options.device),
        "cells": [],
    }
    print(_HEADER, flush=True)
    for cell in _cells(options):
        figures = _in_own_process(cell)
        row = cell | figures | _compared(cell, figures, record["rates"])
        record["cells"].append(row)
        print(_line(row), flush=True)
    record["growth_in_S"] = _growth(record["cells"])
    for name, growth in record["growth_in_S"].items():
        print(f"{name}: time at each S over the time at S = 1: {growth}")
    write(options.out, record)
    return record


def machine_rates(device: str) -> dict[str, float]:
    """Operations a second of a large float32 product, and bytes a second of a large copy.

    Both are the fastest of 20, for a floor has to hold. On a CPU the seconds are its processors'.
    """
    n = 2048 if device == "cpu" else 8192
    a = torch.randn(n, n, device=device)
    source = torch.empty(2**26, device=device)
    target = torch.empty_like(source)
    multiplied = _seconds(lambda: product(a, a), device, 3, 20, min)[_unit(device)]
    copy = _seconds(lambda: target.copy_(source), device, 3, 20, min)[_unit(device)]
    return {
        "operations_per_second": 2 * n**3 / multiplied,
        "bytes_per_second": 2 * source.numel() * 4 / copy,
    }


def training_step(
    recipe: str,
    sizes: str,
    n_components: int,
    batch_size: int,
    device: str,
    precision: str = "float32",
    mode: str = "eager",
) -> tuple[torch.nn.Module, Callable[[], Tensor]]:
    """Model and a function that does one whole training step and returns the loss."""
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high" if device == "cuda" else "highest")
    vae = build_vae(recipe, n_components, TINY[recipe] if sizes == "tiny" else {}).to(device)
    if MODES[mode] is not None:
        vae.compile(mode=MODES[mode])
    optimizer = spare_driver(torch.optim.Adam(vae.parameters(), lr=5e-4, fused=True))
    shape = (10 * batch_size, *vae.image_size)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    images = _forever(ImageBatches(pixels, batch_size, shuffle=True, binarise=True))

    def step() -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            loss = -miselbo(*vae(next(images))).mean()
        loss.backward()
        finite = is_gradient_finite(vae)
        if device == "cpu" and not bool(finite):
            raise FloatingPointError("the gradient is not finite.")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return vae, step


def measure(cell: dict[str, Any]) -> dict[str, Any]:
    """Seconds a step, peak memory above the start, operations and bytes of one cell."""
    torch.set_num_threads(cell["threads"])
    arguments = {k: v for k, v in cell.items() if k not in ("threads", "steps")}
    before = _peak_bytes(cell["device"])
    vae, step = training_step(**arguments)
    n_warm_up = 3 if cell["device"] == "cuda" else 1
    seconds = _seconds(step, cell["device"], n_warm_up, cell["steps"])
    figures = {"seconds_per_step": seconds["clock"], "cpu_seconds_per_step": seconds["processors"]}
    figures["peak_bytes"] = _peak_bytes(cell["device"]) - before
    operations, kept = count_work(training_step(**arguments | {"mode": "eager"})[1])
    n_weights = sum(p.numel() for p in vae.parameters())
    return figures | {
        "n_parameters": n_weights,
        "operations": operations,
        "bytes": 10 * 4 * n_weights + 2 * kept,
    }


def _operations_of_linear(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    """Operations of an x of this shape, `[..., k]`, and a weight of that, `[n, k]`."""
    return 2 * x.numel() * weight[0]


_ONEDNN: dict[Any, Any] = {}
if torch.backends.mkldnn.is_available():  # torch's counter does not know this operator
    _ONEDNN[torch.ops.mkldnn._linear_pointwise] = _operations_of_linear


def count_work(step: Callable[[], Tensor]) -> tuple[int, int]:
    """Operations of one step's products and convolutions, and bytes that autograd keeps."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        whole = tensor if tensor._base is None else tensor._base
        if not whole.requires_grad or not whole.is_leaf:  # weights are there without it
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    counter = FlopCounterMode(display=False, custom_mapping=_ONEDNN)
    with counter, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return counter.get_total_flops(), sum(kept.values())


def _forever(batches: ImageBatches) -> Iterator[Tensor]:
    while True:
        yield from batches


def _seconds(
    step: Callable[[], Any],
    device: str,
    n_warm_up: int,
    n_steps: int,
    typical: Callable[[Sequence[float]], float] = statistics.median,
) -> dict[str, float]:
    """Typical seconds of a step: of the clock, and of all processors together."""
    taken = []
    for _ in range(n_warm_up + n_steps):
        start = time.perf_counter(), time.process_time()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    clock, processors = zip(*taken[n_warm_up:], strict=True)
    return {"clock": typical(clock), "processors": typical(processors)}


def _unit(device: str) -> str:
    """The seconds that a step on this device is compared with its floor in."""
    return "clock" if device == "cuda" else "processors"


def _peak_bytes(device: str) -> int:
    """Most memory so far: allocated on the GPU, resident on the CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count what the parent held when it started us
        return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT


_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


def _in_own_process(cell: dict[str, Any]) -> dict[str, Any]:
    # Keeping freed memory is what `python -m scmixvi.image fit` does too.
    with multiprocessing.get_context("spawn").Pool(1, initializer=keep_freed_memory) as pool:
        return pool.apply(measure, (cell,))


def _cells(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for sizes in options.sizes:
        for recipe in options.recipes:
            for mode in options.modes:
                for precision in options.precisions:
                    for n_components in options.components:
                        yield {
                            "recipe": recipe,
                            "sizes": sizes,
                            "n_components": n_components,
                            "batch_size": options.batch_size,
                            "device": options.device,
                            "precision": precision,
                            "mode": mode,
                            "threads": options.threads,
                            "steps": options.steps,
                        }


_COMPARED = {"clock": "seconds_per_step", "processors": "cpu_seconds_per_step"}


def _compared(
    cell: dict[str, Any], figures: dict[str, Any], rates: dict[str, float]
) -> dict[str, Any]:
    """Floor in seconds, and how far off it the step is."""
    floor = max(
        figures["operations"] / rates["operations_per_second"],
        figures["bytes"] / rates["bytes_per_second"],
    )
    return {
        "floor_seconds": floor,
        "times_floor": figures[_COMPARED[_unit(cell["device"])]] / floor,
    }


def _growth(cells: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Time at each S over the time at S = 1, for every recipe, size, precision and mode."""
    growth: dict[str, dict[str, float]] = {}
    for row in cells:
        name = " ".join(row[key] for key in ("recipe", "sizes", "precision", "mode"))
        seconds = _COMPARED[_unit(row["device"])]
        times = {r["n_components"]: r[seconds] for r in cells if _same(r, row)}
        if 1 in times:
            growth[name] = {str(s): round(t / times[1], 2) for s, t in sorted(times.items())}
    return growth


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(a[key] == b[key] for key in ("recipe", "sizes", "precision", "mode"))


_HEADER = (
    "recipe     sizes S mode       precision   s/step    cpu s   Gop    MB "
    " floor s x floor  peak MB"
)


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['recipe']:10} {row['sizes']:5} {row['n_components']} {row['mode']:10} "
        f"{row['precision']:9} {row['seconds_per_step']:8.4f} "
        f"{row['cpu_seconds_per_step']:8.4f} "
        f"{row['operations'] / 1e9:5.1f} {row['bytes'] / 1e6:5.0f} {row['floor_seconds']:8.4f} "
        f"{row['times_floor']:7.1f} {row['peak_bytes'] / 1e6:8.0f}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.image", description=__doc__.splitlines()[0])
    cuda = torch.cuda.is_available()
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    add("--recipes", nargs="+", choices=tuple(TINY), default=["mlp", "vanilla", "composite"])
    add("--sizes", nargs="+", choices=("tiny", "paper"), default=["tiny", "paper"])
    add("--components", nargs="+", type=int, default=[1, 2, 4])
    add("--modes", nargs="+", choices=tuple(MODES), default=list(MODES) if cuda else ["eager"])
    both = ["float32", "bf16"]
    add("--precisions", nargs="+", choices=both, default=both if cuda else both[:1])
    add("--batch-size", type=int, default=100)
    add("--steps", type=int, default=50 if cuda else 5)
    add("--threads", type=int, default=torch.get_num_threads())
    name = torch.cuda.get_device_name().lower().replace(" ", "_") if cuda else "cpu"
    add("--out", type=Path, default=Path(__file__).parent / "results" / f"image_{name}.json")
    return parser


if __name__ == "__main__":
    main()
