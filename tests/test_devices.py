"""All that a GPU would compute lies on it, and no training step would wait: checked without one.

It is `fake_gpu` that tells the devices apart. What a GPU computes is tested on one (`gpu`).
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14):
    pytest.skip("fake tensors of a device made in Python need torch 2.14", allow_module_level=True)

# scvi-tools' encoder of the library size checks its distribution, and with it waits.
WAITS = {"library of every cell, step"}


@pytest.fixture(scope="module")
def found():
    script = Path(__file__).with_name("fake_gpu.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_mistakes_are_found(found):
    assert "fakegpu:0 and cpu" in found["two devices"]["error"]
    assert len(found["a wait"]["waits"]) == 1


def test_everything_is_on_the_device(found):
    errors = {name: case["error"] for name, case in found.items() if "error" in case}
    assert list(errors) == ["two devices"], errors
    assert sum(name.endswith(", refined") for name in found) == 8 + 14


def test_no_training_step_waits(found):
    steps = {name: case["waits"] for name, case in found.items() if ", step" in name}
    assert len(steps) == 2 * 8 + 14
    assert {name for name, waits in steps.items() if waits} == WAITS, steps
