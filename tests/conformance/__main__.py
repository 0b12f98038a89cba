"""Run scvi-tools' own tests against MixtureSCVI in the place of SCVI: `make conformance`.

The tests come with the source distribution of the installed scvi-tools, which is fetched from
the package index once and kept in .conformance/. A pytest plugin (scvi_rebinding.py) puts
MixtureSCVI in the place of `scvi.model.SCVI`; `--control` leaves SCVI there.
"""

import argparse
import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CACHE = ROOT / ".conformance"
TESTS = [
    "tests/model/test_scvi.py",
    "tests/model/test_models_with_minified_data.py",
    "tests/model/test_differential.py",
    "tests/model/test_differential_abundance.py",
    "tests/train/test_trainingplans.py",
    "tests/train/test_callbacks.py",
    "tests/external/solo",
    "tests/criticism",
]
# Files of which the tests that scvi-tools marks as optional are run too.
WITH_OPTIONAL = TESTS[:2]


def fetch_sources(release: str) -> Path:
    """Folder of the unpacked source distribution, downloaded through pip when it is missing."""
    folder = CACHE / f"scvi_tools-{release}"
    if folder.is_dir():
        return folder
    archive = CACHE / f"{folder.name}.tar.gz"
    if not archive.is_file():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(CACHE)]
        command += ["--no-deps", "--no-build-isolation", "--no-binary", "scvi-tools"]
        subprocess.run([*command, f"scvi-tools=={release}"], check=True)
    unpacked = CACHE / f"{folder.name}.part"
    with tarfile.open(archive) as tar:
        tar.extractall(unpacked, filter="data")
    (unpacked / folder.name).rename(folder)
    unpacked.rmdir()
    return folder


def main() -> int:
    """Parse the command line, fetch the tests and run them in a process of their own."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--control", action="store_true", help="run the tests with SCVI itself")
    parser.add_argument("--n-components", type=int, default=3, metavar="S")
    known, pytest_args = parser.parse_known_args()
    folder = fetch_sources(version("scvi-tools"))
    options = ["-p", "scvi_rebinding", "-q", "-rfEX", "--no-header", "-p", "no:cacheprovider"]
    options += [] if known.control else ["--mixture-components", str(known.n_components)]
    paths = os.pathsep.join([str(HERE), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "MPLBACKEND": "agg"}
    command = [sys.executable, "-m", "pytest", *options, *pytest_args]
    chosen = "-k" in pytest_args or any(
        (folder / a.partition("::")[0]).exists() for a in pytest_args
    )
    tests = [] if any("/" in a for a in pytest_args) else TESTS
    runs = [tests] if chosen else [TESTS, [*WITH_OPTIONAL, "--optional"]]
    codes = [
        subprocess.run([*command, *run], cwd=folder, env=environment, check=False).returncode
        for run in runs
    ]
    return next((code for code in codes if code != 0), 0)


if __name__ == "__main__":
    sys.exit(main())
