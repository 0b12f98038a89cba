"""Freed memory is kept for the next step, and given back afterwards."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource

import torch

from scmixvi.singlecell._allocation import memory_kept


def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        blocks = [torch.zeros(2**22 - 2**10) for _ in range(8)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


faults()
outside = faults()
with memory_kept():
    faults()
    inside = faults()
    blocks = [torch.ones(2**22 - 2**10) for _ in range(8)]
    del blocks
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
now = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() // 1024
print(outside, inside, held - now)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_steps_do_not_ask_the_system_again():
    run = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    outside, inside, given_back = map(int, run.stdout.split())
    assert outside > 10_000
    assert inside < outside / 10
    assert given_back > 100_000, "kB of the 131 MB that were freed"
