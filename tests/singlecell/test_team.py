"""Loops on torch's threads: every row once, and errors come back."""

import numpy as np
import pytest
import torch
from numba import njit

from scmixvi.singlecell import _team


@njit(nogil=True)
def double(x, counts, start, stop):
    for i in range(start, stop):
        x[i] *= 2
        counts[i] += 1


@pytest.mark.parametrize("n_threads", [1, 2, 5])
@pytest.mark.parametrize("n_rows", [1, 3, 1000])
@pytest.mark.parametrize("team", [True, False])
def test_every_row_is_done_once(n_threads, n_rows, team, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    if not team:
        monkeypatch.setattr(_team, "_libgomp", lambda: None)
    x, counts = np.arange(n_rows, dtype=float), np.zeros(n_rows, int)
    _team.in_parallel(double, n_rows, x, counts)
    assert (counts == 1).all()
    np.testing.assert_array_equal(x, 2 * np.arange(n_rows))


def test_an_error_in_any_thread_is_raised_after_the_others_are_done(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    done = []

    def fails_in_the_second_half(start, stop):
        if stop == 10:
            raise KeyError("second half")
        done.append((start, stop))

    if _team._libgomp() is None:
        pytest.skip("torch has no libgomp here")
    with pytest.raises(KeyError, match="second half"):
        _team.in_parallel(fails_in_the_second_half, 10)
    assert (0, 5) in done


def test_torch_goes_on_computing_beside_it():
    x, counts = np.ones(64), np.zeros(64, int)
    for _ in range(50):
        product = torch.ones(256, 256) @ torch.ones(256, 256)
        _team.in_parallel(double, 64, x, counts)
        assert product[0, 0] == 256
    assert (counts == 50).all()
