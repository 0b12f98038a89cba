"""Real data sets of raw counts, as a user of scanpy expects them: one AnnData each.

In all of them `X` holds whole numbers (float32, CSR: cells x genes), which is what
:class:`scmixvi.MixtureSCVI` is trained on. :func:`on_disk` opens data too large for memory.
"""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import scanpy as sc
import scvi
from anndata.experimental import AnnCollection
from anndata.io import read_elem, sparse_dataset
from scipy.sparse import csr_matrix
from scvi.dataloaders import CollectionAdapter

from scmixvi._messages import is_whole, listing

__all__ = ["cortex", "on_disk", "pbmc68k", "sc_mixology"]

DATA_DIR_VARIABLE = "SCMIXVI_DATA_DIR"
"""Environment variable that names a folder holding cortex.h5ad and sc_mixology.h5ad."""


def pbmc68k() -> ad.AnnData:
    r"""Peripheral blood mononuclear cells, bundled with scanpy: needs no network.

    scanpy ships `pbmc68k_reduced`, 700 cells x 765 genes of the 68k PBMC data of 10x Genomics,
    normalised to 10,000 counts a cell (over all genes of the full data) and log1p transformed.
    With :math:`y` those values and :math:`n_c` the total counts of cell c, which scanpy keeps,
    the raw counts come back exactly:

    .. math:: x_{cg} = \mathrm{round}\left(\frac{n_c}{10^4} (e^{y_{cg}} - 1)\right)

    Returns
    -------
    AnnData, 700 x 765, raw counts in `X`. `obs["bulk_labels"]` holds the ten cell types (from
    correlation with bulk profiles of sorted cells) and `obs["louvain"]` scanpy's clusters;
    `n_counts` and `n_genes` are totals over the genes of the full data.

    References
    ----------
    Zheng et al. 2017, "Massively parallel digital transcriptional profiling of single cells".

    Examples
    --------
    >>> import scmixvi
    >>> adata = scmixvi.datasets.pbmc68k()
    >>> adata.shape, int(adata.X.sum())
    ((700, 765), 486651)
    """
    with warnings.catch_warnings():  # the bundled file is of an old anndata format
        warnings.simplefilter("ignore")
        reduced = sc.datasets.pbmc68k_reduced()
    scaled = reduced.raw.X.astype(np.float64).expm1()
    counts = scaled.multiply(reduced.obs[["n_counts"]].to_numpy(np.float64) / 1e4)
    return _raw_counts(np.round(counts.tocsr()), reduced.obs, reduced.raw.var)


def cortex(n_top_genes: int | None = 1200, save_path: str | Path = "data/") -> ad.AnnData:
    """Mouse cortex and hippocampus, 3005 cells of seven types.

    Read from cortex.h5ad in the folder that the environment variable `SCMIXVI_DATA_DIR` names;
    where there is none it is downloaded by :func:`scvi.data.cortex`.

    Parameters
    ----------
    n_top_genes
        Keep the genes whose raw counts vary most (population variance over all cells), in the
        order of the file; None keeps all genes.
    save_path
        Folder for the download.

    Returns
    -------
    AnnData, 3005 x `n_top_genes`, raw counts in `X`, cell types in `obs["cell_type"]`.

    Raises
    ------
    ValueError
        If `n_top_genes` is not a whole number between 1 and the number of genes.

    References
    ----------
    Zeisel et al. 2015, "Cell types in the mouse cortex and hippocampus revealed by single-cell
    RNA-seq", GSE60361.
    """
    path = _local_file("cortex.h5ad")
    adata = scvi.data.cortex(str(save_path)) if path is None else ad.read_h5ad(path)
    adata = _raw_counts(adata.X, adata.obs, adata.var)
    return adata if n_top_genes is None else _most_variable(adata, n_top_genes)


def sc_mixology() -> ad.AnnData:
    """Five human lung cancer cell lines on five plates and platforms, with ground truth.

    Read from sc_mixology.h5ad in the folder that the environment variable `SCMIXVI_DATA_DIR`
    names.

    Returns
    -------
    AnnData, 1408 x 11,533, raw counts in `X`, the cell line in `obs["cell_type"]`, CEL-seq2,
    Drop-seq or plate in `obs["batch"]`.

    Raises
    ------
    FileNotFoundError
        If the file is not there.

    References
    ----------
    Tian et al. 2019, "Benchmarking single cell RNA-sequencing analysis pipelines using mixture
    control experiments", GSE118767, https://github.com/LuyiTian/sc_mixology.
    """
    path = _local_file("sc_mixology.h5ad")
    if path is None:
        raise FileNotFoundError(
            f"sc_mixology.h5ad was not found: set {DATA_DIR_VARIABLE} to the folder that holds it "
            "(counts and labels are at https://github.com/LuyiTian/sc_mixology)."
        )
    adata = ad.read_h5ad(path)
    return _raw_counts(adata.X, adata.obs, adata.var)


def on_disk(
    files: Mapping[str, str | Path], layer: str | None = None, label: str = "file"
) -> CollectionAdapter:
    """Open h5ad files together, leaving their counts on disk.

    Only `obs` and `var` are read. The counts are `layers["counts"]` of the result, whatever they
    are called in the files: scvi-tools reads the layers of a collection, and anndata's
    `backed="r"` would read layers into memory.

    Parameters
    ----------
    files
        Name and path of every file. All must have the same genes in the same order.
    layer
        Where the counts of the files are; None is `X`. They must be stored as CSR.
    label
        Column of `obs` that will hold the name of the file.

    Returns
    -------
    scvi-tools' adapter of an :class:`anndata.experimental.AnnCollection`, to be used in place of
    an AnnData; its files are open as long as it is kept.

    Raises
    ------
    KeyError
        If a file has no such layer.
    ValueError
        If `files` is no dict or an empty one, a file is no readable h5ad, its counts are not stored
        as CSR, its `obs` has a column `label` already, or the files differ in their genes.

    Examples
    --------
    >>> adata = scmixvi.datasets.on_disk({"a": "a.h5ad", "b": "b.h5ad"})  # doctest: +SKIP
    >>> scmixvi.MixtureSCVI.setup_anndata(  # doctest: +SKIP
    ...     adata, layer="counts", batch_key="file"
    ... )
    """
    if not isinstance(files, Mapping) or not files:
        raise ValueError(
            "files must be a dict of at least one name and its path, for example "
            f"{{'a': 'a.h5ad'}}, but it is {files!r:.80}."
        )
    opened = {name: _opened(Path(path), layer) for name, path in files.items()}
    genes = next(iter(opened.values())).var_names
    for name, part in opened.items():
        if label in part.obs:
            raise ValueError(
                f"{files[name]} has a column {label!r} in obs already, which would be lost: pass "
                "another label."
            )
        if not part.var_names.equals(genes):
            raise ValueError(
                f"{files[name]} has other genes, or another order of them, than the first file: "
                "write all files with the same genes."
            )
    adapter = CollectionAdapter(AnnCollection(opened, label=label, index_unique="-"))
    adapter.uns = {}  # the class has one for all its instances
    return adapter


def _opened(path: Path, layer: str | None) -> ad.AnnData:
    """One file with its counts on disk."""
    try:
        file = h5py.File(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(
            f"{path} is no h5ad file, or is damaged: write it again by adata.write_h5ad."
        ) from error
    missing = [name for name in ("obs", "var") if name not in file]
    if missing:
        file.close()
        raise ValueError(f"{path} has no {listing(missing)}: write it by adata.write_h5ad.")
    where = "X" if layer is None else f"layers/{layer}"
    if where not in file:
        there = ["X"] * ("X" in file) + [f"layers/{name}" for name in file.get("layers", ())]
        file.close()
        raise KeyError(f"{path} has no {where}: its counts may be in {listing(there)}.")
    group = file[where]
    if group.attrs.get("encoding-type") != "csr_matrix":
        file.close()
        raise ValueError(
            f"the counts of {path} are not stored as CSR: write them with a scipy csr_matrix."
        )
    counts = sparse_dataset(group)
    return ad.AnnData(
        counts, obs=read_elem(file["obs"]), var=read_elem(file["var"]), layers={"counts": counts}
    )


def _local_file(name: str) -> Path | None:
    folder = os.environ.get(DATA_DIR_VARIABLE)
    path = Path(folder) / name if folder else None
    return path if path is not None and path.is_file() else None


def _raw_counts(counts: object, obs: object, var: object) -> ad.AnnData:
    matrix = csr_matrix(counts, dtype=np.float32)
    matrix.eliminate_zeros()
    matrix.sort_indices()
    return ad.AnnData(matrix, obs=obs.copy(), var=var.copy())


def _most_variable(adata: ad.AnnData, n_top_genes: int) -> ad.AnnData:
    if not is_whole(n_top_genes) or n_top_genes > adata.n_vars:
        raise ValueError(
            f"n_top_genes must be a whole number between 1 and the {adata.n_vars} genes of the "
            f"data, or None for all, but it is {n_top_genes!r}."
        )
    counts = adata.X.astype(np.float64)
    variance = counts.power(2).mean(axis=0).A1 - np.square(counts.mean(axis=0).A1)
    keep = np.sort(np.argsort(-variance, kind="stable")[:n_top_genes])
    return adata[:, keep].copy()
