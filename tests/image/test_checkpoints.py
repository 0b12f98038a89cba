"""Checkpoint files: whole or not at all, and no code from them."""

from functools import partial

import numpy as np
import pytest
import torch

from scmixvi.core import miselbo
from scmixvi.image.checkpoints import (
    at_home,
    check_fit,
    check_origin,
    check_settings,
    load_vae,
    plain,
    read_checkpoint,
    write_checkpoint,
)
from scmixvi.image.decoders import bernoulli
from scmixvi.image.lightning import recipe_training

GOOD = {"state_dict": {"weight": torch.arange(3.0)}, "epoch": 4}


def test_round_trip_makes_missing_folders(tmp_path):
    path = tmp_path / "new" / "run" / "best.ckpt"
    write_checkpoint(GOOD, path)
    read = read_checkpoint(path)
    assert read["epoch"] == 4
    assert torch.equal(read["state_dict"]["weight"], torch.arange(3.0))
    assert [p.name for p in path.parent.iterdir()] == ["best.ckpt"]


def test_an_interrupted_write_leaves_the_good_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    write_checkpoint(GOOD, path)

    def power_cut(checkpoint, file):
        file.write(b"half of a checkpoint")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", power_cut)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint({"state_dict": {}}, path)
    assert read_checkpoint(path)["epoch"] == 4
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_who_reads_a_checkpoint_keeps_the_old_one_while_it_is_replaced(tmp_path):
    path = tmp_path / "last.ckpt"
    write_checkpoint(GOOD, path)
    before = path.read_bytes()
    with open(path, "rb") as reader:
        write_checkpoint(GOOD | {"epoch": 5}, path)
        assert reader.read() == before
    assert read_checkpoint(path)["epoch"] == 5


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no checkpoint .*gone.ckpt"):
        read_checkpoint(tmp_path / "gone.ckpt")


@pytest.mark.parametrize("damage", ["cut short", "first bytes", "middle", "empty", "text"])
def test_a_damaged_file_gets_one_clear_sentence(tmp_path, damage):
    path = tmp_path / "last.ckpt"
    write_checkpoint({"state_dict": {"weight": torch.randn(5000)}}, path)
    data = bytearray(path.read_bytes())
    if damage == "cut short":
        data = data[: len(data) // 2]
    elif damage == "first bytes":
        data[:200] = bytes(200)
    elif damage == "middle":
        data[-600:-300] = bytes(300)
    else:
        data = bytearray(b"" if damage == "empty" else b"not a checkpoint at all")
    path.write_bytes(data)
    with pytest.raises(ValueError, match="no readable checkpoint"):
        read_checkpoint(path)


def test_one_wrong_bit_among_the_weights_is_found(tmp_path):
    path = tmp_path / "last.ckpt"
    weights = torch.randn(5000)
    write_checkpoint({"state_dict": {"weight": weights}}, path)
    data = bytearray(path.read_bytes())
    data[data.index(weights.numpy().tobytes()) + 7000] ^= 64
    path.write_bytes(data)
    with pytest.raises(ValueError, match="no readable checkpoint"):
        read_checkpoint(path)


ORIGIN = {"recipe": "mlp", "n_components": 2, "sizes": {}}


@pytest.mark.parametrize(("change", "sentence"), [
    ({"state_dict": [1]}, "holds no weights"),
    ({"state_dict": {"vae.a": 1}}, "holds no weights"),
    ({"origin": "mlp"}, "does not say rightly how its model was made"),
    ({"origin": {"recipe": "mlp"}}, "does not say rightly how its model was made"),
    ({"origin": ORIGIN | {"seed": 1}}, "does not say rightly how its model was made"),
    ({"origin": ORIGIN | {"sizes": None}}, "does not say rightly how its model was made"),
    ({"origin": ORIGIN | {"recipe": "mpl"}}, "there is no recipe 'mpl'"),
])  # fmt: skip
def test_wrong_contents_get_one_clear_sentence(tmp_path, change, sentence):
    write_checkpoint(GOOD | {"origin": ORIGIN} | change, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=sentence):
        load_vae(tmp_path / "a.ckpt")


class Bomb:
    """Pickled, it would run code when it is loaded."""

    def __reduce__(self):
        return exec, ("raise SystemError('code ran')",)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path):
    torch.save({"state_dict": {}, "bomb": Bomb()}, tmp_path / "bomb.ckpt")
    with pytest.raises(ValueError, match="no readable checkpoint"):
        read_checkpoint(tmp_path / "bomb.ckpt")


def test_a_file_without_weights_is_no_checkpoint(tmp_path):
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(ValueError, match="holds no weights"):
        read_checkpoint(tmp_path / "list.ckpt")


def test_the_first_difference_is_named():
    here = {"a": torch.zeros(2), "b": torch.zeros(3)}
    check_fit({"a": torch.ones(2), "b": torch.ones(3)}, here)
    with pytest.raises(ValueError, match=r"'b' has shape \(4,\) in it and \(3,\) here"):
        check_fit({"a": torch.ones(2), "b": torch.ones(4)}, here)
    with pytest.raises(ValueError, match=r"'b' has shape none in it and \(3,\) here"):
        check_fit({"a": torch.ones(2)}, here)
    with pytest.raises(ValueError, match=r"'c' has shape \(1,\) in it and none here"):
        check_fit(here | {"c": torch.ones(1)}, here)


TINY = {"image_size": (1, 2, 2), "n_latent": 2, "encoder_hidden": (5,), "decoder_hidden": (5,)}


def test_a_model_comes_back_from_a_training_whose_objective_has_weights(tmp_path):
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, *terms, beta=1.0):
            return self.scale * miselbo(*terms, beta=beta)

    module = recipe_training("mlp", 2, TINY, objective=Scaled())
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    write_checkpoint(checkpoint, tmp_path / "a.ckpt")
    vae = load_vae(tmp_path / "a.ckpt")
    torch.testing.assert_close(vae.state_dict(), module.vae.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(("n_components", "sizes", "saved"), [
    (2, {"weights": np.array([0.25, 0.75])}, (0.25, 0.75)),
    (2, {"weights": torch.tensor([0.25, 0.75])}, (0.25, 0.75)),
    (2, {"weights": [np.float64(0.25), 0.75]}, (0.25, 0.75)),
    (np.int64(2), {"encoder_hidden": range(5, 6)}, (5,)),
])  # fmt: skip
def test_a_recipe_of_arrays_and_ranges_can_be_built_again(tmp_path, n_components, sizes, saved):
    module = recipe_training("mlp", n_components, TINY | sizes)
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    write_checkpoint(checkpoint, tmp_path / "a.ckpt")
    vae = load_vae(tmp_path / "a.ckpt")
    torch.testing.assert_close(vae.state_dict(), module.vae.state_dict(), rtol=0, atol=0)
    assert vae.n_components == 2
    assert module.origin["sizes"][next(iter(sizes))] == saved


@pytest.mark.parametrize("likelihood", [bernoulli, partial(bernoulli)])
def test_a_recipe_that_no_checkpoint_can_hold_is_refused_before_training(likelihood):
    with pytest.raises(ValueError, match="a checkpoint cannot hold likelihood = "):
        recipe_training("vanilla", 2, {"likelihood": likelihood})


def test_plain_values_stay_what_they_are():
    value = {"a": None, "b": True, "c": 1, "d": 0.5, "e": "text", "f": (1, ("x",))}
    assert plain(value) == value


def test_what_could_not_be_read_is_not_written(tmp_path):
    path = tmp_path / "last.ckpt"
    write_checkpoint(GOOD, path)
    with pytest.raises(ValueError, match="was not written, for it could not be read again"):
        write_checkpoint({"state_dict": {}, "likelihood": bernoulli}, path)
    assert read_checkpoint(path)["epoch"] == 4
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def origin(recipe="mlp", n_components=2, **sizes):
    return {"recipe": recipe, "n_components": n_components, "sizes": sizes}


@pytest.mark.parametrize(("saved", "here", "difference"), [
    (origin(weights=[0.5, 0.5]), origin(), r"weights is \(0.5, 0.5\) in it and None here"),
    (origin(), origin(weights=(0.1, 0.9)), r"weights is None in it and \(0.1, 0.9\) here"),
    (origin(), origin("vanilla"), "recipe is 'mlp' in it and 'vanilla' here"),
    (origin(n_components=3), origin(), "n_components is 3 in it and 2 here"),
    (origin(image_size=(1, 2, 8)), origin(image_size=(1, 4, 4)), r"image_size is \(1, 2, 8\) in"),
])  # fmt: skip
def test_the_first_difference_in_how_models_were_made_is_named(saved, here, difference):
    with pytest.raises(ValueError, match=f"of another model: {difference}"):
        check_origin(saved, here)


def test_models_made_alike_fit():
    check_origin(origin(), origin())
    check_origin(origin(n_latent=40, weights=[0.1, 0.9]), origin(weights=(0.1, 0.9)))
    check_origin(origin("iaf", n_hidden=300), origin("iaf"))
    check_origin(None, origin())
    check_origin(origin(), None)


def test_a_training_may_change_its_pace_and_nothing_else():
    began = {"dataset": "mnist", "batch_size": 100, "learning_rate": 1e-3, "patience": 100}
    check_settings(began, began | {"learning_rate": 1e-4, "patience": 5, "precision": "bf16-mixed"})
    check_settings({}, began)
    with pytest.raises(ValueError, match="dataset is 'mnist' in it and 'fashion_mnist' here"):
        check_settings(began, began | {"dataset": "fashion_mnist"})


def test_weights_that_no_parameter_shows_are_compared_on_load():
    module = recipe_training("mlp", 2, TINY | {"weights": (0.1, 0.9)})
    checkpoint = {"state_dict": module.state_dict(), "epoch": 3, "global_step": 40}
    module.on_save_checkpoint(checkpoint)
    module.on_load_checkpoint(checkpoint)
    with pytest.raises(ValueError, match=r"weights is \(0.1, 0.9\) in it and None here"):
        recipe_training("mlp", 2, TINY).on_load_checkpoint(checkpoint)
    assert module.trained.items() >= {"epochs": 4, "steps": 40, "learning_rate": 5e-4}.items()
    del checkpoint["origin"]
    recipe_training("mlp", 2, TINY).on_load_checkpoint(checkpoint)


BEST = {"dirpath": "/runs/mine", "best_model_path": "/runs/mine/best.ckpt"}


def test_files_that_are_no_checkpoints_of_the_run_are_left_out(tmp_path):
    """Lightning would remove what the checkpoint calls the best, once there is a better one."""
    bad = {name: 1.0 for name in ("/runs/mine/../victim.ckpt", "/runs/mine/notes.txt")}
    state = BEST | {"kth_best_model_path": "/runs/mine/notes.txt", "best_k_models": bad}
    state |= {"last_model_path": "/runs/mine/../victim.ckpt"}
    found = at_home({"callbacks": {"best": state, "else": {"patience": 3}}}, tmp_path / "x.ckpt")
    assert found["callbacks"]["else"] == {"patience": 3}
    assert found["callbacks"]["best"] == BEST | {
        "kth_best_model_path": "", "last_model_path": "", "best_k_models": {}
    }  # fmt: skip


def test_states_without_a_folder_are_taken_as_they_are(tmp_path):
    states = {"best": {"best_model_path": "a.ckpt"}, "list": [1]}
    assert at_home({"callbacks": states}, tmp_path / "a.ckpt")["callbacks"] == states


@pytest.mark.parametrize(("name", "value"), [
    ("settings", [1]),
    ("settings", {"fit_seed": "abc"}),
    ("settings", {"fit_seed": -5}),
    ("random", {}),
    ("random", {"cpu": torch.zeros(3)}),
    ("callbacks", [1]),
    ("optimizer_states", {}),
    ("epoch", "a"),
    ("global_step", -1),
])  # fmt: skip
def test_entries_of_another_kind_get_one_clear_sentence(tmp_path, name, value):
    torch.save(GOOD | {name: value}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=f"x.ckpt was changed or is damaged.*{name!r} is of anot"):
        read_checkpoint(tmp_path / "x.ckpt")
