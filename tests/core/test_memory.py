"""Keeping freed memory, in processes of their own so that the tests' allocator is left alone."""

import subprocess
import sys
from pathlib import Path

import pytest

MODULE = Path(__file__).parents[2] / "scmixvi" / "core" / "memory.py"
PRELUDE = """
import resource, runpy, sys
module = runpy.run_path(sys.argv[1])
keep, kept = module["keep_freed_memory"], module["freed_memory_kept"]
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def of_one_step():
    before = faults()
    blocks = [bytearray(64 << 20), *(bytearray(16 << 20) for _ in range(8))]
    del blocks
    return faults() - before
def settled():
    return [of_one_step() for _ in range(3)][-1]
"""
FOR_GOOD = """
before, done, after = settled(), keep(), settled()
with kept():
    pass
print(int(done), before, after, settled())
"""
FOR_A_WHILE = """
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
before = settled()
with kept():
    with kept():
        pass
    inside, held = settled(), resident()
print(int(inside < before), before, inside, settled(), held - resident())
"""


def run(script):
    if not sys.platform.startswith("linux"):
        pytest.skip("glibc only")
    command = [sys.executable, "-c", PRELUDE + script, str(MODULE)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    done, *figures = map(int, output.split())
    if not done:
        pytest.skip("not glibc")
    return figures


def test_freed_blocks_are_used_again():
    before, after, after_a_while = run(FOR_GOOD)
    assert after < 0.1 * before, "page faults of 192 MB that were freed just before"
    assert after_a_while < 0.1 * before, "what is kept for good is not given back"


def test_freed_blocks_are_given_back_in_the_end():
    before, inside, after, given_back = run(FOR_A_WHILE)
    assert inside < 0.1 * before
    assert after > 0.5 * before
    assert given_back > 150 * 2**20
