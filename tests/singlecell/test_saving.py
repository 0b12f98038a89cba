"""Model files hold data alone: none that names or changes anything else is read, by any method."""

import os
import pickle
import warnings
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch

from counts import QUIET, make_adata
from scmixvi import MixtureSCVI
from scmixvi.singlecell._exchange.files import PICKLING, check_model_file


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A saved model in the current folder, `model`, and its data."""
    monkeypatch.chdir(tmp_path)
    adata = make_adata()
    MixtureSCVI.setup_anndata(adata)
    model = MixtureSCVI(adata, n_components=2, n_hidden=8, n_latent=3)
    model.train(1, latent_key=None, **QUIET)
    model.save("model")
    return adata


class Evil:
    def __reduce__(self):
        return os.mkdir, ("it_ran",)


READERS = {
    "load": lambda adata: MixtureSCVI.load("model", adata),
    "load_query_data": lambda adata: MixtureSCVI.load_query_data(adata, "model"),
    "load_registry": lambda adata: MixtureSCVI.load_registry("model"),
    "view_setup_args": lambda adata: MixtureSCVI.view_setup_args("model"),
    "prepare_query_anndata": lambda adata: MixtureSCVI.prepare_query_anndata(adata, "model"),
    "prepare_query_mudata": lambda adata: MixtureSCVI.prepare_query_mudata(adata, "model"),
}


@pytest.mark.parametrize("content", [{"state_dict": {}}, {"attr_dict": {}}, [1], torch.ones(2)])
@pytest.mark.parametrize("name", READERS)
def test_what_torch_saved_of_something_else_is_no_model(saved, name, content):
    torch.save(content, "model/model.pt")
    with pytest.raises(ValueError, match=r"model\.pt is damaged or not a saved model: save"):
        READERS[name](saved)


@pytest.mark.parametrize("name", READERS)
def test_reading_runs_nothing(saved, name):
    content = torch.load("model/model.pt", weights_only=False)
    content["attr_dict"]["evil_"] = Evil()
    torch.save(content, "model/model.pt")
    with pytest.raises(ValueError, match=r"would run code: it names posix\.mkdir"):
        READERS[name](saved)
    assert not os.path.exists("it_ran")


@pytest.mark.parametrize("evil_file", ["model_params.pt", "attr.pkl", None])
def test_files_of_the_old_format_are_checked_and_converted(saved, evil_file):
    content = torch.load("model/model.pt", weights_only=False)
    os.mkdir("old")
    np.savetxt("old/var_names.csv", content["var_names"], fmt="%s")
    state, attributes = content["model_state_dict"], content["attr_dict"]
    evil = {"evil_": Evil()}
    torch.save(state | (evil if evil_file == "model_params.pt" else {}), "old/model_params.pt")
    with open("old/attr.pkl", "wb") as file:
        pickle.dump(attributes | (evil if evil_file == "attr.pkl" else {}), file)
    if evil_file is None:
        MixtureSCVI.convert_legacy_save("old", "new")
        params = [
            MixtureSCVI.load(name, saved).get_latent_representation(representation="params")
            for name in ("model", "new")
        ]
        np.testing.assert_array_equal(*params)
        return
    with pytest.raises(ValueError, match=rf"{evil_file} is not loaded.*posix\.mkdir"):
        MixtureSCVI.convert_legacy_save("old", "new")
    assert not os.path.exists("it_ran")
    assert not os.path.exists("new")


def with_entry(code):
    """Give the saved dictionary one more entry, whose value is what these pickle opcodes leave."""
    with zipfile.ZipFile("model/model.pt") as archive:
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile("model/model.pt", "w", zipfile.ZIP_STORED) as archive:
        for name, part in parts.items():
            if name.endswith("data.pkl"):
                part = part[:-1] + text("more") + code + b"s."
            archive.writestr(name, part)


def text(word):
    return b"X" + len(word).to_bytes(4, "little") + word.encode()


RELU = b"ctorch.nn.functional\nrelu\n"
CHANGES = {
    # a module, through a name in one that holds activations
    "module": b"ctorch.nn.modules.activation\ntorch\n}" + text("log1p") + RELU + b"sb",
    # attributes of a class, which pickle sets from the second of a pair
    "class": b"ctorch.nn.modules.activation\nReLU\nN}" + text("forward") + RELU + b"s\x86b",
    "function": RELU + b"}" + text("log1p") + RELU + b"sb",
    # a function of pandas that imports what it is told
    "call": b"cpandas.core.arrays.string_\nimport_optional_dependency\n("
    + text("antigravity")
    + b"tR",
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_cannot_change_what_is_not_its_own(saved, name):
    check_model_file("model")
    with_entry(CHANGES[name])
    forward, log1p = torch.nn.ReLU.forward, torch.log1p
    with pytest.raises(ValueError, match="is not loaded, for it would run code"):
        MixtureSCVI.load("model", saved)
    assert torch.nn.ReLU.forward is forward
    assert torch.log1p is log1p
    assert not hasattr(torch.nn.functional.relu, "log1p")


@pytest.mark.parametrize("unfrozen", [False, True])
def test_a_query_model_from_a_file_trains_what_it_trained_before(tmp_path, unfrozen):
    adata = make_adata()
    MixtureSCVI.setup_anndata(adata, batch_key="batch")
    options = {"n_hidden": 8, "n_latent": 3, "encode_covariates": True, "use_batch_norm": "none"}
    reference = MixtureSCVI(adata, n_components=2, use_layer_norm="both", **options)
    reference.train(1, latent_key=None, **QUIET)
    query = make_adata(seed=1)
    query.obs["batch"] = "new"
    model = MixtureSCVI.load_query_data(query, reference, unfrozen=unfrozen)
    exact = {**QUIET, "plan_kwargs": {"weight_decay": 0.0}}
    model.train(1, latent_key=None, **exact)
    model.save(tmp_path / "query")
    again = MixtureSCVI.load(tmp_path / "query", query)
    before = {k: v.clone() for k, v in again.module.named_parameters()}
    again.train(1, latent_key=None, **exact)
    again.refine_encoders(1, latent_key=None, **exact)
    moved = {k: (v != before[k]).any(0) for k, v in again.module.named_parameters()}
    if unfrozen:
        assert moved["z_encoder.mean_encoder.weight"].any()
        return
    assert {k for k, where in moved.items() if where.any()} == {
        k for k in before if "fc_layers.Layer 0.0.weight" in k and not k.startswith("l_encoder")
    }
    for name, where in moved.items():
        if name.startswith("z_encoder") and "fc_layers.Layer 0.0.weight" in name:
            assert not where[:23].any()
            assert where[-1]


def test_data_of_an_older_model_are_not_passed_over(make_model, tmp_path):
    """They stay, for they may be the only copy, and saving says whose they are."""
    first, second = make_model(), make_model()
    for model in (first, second):
        model.train(1, **QUIET)
    first.save(tmp_path / "m", save_anndata=True)
    with pytest.warns(UserWarning, match=r"adata\.h5ad was there before, and load"):
        second.save(tmp_path / "m", overwrite=True)
    assert (tmp_path / "m" / "adata.h5ad").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        second.save(tmp_path / "m", overwrite=True, save_anndata=True)


@pytest.mark.parametrize("missing", [False, True])
def test_strings_in_pyarrow_are_saved_as_python_s(tmp_path, missing):
    """As pandas 3 keeps all strings where pyarrow is there, in the history's columns too."""
    pytest.importorskip("pyarrow")
    strings = pd.array(["elbo", pd.NA if missing else "jsd"], dtype="string[pyarrow]")
    state = {"model_state_dict": {}, "var_names": []}
    state["attr_dict"] = {"history_": pd.Series(strings)}
    torch.save(state, tmp_path / "model.pt", pickle_module=PICKLING)
    check_model_file(str(tmp_path))
    with open(tmp_path / "model.pt", "rb") as file:
        assert b"pyarrow.lib" not in file.read()
    found = torch.load(tmp_path / "model.pt", weights_only=False)["attr_dict"]["history_"]
    assert found.dtype.storage == "python"
    pd.testing.assert_series_equal(found.astype(object), pd.Series(strings).astype(object))


def test_who_reads_a_model_keeps_the_old_one_while_it_is_replaced(make_model, tmp_path):
    model, file = make_model(), tmp_path / "model" / "model.pt"
    model.save(tmp_path / "model")
    before = file.read_bytes()
    with torch.no_grad():
        model.module.px_r += 1
    with open(file, "rb") as reader:
        model.save(tmp_path / "model", overwrite=True)
        assert reader.read() == before
    assert file.read_bytes() != before
