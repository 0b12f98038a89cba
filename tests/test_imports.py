"""Who may import whom: the layers of the package, read from the syntax trees."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "scmixvi"

SCVI_STACK = {
    *("anndata", "numba", "numpy", "pandas", "rich", "scanpy", "scipy", "scvi"),
    "sklearn",
}
ALLOWED = {
    "scmixvi.core": {"torch", "scmixvi._messages", "scmixvi.core"},
    "scmixvi.singlecell": SCVI_STACK
    | {"lightning", "pyro", "torch", "scmixvi._messages", "scmixvi.core", "scmixvi.singlecell"},
}
"""A module of the layer imports these and the standard library, nothing else."""

FORBIDDEN = {
    "scmixvi.singlecell": {"scmixvi.image", "torchvision"},
    "scmixvi.image": {"scmixvi.singlecell", "scvi", "scanpy", "anndata"},
    "scmixvi.datasets": {"scmixvi.image", "torchvision"},
    "scmixvi.pl": {"scmixvi.image", "torchvision"},
}
SINGLECELL = [
    "_loops",
    "_checks",
    "_parts",
    "_module",
    "_exchange",
    "_training",
    "_queries",
    "_model",
]
"""What is there imports what stands before it, and itself."""
LIGHTNING = {"lightning", "lightning_fabric", "pytorch_lightning"}
MAY_USE_LIGHTNING = {
    f"scmixvi.image.{name}"
    for name in ("lightning", "callbacks", "data", "__main__", "_cli_checks", "_settings")
}


def modules(package=PACKAGE):
    """Dotted name of every module -> its syntax tree."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(), str(path)), path.name == "__init__.py"
    return found


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def walk(tree, top_level):
    """All nodes; with `top_level` only those that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        skipped = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or is_type_checking(node)
        if top_level and skipped:
            continue
        yield node
        yield from walk(node, top_level)


def imports(name, tree, is_package, top_level=False):
    """Absolute dotted names that a module imports (`from a import b` counts as a and a.b)."""
    parents = name.split(".") if is_package else name.split(".")[:-1]
    for node in walk(tree, top_level):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = parents[: len(parents) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


def within(name, packages):
    return any(name == package or name.startswith(package + ".") for package in packages)


def violations(name, tree, is_package):
    """Sentences about what this module imports and may not."""
    for imported in set(imports(name, tree, is_package)):
        root = imported.split(".")[0]
        known = root in sys.stdlib_module_names or imported == "scmixvi"
        for layer, allowed in ALLOWED.items():
            if within(name, {layer}) and not known and not within(imported, allowed):
                yield f"{name} imports {imported}"
        for layer, forbidden in FORBIDDEN.items():
            if within(name, {layer}) and within(imported, forbidden):
                yield f"{name} imports {imported}"
        if _rank(imported) > _rank(name) > -1:
            yield f"{name} imports {imported}"
        if within(imported, {"scmixvi.experiments"}) and not within(name, {"scmixvi.experiments"}):
            yield f"{name} imports {imported}"
        if within(name, {"scmixvi.image"}) and root in LIGHTNING and name not in MAY_USE_LIGHTNING:
            yield f"{name} imports {imported}"


def _rank(name):
    """Place of a module's folder in `SINGLECELL`; -1 outside of them."""
    folder = name.removeprefix("scmixvi.singlecell.").split(".")[0]
    return SINGLECELL.index(folder) if folder in SINGLECELL else -1


def reached_from(start, found):
    """Everything imported, directly or through modules of the package, when `start` is."""
    reached, queue = set(), [start]
    while queue:
        name = queue.pop()
        if name in reached:
            continue
        reached.add(name)
        if name in found:
            tree, is_package = found[name]
            queue += imports(name, tree, is_package, top_level=True)
            queue += [name.rpartition(".")[0]] if "." in name else []
    return reached


FOUND = modules()


@pytest.mark.parametrize("name", FOUND)
def test_module_keeps_to_its_layer(name):
    assert sorted(violations(name, *FOUND[name])) == []


@pytest.mark.parametrize("name", FOUND)
def test_importing_filters_no_warnings(name):
    """A filter that is set on import holds for all of the user's process."""
    tree, _ = FOUND[name]
    statements = [n for n in tree.body if isinstance(n, ast.Expr)]
    assert not [n for n in statements if ast.unparse(n).startswith("warnings.")]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("scmixvi.core.objectives", "import numpy as np"),
        ("scmixvi.core.objectives", "from scmixvi import singlecell"),
        ("scmixvi.core.objectives", "from ..singlecell import _model"),
        ("scmixvi.singlecell._model", "from scmixvi.image.vae import MixtureVAE"),
        ("scmixvi.singlecell._model", "import matplotlib"),
        ("scmixvi.singlecell._parts.bound", "from scmixvi.singlecell._queries import exact"),
        ("scmixvi.singlecell._checks.data", "from scmixvi.singlecell._parts.passes import dense"),
        ("scmixvi.singlecell._loops.team", "from scmixvi.singlecell import _module"),
        ("scmixvi.image.vae", "from scmixvi.singlecell import _model"),
        ("scmixvi.image.vae", "def f():\n    import lightning.pytorch"),
        ("scmixvi.image.vae", "import scvi"),
        ("scmixvi.datasets", "from scmixvi.experiments import cortex"),
        ("scmixvi.datasets", "import torchvision"),
    ],
)
def test_the_rules_see_a_forbidden_import(name, source):
    assert list(violations(name, ast.parse(source), False))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        (
            "scmixvi.core.objectives",
            "import math\nimport torch.nn\nfrom . import weights",
        ),
        (
            "scmixvi.singlecell._model",
            "from scmixvi.core import jsd\nfrom scvi.model import SCVI",
        ),
        ("scmixvi.image.lightning", "import lightning.pytorch as pl"),
        ("scmixvi.experiments.table1", "from scmixvi.experiments import _json"),
    ],
)
def test_the_rules_let_the_layers_work(name, source):
    assert list(violations(name, ast.parse(source), False)) == []


def test_importing_scmixvi_reaches_no_image_code():
    reached = reached_from("scmixvi", FOUND)
    assert [n for n in reached if within(n, {"scmixvi.image", "torchvision"})] == []


def test_importing_scmixvi_runs_no_image_code():
    """At run time too. Packages below scmixvi may import torchvision, scmixvi itself must not."""
    script = """
import builtins, sys
plain = builtins.__import__
def watched(name, globals=None, *rest, **kw):
    importer = (globals or {}).get("__name__", "")
    if importer.startswith("scmixvi") and name.startswith("torchvision"):
        sys.exit(f"{importer} imports {name}")
    return plain(name, globals, *rest, **kw)
builtins.__import__ = watched
import scmixvi
sys.exit(", ".join(n for n in sys.modules if n.startswith(("scmixvi.image", "scmixvi.exp"))) or 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
