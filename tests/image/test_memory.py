"""Keeping freed memory, in a process of its own so that the tests' own allocator is left alone."""

import subprocess
import sys
from pathlib import Path

import pytest

MODULE = Path(__file__).parents[2] / "scmixvi" / "image" / "memory.py"
SCRIPT = """
import resource, runpy, sys
keep = runpy.run_path(sys.argv[1])["keep_freed_memory"]
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def of_one_block():
    before = faults()
    block = bytearray(64 << 20)
    del block
    return faults() - before
before = [of_one_block() for _ in range(3)][-1]
done = keep()
after = [of_one_block() for _ in range(3)][-1]
print(int(done), before, after)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_blocks_are_used_again():
    command = [sys.executable, "-c", SCRIPT, str(MODULE)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    done, before, after = map(int, output.split())
    if not done:
        pytest.skip("not glibc")
    assert after < 0.1 * before, "page faults of a 64 MB block that was freed just before"
