"""scvi-tools' data loader, with minibatches gathered from memory in one compiled loop.

Order, keys, types and values are those of :class:`scvi.dataloaders.AnnDataLoader`. Data that are
not in memory, or not rows of a CSR matrix or an array, are left to it.
"""

from typing import Any

import numpy as np
import pandas as pd
import scvi.dataloaders
from scipy.sparse import issparse
from scvi.data import AnnTorchDataset
from scvi.dataloaders import AnnDataLoader
from torch.utils.data import Dataset, Subset

from scmixvi.singlecell._compiled import available
from scmixvi.singlecell._kernels import gather_rows


class InMemoryLoader(AnnDataLoader):
    """:class:`scvi.dataloaders.AnnDataLoader` that gathers rows itself where it can."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        subset = self.dataset
        if type(subset) is Subset and type(subset.dataset) is AnnTorchDataset:
            subset.dataset = in_memory(subset.dataset)


class DataSplitter(scvi.dataloaders.DataSplitter):
    """:class:`scvi.dataloaders.DataSplitter` with that loader; its name decides in scvi-tools."""

    data_loader_cls = InMemoryLoader


class _Gathered(Dataset):
    """Rows of arrays and CSR matrices, by key."""

    def __init__(self, source: AnnTorchDataset, columns: dict[str, Any]) -> None:
        self._source, self._columns = source, columns

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._source, name)

    def __len__(self) -> int:
        return len(self._source)

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
    if not available() or dataset.load_sparse_tensor or dataset.adata_manager.adata.isbacked:
        return dataset
    columns = {}
    for key, dtype in dataset.keys_and_dtypes.items():
        data = dataset.data[key]
        if isinstance(data, pd.DataFrame):
            data = data.to_numpy().astype(dtype, copy=False)
        is_csr = issparse(data) and data.format == "csr" and np.dtype(dtype) == np.float32
        if not (is_csr and data.data.dtype.kind in "fiu") and type(data) is not np.ndarray:
            return dataset
        columns[key] = data
    return _Gathered(dataset, columns)


def _rows(data: Any, rows: np.ndarray, dtype: Any) -> np.ndarray:
    if not issparse(data):
        return data[rows].astype(dtype, copy=False)
    dense = np.zeros((len(rows), data.shape[1]), np.float32)
    gather_rows(data.data, data.indices, data.indptr, rows, dense)
    return dense
