"""The tutorials: what is committed is whole and portable, and (slow) all of it runs."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "tutorials"
DOCS = Path(__file__).parents[1] / "docs"
spec = importlib.util.spec_from_file_location("tutorials_execute", FOLDER / "execute.py")
execute = importlib.util.module_from_spec(spec)
spec.loader.exec_module(execute)

MACHINE = re.compile(r"(?<![\w.])/(work|tmp|root|home|Users)/")
"""Absolute paths of somebody's machine."""


def read(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text())


def code_cells(name):
    return [cell for cell in read(name)["cells"] if cell["cell_type"] == "code"]


def test_every_notebook_is_listed_and_shown():
    names = [path.stem for path in sorted(FOLDER.glob("*.ipynb"))]
    assert names == sorted(execute.NEEDS)
    page = (DOCS / "tutorials.md").read_text()
    assert re.findall(r"^_tutorials/(\w+)$", page, flags=re.MULTILINE) == list(execute.NEEDS)


@pytest.mark.parametrize("name", execute.NEEDS)
def test_outputs_are_kept_and_free_of_errors(name):
    cells = code_cells(name)
    counts = [cell["execution_count"] for cell in cells]
    assert counts == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    kinds = {output["output_type"] for output in outputs}
    assert kinds <= {"display_data", "execute_result", "stream"}
    assert {output.get("name") for output in outputs} <= {None, "stdout"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3


@pytest.mark.parametrize("name", execute.NEEDS)
def test_notebook_is_small_and_portable(name):
    assert (FOLDER / f"{name}.ipynb").stat().st_size < execute.MAX_BYTES
    notebook = read(name)
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/png", None)
    text = json.dumps(notebook)
    assert MACHINE.search(text) is None
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"


@pytest.mark.parametrize("name", execute.NEEDS)
def test_notebook_starts_with_its_data_and_parameters(name):
    first, second = read(name)["cells"][:2]
    intro, parameters = "".join(first["source"]), "".join(second["source"])
    assert intro.startswith("# ")
    assert "**Data.**" in intro
    assert "**Seeds.**" in intro
    assert 'SMOKE = bool(os.environ.get("SCMIXVI_SMOKE"))' in parameters
    assert re.search(r"^SEED\b.* = 0", parameters, flags=re.MULTILINE)
    assert all(need.split("/")[0] in intro for need in execute.NEEDS[name])


@pytest.mark.parametrize("text", ["/work/x", "see /tmp/a", '"/home/me/x"'])
def test_the_rule_sees_a_path(text):
    assert MACHINE.search(text)
    assert MACHINE.search("benchmarks/work/x and ../tmp/") is None


@pytest.mark.slow
@pytest.mark.parametrize("name", execute.NEEDS)
def test_notebook_runs(name):
    if missing := execute.missing_data(name):
        pytest.skip(f"SCMIXVI_DATA_DIR does not hold {', '.join(missing)}")
    notebook = execute.tidied(execute.executed(name, smoke=True))
    assert all(c["execution_count"] for c in notebook.cells if c.cell_type == "code")
