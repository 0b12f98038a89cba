"""Counts that stay on disk: h5ad files, annbatch's zarr collections, TileDB-SOMA."""

from importlib.metadata import version

import anndata as ad
import h5py
import numpy as np
import pytest
import torch
from scipy.sparse import csc_matrix

from counts import QUIET, make_adata
from scmixvi import MixtureSCVI, datasets

SMALL = {"n_hidden": 16, "n_latent": 3, "n_components": 2}


@pytest.fixture
def parts():
    return {"a": make_adata(n_cells=50, seed=1), "b": make_adata(n_cells=70, seed=2)}


@pytest.fixture
def files(tmp_path, parts):
    paths = {name: tmp_path / f"{name}.h5ad" for name in parts}
    for name, part in parts.items():
        part.write_h5ad(paths[name])
    return paths


def with_weights(model, state):
    """Load weights, or train to have some; return them."""
    if state is None:
        model.train(2, **QUIET)
        state = model.module.state_dict()
    model.module.load_state_dict(state)
    model.is_trained_ = True
    model.module.eval()
    return state


def test_h5ad_files_read_as_the_same_cells_in_memory(files, parts):
    """With the same weights the latents and bounds are the same, wherever the counts are."""
    together = ad.concat(parts, label="file", index_unique="-")
    found, state = [], None
    for data, layer in ((together, None), (datasets.on_disk(files), "counts")):
        MixtureSCVI.setup_anndata(data, layer=layer, batch_key="file")
        model = MixtureSCVI(data, **SMALL)
        state = with_weights(model, state)
        torch.manual_seed(0)
        bounds = model.get_elbo(batch_size=32, return_mean=False)
        found.append((model.get_latent_representation(), bounds))
    for memory, disk in zip(*found, strict=True):
        np.testing.assert_allclose(memory, disk, rtol=1e-5, atol=1e-6)


def test_cells_of_a_file_come_in_the_order_asked_for(files, parts):
    """Any order, and cells more than once, within a minibatch and across them."""
    found, state, cells = [], None, [45, 3, 17, 3, 0, 29]
    for data in (parts["a"], ad.read_h5ad(files["a"], backed="r")):
        MixtureSCVI.setup_anndata(data, batch_key="batch")
        model = MixtureSCVI(data, **SMALL)
        state = with_weights(model, state)
        torch.manual_seed(0), np.random.seed(0)  # noqa: NPY002  as scvi-tools draws
        weighted = model.get_normalized_expression(
            indices=cells, n_samples_overall=30, weights="importance", batch_size=4
        )
        found.append(
            (
                model.get_latent_representation(indices=cells, batch_size=4),
                model.get_component_weights(indices=cells),
                model.get_normalized_expression(indices=cells),
                weighted,
            )
        )
    for memory, disk in zip(*found, strict=True):
        np.testing.assert_allclose(memory, disk, rtol=1e-3, atol=1e-5)
    for memory, disk in zip(found[0][2:], found[1][2:], strict=True):
        assert memory.index.equals(disk.index)


def test_each_part_gets_the_latents_of_its_cells(files):
    adata = datasets.on_disk(files)
    MixtureSCVI.setup_anndata(adata, layer="counts")
    model = MixtureSCVI(adata, **SMALL)
    model.train(1, **QUIET)
    stored = [part.obsm["X_mix"] for part in adata.adatas]
    assert [len(rows) for rows in stored] == [50, 70]
    np.testing.assert_array_equal(np.concatenate(stored), model.get_latent_representation())


def test_counts_stay_on_disk(files, monkeypatch):
    adata = datasets.on_disk(files)
    rows = []
    cls = type(adata.adatas[0].layers["counts"])
    read = cls.__getitem__
    monkeypatch.setattr(cls, "__getitem__", lambda s, i: rows.append(read(s, i)) or rows[-1])
    MixtureSCVI.setup_anndata(adata, layer="counts", batch_key="file")
    MixtureSCVI(adata, **SMALL).train(1, batch_size=16, latent_key=None, **QUIET)
    assert rows
    assert max(part.shape[0] for part in rows) <= 64


def test_a_layer_of_the_files(tmp_path, parts):
    for name, part in parts.items():
        part.layers["raw"] = part.X.copy()
        part.X = part.X.log1p()
        part.write_h5ad(tmp_path / f"{name}.h5ad")
    adata = datasets.on_disk({n: tmp_path / f"{n}.h5ad" for n in parts}, "raw", label="source")
    np.testing.assert_array_equal(
        adata[:50].layers["counts"].toarray(), parts["a"].layers["raw"].toarray()
    )
    assert list(adata.obs["source"].unique()) == ["a", "b"]


def test_files_that_do_not_fit(tmp_path, files, parts):
    other = parts["b"][:, ::-1].copy()
    other.write_h5ad(tmp_path / "other.h5ad")
    with pytest.raises(ValueError, match="other.h5ad has other genes, or another order"):
        datasets.on_disk({"a": files["a"], "other": tmp_path / "other.h5ad"})
    parts["b"].X = csc_matrix(parts["b"].X)
    parts["b"].write_h5ad(tmp_path / "columns.h5ad")
    with pytest.raises(ValueError, match=r"columns\.h5ad are not stored as CSR"):
        datasets.on_disk({"b": tmp_path / "columns.h5ad"})


@pytest.mark.parametrize("files", [{}, [], ["a.h5ad"], "a.h5ad"])
def test_files_are_named_in_a_dict(files):
    with pytest.raises(ValueError, match="files must be a dict of at least one name and its path"):
        datasets.on_disk(files)


def test_a_layer_that_a_file_does_not_have(tmp_path, files, parts):
    with pytest.raises(KeyError, match=r"a\.h5ad has no layers/raw: its counts may be in X\."):
        datasets.on_disk(files, "raw")
    parts["a"].layers["counts"] = parts["a"].X.copy()
    parts["a"].X = None
    parts["a"].write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(KeyError, match=r"a\.h5ad has no X: its counts may be in layers/counts\."):
        datasets.on_disk({"a": tmp_path / "a.h5ad"})


@pytest.mark.parametrize("together", [True, False])
def test_bad_columns_and_indices_of_cells_on_disk(files, parts, together):
    def opened():
        if together:
            return datasets.on_disk(files)
        return ad.read_h5ad(files["a"], backed="r")

    setup = {"layer": "counts"} if together else {}
    adata = opened()
    adata.obs["batch"] = adata.obs["batch"].astype(object)
    adata.obs.loc[adata.obs_names[3], "batch"] = np.nan
    with pytest.raises(ValueError, match=r"'batch'\] holds 1 missing"):
        MixtureSCVI.setup_anndata(adata, batch_key="batch", **setup)
    adata = opened()
    MixtureSCVI.setup_anndata(adata, size_factor_key="size", **setup)
    model = MixtureSCVI(adata, **SMALL)
    model.train(1, latent_key=None, **QUIET)
    with pytest.raises(ValueError, match=f"indices is a mask, .*each of the {adata.n_obs} cells"):
        model.get_elbo(indices=np.ones(7, bool))
    found = model.get_latent_representation(indices=[-1, 2])
    np.testing.assert_allclose(found, model.get_latent_representation()[[-1, 2]], atol=1e-5)
    query = opened()
    query.obs["size"] = 0.0
    with pytest.raises(ValueError, match=f"size factor .* holds {adata.n_obs} entries"):
        model.get_latent_representation(query)


@pytest.mark.parametrize("together", [True, False])
def test_groups_of_cells_on_disk_are_compared_without_statistics(files, together):
    adata = datasets.on_disk(files) if together else ad.read_h5ad(files["a"], backed="r")
    where = r"adata\.layers\['counts'\]" if together else r"adata\.X"
    MixtureSCVI.setup_anndata(adata, layer="counts" if together else None)
    model = MixtureSCVI(adata, **SMALL)
    model.train(1, latent_key=None, **QUIET)
    columns = list(adata.obs)
    with pytest.raises(ValueError, match=f"{where} is on disk.*pass all_stats=False"):
        model.differential_expression(idx1=[0, 1, 2], silent=True)
    found = model.differential_expression(idx1=[0, 1, 2], silent=True, all_stats=False)
    assert len(found) == adata.shape[1]
    assert list(adata.obs) == columns


@pytest.mark.parametrize("content", [b"", b"<html>", "half"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, files, content):
    broken = tmp_path / "broken.h5ad"
    whole = files["b"].read_bytes()
    broken.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(ValueError, match="broken.h5ad is no h5ad file, or is damaged: write it"):
        datasets.on_disk({"a": files["a"], "b": broken})
    with pytest.raises(FileNotFoundError, match="gone.h5ad"):
        datasets.on_disk({"a": tmp_path / "gone.h5ad"})


def test_a_file_of_something_else_is_named(tmp_path):
    with h5py.File(tmp_path / "other.h5ad", "w") as file:
        file["X"] = np.ones((2, 2))
    with pytest.raises(ValueError, match="other.h5ad has no obs, var: write it by adata.write_h5"):
        datasets.on_disk({"a": tmp_path / "other.h5ad"})


def test_a_column_of_the_files_is_not_replaced_by_their_names(files):
    with pytest.raises(ValueError, match="has a column 'batch' in obs already, which would be los"):
        datasets.on_disk(files, label="batch")


@pytest.mark.parametrize("is_collection", [True, False])
def test_counts_in_files_are_not_minified(files, is_collection):
    """Said before posteriors are computed: by scvi-tools when they are, or not in words."""
    data = datasets.on_disk(files) if is_collection else ad.read_h5ad(files["a"], backed="r")
    MixtureSCVI.setup_anndata(data, layer="counts" if is_collection else None)
    model = MixtureSCVI(data, **SMALL)
    model.is_trained_, model.module = True, model.module.eval()
    model.module.inference = None  # not asked for anything
    with pytest.raises(ValueError, match="here the counts lie in files: read the data into memory"):
        model.minify_adata()


def test_samples_of_a_collection_score_latents_by_their_posteriors(files):
    """The table has no place there, which scvi-tools finds when it is computed."""
    data = datasets.on_disk(files)
    MixtureSCVI.setup_anndata(data, layer="counts")
    model = MixtureSCVI(data, **SMALL)
    with_weights(model, None)
    with pytest.raises(ValueError, match=r"get_aggregated_posterior\(indices=...\).log_prob"):
        model.differential_abundance(sample_key="file")
    latents = torch.as_tensor(model.get_latent_representation())
    scores = model.get_aggregated_posterior(indices=np.arange(50)).log_prob(latents)
    assert scores.shape == (120,)
    assert scores.isfinite().all()


def test_two_collections_do_not_share_their_registry(files):
    first, second = (datasets.on_disk({name: files[name]}) for name in "ab")
    MixtureSCVI.setup_anndata(first, layer="counts")
    MixtureSCVI.setup_anndata(second, layer="counts")
    assert MixtureSCVI(first, **SMALL).adata.n_obs == 50


def assert_trains_from(datamodule, n_obs):
    """Train, ask for latents and bounds, and check them against the counts that were stored."""
    model = MixtureSCVI(registry=datamodule.registry, **SMALL)
    model.train(2, datamodule=datamodule, latent_key="X_mix", **QUIET)
    assert np.isfinite(model.history["elbo_train"].to_numpy(float)).all()
    latents = model.get_latent_representation(dataloader=datamodule.inference_dataloader())
    assert latents.shape == (n_obs, 3)
    loaded = list(datamodule.inference_dataloader())
    expected = [
        model.module.inference(**model.module._get_inference_input(batch))["qz"].mean
        for batch in loaded
    ]
    assert sum(len(batch["X"]) for batch in loaded) == n_obs
    rows = torch.cat(expected).detach().numpy()
    np.testing.assert_allclose(np.sort(rows, axis=0), np.sort(latents, axis=0), atol=1e-5)
    theta = model.module.px_r.clone()
    model.refine_encoders(1, datamodule=datamodule, **QUIET)
    assert torch.equal(theta, model.module.px_r)
    assert np.isfinite(model.refinement_history["elbo_train"].to_numpy(float)).all()

    diversity = model.get_posterior_diversity(dataloader=datamodule.inference_dataloader())
    assert ((diversity > -0.2) & (diversity < np.log(2) + 1e-3)).all()
    return model


def test_annbatch(tmp_path, files):
    pytest.importorskip("annbatch")
    pytest.importorskip("zarrs")
    if not hasattr(MixtureSCVI, "setup_annbatch"):
        pytest.skip("scvi-tools before 1.5 has no setup_annbatch")
    if version("annbatch") >= "0.3":
        pytest.skip("scvi-tools 1.5 passes an argument that annbatch 0.3 no longer takes")
    datamodule = MixtureSCVI.setup_annbatch(
        collection_path=str(tmp_path / "cells.zarr"),
        paths=[str(path) for path in files.values()],
        batch_key="batch",
        batch_size=16,
        chunk_size=8,
        preload_nchunks=4,
        preload_to_gpu=False,
        dataset_size=2000,
    )
    assert datamodule.registry["model_name"] == "MixtureSCVI"
    assert_trains_from(datamodule, 120)


def store(soma, uri, adata):
    """Write counts, batches and genes as a SOMA experiment."""
    pa = pytest.importorskip("pyarrow")
    counts = adata.X.tocoo()
    ids = {"obs": adata.n_obs, "var": adata.n_vars}
    frames = {
        axis: pa.table({"soma_joinid": np.arange(n), **columns})
        for (axis, n), columns in zip(
            ids.items(),
            ({"batch": list(adata.obs["batch"])}, {"gene": list(adata.var_names)}),
            strict=True,
        )
    }
    with soma.Experiment.create(uri) as experiment:
        measurements = experiment.add_new_collection("ms")
        measurement = measurements.add_new_collection("RNA", soma.Measurement)
        for axis, parent in (("obs", experiment), ("var", measurement)):
            table, domain = frames[axis], [(0, ids[axis] - 1)]
            frame = parent.add_new_dataframe(
                axis, schema=table.schema, index_column_names=["soma_joinid"], domain=domain
            )
            frame.write(table)
        matrices = measurement.add_new_collection("X")
        array = matrices.add_new_sparse_ndarray("data", type=pa.float32(), shape=adata.shape)
        array.write(pa.SparseCOOTensor.from_scipy(counts))


def test_tiledb_soma(tmp_path, parts):
    soma = pytest.importorskip("tiledbsoma")
    pytest.importorskip("tiledbsoma_ml")
    from scvi.dataloaders import TileDBDataModule

    uri = str(tmp_path / "cells.soma")
    store(soma, uri, parts["a"])
    with soma.Experiment.open(uri) as experiment:
        query = experiment.axis_query("RNA")
        datamodule = TileDBDataModule(
            query,
            layer_name="data",
            batch_labels=["x", "y"],
            batch_column_names=["batch"],
            batch_size=16,
            model_name="MixtureSCVI",
            train_size=1.0,
        )
        datamodule.setup()
        assert_trains_from(datamodule, 50)
