"""Matrices in their own order."""

import pytest
import torch

from scmixvi.singlecell._loops.transpose import BLOCK, contiguous


@pytest.mark.parametrize("shape", [(1, 1), (BLOCK, 3), (5 * BLOCK, 128), (1201, 7), (3, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_turned_matrix_is_written_out(shape, dtype):
    matrix = torch.arange(float(shape[0] * shape[1]), dtype=dtype).view(shape[::-1]).T
    found = contiguous(matrix)
    assert found.is_contiguous()
    assert torch.equal(found, matrix)


def test_a_matrix_in_its_own_order_is_not_copied():
    matrix = torch.rand(4, 5)
    assert contiguous(matrix).data_ptr() == matrix.data_ptr()


def test_a_part_of_a_matrix():
    part = torch.rand(9, 50)[2:7, 3:40]
    assert torch.equal(contiguous(part.T), part.T)
