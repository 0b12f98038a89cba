"""scvi-tools' data loader, with minibatches gathered from memory in one compiled loop.

Keys, types and values are those of :class:`scvi.dataloaders.AnnDataLoader`, and so is the order but
for data on disk: it sorts the cells of each minibatch, while here they come as they were asked for.
Data that are not in memory, or not rows of a CSR matrix or an array, are left to it otherwise.
"""

from typing import Any

import numpy as np
import pandas as pd
import scvi.dataloaders
import torch
from scipy.sparse import issparse
from scvi.data import AnnTorchDataset
from scvi.dataloaders import AnnDataLoader
from torch import Tensor
from torch.utils.data import Dataset, Subset

from scmixvi.singlecell._loops.compiled import available
from scmixvi.singlecell._loops.kernels import gather_rows


class InMemoryLoader(AnnDataLoader):
    """:class:`scvi.dataloaders.AnnDataLoader` that gathers rows itself where it can."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        subset = self.dataset
        if type(subset) is Subset and type(subset.dataset) is AnnTorchDataset:
            on_disk = subset.dataset.adata_manager.adata.isbacked
            subset.dataset = (_InOrder if on_disk else in_memory)(subset.dataset)


class DataSplitter(scvi.dataloaders.DataSplitter):
    """:class:`scvi.dataloaders.DataSplitter` with that loader; its name decides in scvi-tools."""

    data_loader_cls = InMemoryLoader

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """As Lightning does, which takes its time also where a batch is there already."""
        if isinstance(batch, dict) and all(
            value is None or (isinstance(value, Tensor) and value.device == device)
            for value in batch.values()
        ):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)


class _Wrapped(Dataset):
    """A dataset in the place of another."""

    def __init__(self, source: AnnTorchDataset) -> None:
        self._source = source

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._source, name)

    def __len__(self) -> int:
        return len(self._source)


class _InOrder(_Wrapped):
    """Rows on disk, which are read sorted and once each, as they were asked for."""

    def __getitem__(self, rows: Any) -> dict[str, Any]:
        if not isinstance(rows, list | np.ndarray):
            return self._source[rows]
        sorted_rows, places = np.unique(rows, return_inverse=True)
        read = self._source[sorted_rows]
        if np.array_equal(sorted_rows, rows):
            return read
        dense = {k: v.to_dense() if isinstance(v, Tensor) else v for k, v in read.items()}
        return {key: value[places] for key, value in dense.items()}


class _Gathered(_Wrapped):
    """Rows of arrays and CSR matrices, by key."""

    def __init__(self, source: AnnTorchDataset, columns: dict[str, Any]) -> None:
        super().__init__(source)
        self._columns = columns

    def __getitem__(self, rows: Any) -> dict[str, np.ndarray]:
        if not isinstance(rows, list | np.ndarray):
            return self._source[rows]
        rows = np.asarray(rows)
        if rows.dtype.kind not in "iu" or rows.size == 0 or rows.min() < 0:
            return self._source[rows]
        types = self._source.keys_and_dtypes
        return {key: _rows(data, rows, types[key]) for key, data in self._columns.items()}


def in_memory(dataset: AnnTorchDataset) -> Dataset:
    """Return a dataset of the same rows that are gathered, or the one given."""
    if not available() or dataset.load_sparse_tensor:
        return dataset
    columns = {}
    for key, dtype in dataset.keys_and_dtypes.items():
        data = dataset.data[key]
        if isinstance(data, pd.DataFrame):
            data = data.to_numpy().astype(dtype, copy=False)
        is_csr = issparse(data) and data.format == "csr" and np.dtype(dtype) == np.float32
        if not (is_csr and _can_compile(data.data.dtype)) and type(data) is not np.ndarray:
            return dataset
        columns[key] = data
    return _Gathered(dataset, columns)


def _can_compile(dtype: np.dtype) -> bool:
    """Whether numba has numbers of this type: of long doubles it has none, nor of halves."""
    has_size = dtype.itemsize <= 8 and dtype != np.float16
    return dtype.kind in "fiu" and has_size and dtype.isnative


def _rows(data: Any, rows: np.ndarray, dtype: Any) -> np.ndarray:
    if not issparse(data):
        return data[rows].astype(dtype, copy=False)
    dense = np.zeros((len(rows), data.shape[1]), np.float32)
    gather_rows(data.data, data.indices, data.indptr, rows, dense)
    return dense
