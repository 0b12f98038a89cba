"""Loops on torch's threads: every row is done once."""

import numpy as np
import pytest
import torch

from scmixvi.singlecell._loops import team as _team
from scmixvi.singlecell._loops.compiled import thread_entry
from scmixvi.singlecell._loops.team import HEAD, array_at, next_rows


@thread_entry
def double(address):
    block = array_at(address, HEAD + 2, np.int64)
    x = array_at(block[HEAD], block[2], np.float64)
    counts = array_at(block[HEAD + 1], block[2], np.int64)
    while True:
        start, stop = next_rows(address)
        if start >= stop:
            return
        for i in range(start, stop):
            x[i] *= 2
            counts[i] += 1


def doubled(x, counts):
    _team.in_parallel(double, len(x), [x.ctypes.data, counts.ctypes.data])


@pytest.mark.parametrize("n_threads", [1, 2, 5])
@pytest.mark.parametrize("n_rows", [0, 1, 3, 1000])
@pytest.mark.parametrize("team", [True, False])
def test_every_row_is_done_once(n_threads, n_rows, team, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    if not team:
        monkeypatch.setattr(_team, "_libgomp", lambda: None)
    x, counts = np.arange(n_rows, dtype=float), np.zeros(n_rows, int)
    doubled(x, counts)
    assert (counts == 1).all()
    np.testing.assert_array_equal(x, 2 * np.arange(n_rows))


def test_torch_goes_on_computing_beside_it():
    x, counts = np.ones(64), np.zeros(64, int)
    for _ in range(50):
        product = torch.ones(256, 256) @ torch.ones(256, 256)
        doubled(x, counts)
        assert product[0, 0] == 256
    assert (counts == 50).all()
