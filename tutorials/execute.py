"""Execute the tutorials: `python tutorials/execute.py` writes their outputs into the notebooks.

With `--smoke` a few epochs and cells, to see that all of it runs; the notebooks stay as they are.
Names choose notebooks: `python tutorials/execute.py uncertainty`. Data that no package bundles
are looked for in the folder that SCMIXVI_DATA_DIR names.
"""

import argparse
import base64
import io
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parent
MAX_BYTES = 200_000
"""The largest notebook that is committed, outputs included."""

NEEDS = {
    "cortex_benchmark": ["cortex.h5ad"],
    "from_scvi_to_mixture": [],
    "integration": ["sc_mixology.h5ad"],
    "bounds_in_2d": [],
    "image_vaes": ["MNIST/raw"],
    "uncertainty": [],
}
"""Notebooks in the order to read them, and what they need in SCMIXVI_DATA_DIR."""


def missing_data(name: str) -> list[str]:
    """What a notebook needs and SCMIXVI_DATA_DIR does not hold."""
    folder = Path(os.environ.get("SCMIXVI_DATA_DIR", "/nonexistent"))
    return [need for need in NEEDS[name] if not (folder / need).exists()]


def executed(name: str, smoke: bool = False, timeout: int = 1200) -> nbformat.NotebookNode:
    """Run a notebook in a kernel of its own, in an empty folder, and return it with outputs.

    Parameters
    ----------
    name
        A key of `NEEDS`.
    smoke
        A few epochs and cells.
    timeout
        Seconds a cell may take.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        If a cell raises.
    """
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    paths = [str(FOLDER.parent.resolve()), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "SCMIXVI_SMOKE": "1" if smoke else "",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": "1",
        "NUMBA_NUM_THREADS": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        client = NotebookClient(
            notebook, timeout=timeout, kernel_name="python3", resources=resources
        )
        return client.execute(env=environment)


def tidied(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Keep results and figures; drop progress bars, warnings and whatever is of one machine."""
    python = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": python, "language_info": {"name": "python"}}
    )
    for i, cell in enumerate(notebook.cells):
        cell.metadata, cell["id"] = nbformat.NotebookNode(), f"cell-{i}"
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            for output in cell.outputs:
                _shrink(output.get("data", {}))
    return notebook


def _shrink(data: dict[str, Any]) -> None:
    """A figure in 255 colours, about a third of its bytes; no colour moves far enough to see."""
    if "image/png" in data:
        figure = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")
        packed = io.BytesIO()
        reduced = figure.quantize(255, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        reduced.save(packed, "PNG", optimize=True)
        data["image/png"] = base64.b64encode(packed.getvalue()).decode()


def main() -> None:
    """Execute the chosen notebooks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*NEEDS, []], metavar="NAME")
    parser.add_argument("--smoke", action="store_true", help="few epochs and cells; write nothing")
    arguments = parser.parse_args()
    for name in arguments.names or NEEDS:
        if missing := missing_data(name):
            print(f"{name}: skipped, SCMIXVI_DATA_DIR does not hold {', '.join(missing)}")
            continue
        start = time.perf_counter()
        notebook = executed(name, arguments.smoke)
        if not arguments.smoke:
            nbformat.write(tidied(notebook), FOLDER / f"{name}.ipynb")
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
