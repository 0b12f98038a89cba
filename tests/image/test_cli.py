"""The command line, and twenty steps of every recipe on real images."""

import json
import math
import os
import shlex
import signal
import sys
from types import SimpleNamespace

import lightning as L
import pytest
import torch
import yaml
from filelock import FileLock
from idx_files import write_idx
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.utilities.exceptions import SIGTERMException
from tiny_images import TINY_RECIPES

from scmixvi.image import ImageVAE, __main__
from scmixvi.image.__main__ import CONFIGS, main
from scmixvi.image.checkpoints import (
    finished_epochs,
    load_vae,
    read_checkpoint,
    write_checkpoint,
)
from scmixvi.image.data import ImageDataModule
from scmixvi.image.lightning import recipe_training
from scmixvi.image.recipes import RECIPES
from scmixvi.image.report import run_record


@pytest.fixture
def small_mnist(tmp_path, monkeypatch):
    """A folder with 60 random images and their split, and the working directory in it."""
    write_idx(tmp_path / "MNIST" / "raw", gzipped=True, n_train=60, n_test=10)
    monkeypatch.setenv("SCMIXVI_DATA_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["scmixvi.image", *words])
    return main()


WARMUP = "--model.warmup_epochs=10"
SHORT = (
    "--model.sizes",
    json.dumps(TINY_RECIPES["mlp"]),
    "--data.batch_size=10",
    "--model.n_test_samples=7",
    "--report.n_images=4",
    "--trainer.enable_progress_bar=false",
    "--trainer.accelerator=cpu",
)


def test_a_training_takes_2000_epochs_unless_told_otherwise(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "fit", "--print_config")
    assert "max_epochs: 2000" in capsys.readouterr().out


def test_fit_ends_with_a_test_and_can_be_tested_again(small_mnist, monkeypatch):
    base = ("--config", "configs/mlp_mnist.yaml", "--model.n_components", "2", *SHORT)
    run(monkeypatch, "fit", *base, "--trainer.max_epochs=2")
    folder = small_mnist / "runs" / "mlp_mnist_S2_seed0"
    kept = {path.name for path in folder.iterdir()} - {"training.lock"}  # not left everywhere
    assert kept == {"best.ckpt", "last.ckpt", "logs", "test.json", "test.png"}
    record = json.loads((folder / "test.json").read_text())
    expected = {"recipe": "mlp", "n_components": 2, "dataset": "mnist", "seed": 0}
    assert expected.items() <= record.items()
    assert record["n_test_images"] == 10
    assert record["fit_epochs"] == 2
    best = torch.load(folder / "best.ckpt", weights_only=True)
    assert record["epochs"] == best["epoch"] + 1
    assert record["steps"] == 5 * record["epochs"]
    assert math.isfinite(record["test_nll_nats"])

    other = ("--model.learning_rate=0.5", "--model.path_gradient=true", "--seed_everything=4")
    other += ("--early_stopping.patience=3",)
    cli = run(monkeypatch, "test", *base, *other, "--ckpt_path", str(folder / "best.ckpt"))
    assert json.loads((folder / "test.json").read_text()) == record
    again = json.loads((folder / "test_best.json").read_text())
    assert (folder / "test_best.png").is_file()
    assert again["test_nll_nats"] == pytest.approx(record["test_nll_nats"], abs=3.0)
    assert again["fit_seconds"]["clock"] > 0
    own = {"batch_size": 10, "patience": 100, "precision": "32-true", "compile": None}
    assert own.items() <= record.items()
    assert record["test_nll_pooled_nats"] <= record["test_nll_nats"], "uniform weights: Jensen"
    about = ("recipe", "sizes", "objective", "estimator", "learning_rate", "path_gradient", *own)
    for key in (*about, "warmup_epochs", "epochs", "steps"):
        assert again[key] == record[key], key
    assert (again["seed"], again["fit_seed"]) == (4, 0)
    assert record["learning_rate"] == 1e-3
    assert record["path_gradient"] is False
    torch.testing.assert_close(
        load_vae(folder / "best.ckpt").state_dict(), cli.model.vae.state_dict(), rtol=0, atol=0
    )


def test_a_run_resumes_from_its_last_checkpoint(small_mnist, monkeypatch):
    base = ("fit", "--config", "mlp_mnist.yaml", *SHORT)
    whole = run(monkeypatch, *base, "--trainer.max_epochs=3", "--trainer.default_root_dir=whole")
    run(monkeypatch, *base, "--trainer.max_epochs=1", "--trainer.default_root_dir=parts")
    resumed = run(
        monkeypatch,
        *base,
        "--trainer.max_epochs=3",
        "--trainer.default_root_dir=parts",
        "--ckpt_path=parts/last.ckpt",
    )
    assert resumed.trainer.global_step == whole.trainer.global_step == 15
    last = [torch.load(f"{name}/last.ckpt", weights_only=True) for name in ("whole", "parts")]
    torch.testing.assert_close(last[0]["state_dict"], last[1]["state_dict"], rtol=0, atol=0)


def test_a_resume_goes_on_beside_its_checkpoint(small_mnist, monkeypatch, capsys):
    base = ("fit", "--config", "mlp_mnist.yaml", *SHORT, "--trainer.max_epochs")
    run(monkeypatch, *base, "1", "--seed_everything=3")
    run(monkeypatch, *base, "1")
    mine, other = (small_mnist / "runs" / f"mlp_mnist_S1_seed{seed}" for seed in (3, 0))
    before = {path: path.read_bytes() for path in other.iterdir() if path.is_file()}
    cli = run(monkeypatch, *base, "2", f"--ckpt_path={mine}/last.ckpt")
    assert cli.trainer.current_epoch == 2
    assert torch.load(mine / "last.ckpt", weights_only=True)["epoch"] == 1
    record = json.loads((mine / "test.json").read_text())
    assert (record["fit_epochs"], record["seed"], record["fit_seed"]) == (2, 3, 3)

    into = f"--trainer.default_root_dir={other}"
    with pytest.raises(SystemExit):
        run(monkeypatch, *base, "3", f"--ckpt_path={mine}/last.ckpt", into)
    assert f"{other / 'last.ckpt'} is of an earlier training" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in other.iterdir() if path.is_file()}

    assert run(monkeypatch, *base, "2", "--ckpt_path=last").trainer.current_epoch == 2
    assert torch.load(other / "last.ckpt", weights_only=True)["epoch"] == 1

    named = f"--trainer.default_root_dir={mine}"
    run(monkeypatch, *base, "3", "--ckpt_path=last", named)
    record = json.loads((mine / "test.json").read_text())
    assert (record["fit_epochs"], record["fit_seed"]) == (3, 3), "the last one keeps its seed"


@pytest.mark.parametrize(("words", "sentence"), [
    (["--config", "configs/mlp_minst.yaml"], "no configuration configs/mlp_minst.yaml; shipped"),
    (["--model.recipe=mpl"], "'mpl'; the recipes are mlp, vanilla"),
    (["--model.sizes", '{"n_latnt": 3}'], "'mlp' has no size 'n_latnt': known are image_size"),
    (["--model.recipe=iaf", "--model.sizes", '{"T": 3}'], "'iaf' has no size 'T': known are n_le"),
    (["--model.n_components=0"], r"n_components (S) must be a whole number of at least 1"),
    (["--model.n_importance_samples=0"], r"n_importance_samples (L) must be a whole number"),
    (["--model.n_test_samples=0"], r"n_test_samples (L) must be a whole number of at least 1"),
    (["--model.sizes", '{"image_size": [1, 2, 2]}'], "(C, H, W) = (1, 2, 2), but those of mnist"),
    (["--model.recipe=cifar_vanilla"], "images (C, H, W) = (3, 32, 32), but those of mnist are (1"),
    (["--compile=fast"], "compile must be one of default, reduce-overhead, max-autotune, max"),
    (["--seed_everything=-1"], "seed_everything must be 0 to 2^32 - 1, but it is -1"),
    (["--data.dataset=svhn"], "unknown data set 'svhn': known are cifar10, fashion_mnist, mnist"),
    (["--data.dataset=cifar10"], "does not hold CIFAR10: download CIFAR10 and put it there as"),
    (["--data.data_dir=nowhere"], "the data folder nowhere does not exist"),
    (["--data.batch_size=0"], "batch_size must be a whole number of at least 1"),
    (["--ckpt_path=gone.ckpt"], "there is no checkpoint gone.ckpt"),
    (["--ckpt_path=text.ckpt"], "text.ckpt is no readable checkpoint"),
    (["--model.n_encoders=3"], "--model.n_encoders"),
    (["--config", "my/mlp_mnist.yaml"], "no configuration my/mlp_mnist.yaml; shipped with scmixvi"),
    (["--trainer.precision=bf16-true"], "leaves weights of a type that the images do not have"),
    (["--trainer.enable_checkpointing=false"], "Trainer was configured with `enable_checkpointing"),
    (["--early_stopping.patience=-1"], "patience must be a whole number of at least 0, but it is"),
    (["--report.n_images=-3"], "n_images must be a whole number of at least 0, but it is -3"),
    (["--model.sizes", '{"n_latent": 2.5}'], "n_latent (D) must be whole numbers of at least 1"),
    (["--model.sizes", '{"image_size": 5}'], "three positive whole numbers, but it is 5"),
    (["--model.sizes", '{"image_size": [1, 28, "28"]}'], "but it is (1, 28, '28')"),
    (["--trainer.limit_val_batches=0"], "limit_val_batches must not be 0: early stopping, best.ck"),
    (["--trainer.accumulate_grad_batches=0"], "accumulate_grad_batches must be at least 1, but it"),
    (["--trainer.accumulate_grad_batches=-1"], "accumulate_grad_batches must be at least 1, but i"),
    (["--trainer.check_val_every_n_epoch=0"], "check_val_every_n_epoch must be at least 1, but it"),
    (["--trainer.gradient_clip_val=-1"], "gradient_clip_val must be 0 or more (0 is no clipping)"),
    (["--trainer.gradient_clip_val=.nan"], "gradient_clip_val must be 0 or more (0 is no clip"),
    (["--trainer.val_check_interval=0"], "val_check_interval must be above 0, a share of an epoch"),
    (["--data.batch_size=10", "--trainer.val_check_interval=9"], "9, but an epoch has 5 batches"),
    (["--trainer.limit_train_batches=1.0e-3"], "0.001, of 1 batches less than one: pass a number"),
    (["--trainer.limit_test_batches=1.0e-3"], "test_batches is 0.001, of 1 batches less than one"),
    (["--model.sizes", '{"encoder_hidden": [], "encoder_sharing": "trunk"}'], "encoder_hidden mus"),
    (["--report.folder=text.ckpt"], "text.ckpt cannot be made or written to"),
    (["--early_stopping.min_delta=.nan"], "min_delta must be finite and at least 0, but it is nan"),
    (["--trainer.accelerator=cpu", "--trainer.devices=-3"], "should be an int > 0"),
])  # fmt: skip
def test_a_wrong_word_ends_the_program_with_one_sentence(
    small_mnist, monkeypatch, capsys, words, sentence
):
    (small_mnist / "text.ckpt").write_text("not a checkpoint")
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "fit", *words)
    assert stopped.value.code == 2
    assert sentence in capsys.readouterr().err
    assert not (small_mnist / "runs").exists()


@pytest.mark.filterwarnings("ignore")
def test_validation_may_go_by_the_clock(small_mnist, monkeypatch):
    words = ("--trainer.max_epochs=1", "--trainer.val_check_interval=00:01:00:00")
    run(monkeypatch, "fit", *SHORT, *words, "--trainer.default_root_dir=timed")
    assert (small_mnist / "timed" / "test.json").exists()


@pytest.mark.parametrize(("words", "n"), [(["devices=2"], 2), (["num_nodes=3"], 3)])
def test_several_devices_are_refused_before_any_process_starts(
    small_mnist, monkeypatch, capsys, words, n
):
    began = "lightning.pytorch.trainer.call._call_and_handle_interrupt"
    monkeypatch.setattr(began, lambda *_, **__: pytest.fail("the training began"))
    with pytest.raises(SystemExit):
        run(monkeypatch, "fit", *[f"--trainer.{word}" for word in ["accelerator=cpu", *words]])
    assert f"these batches feed one device, not {n}" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*is a subset of cifar10.*")
def test_grey_values_are_not_for_decoders_of_binary_pixels(data_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--data.dataset=cifar10", f"--data.data_dir={data_dir}", "--model.recipe=mlp"]
    with pytest.raises(SystemExit):
        run(monkeypatch, "fit", *words, '--model.sizes={"image_size": [3, 32, 32]}')
    assert "cifar10 has grey values, to which this model's decoder" in capsys.readouterr().err


def test_a_test_of_untrained_weights_is_refused(small_mnist, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "test", "--config", "configs/mlp_mnist.yaml")
    assert "say which weights to test: --ckpt_path" in capsys.readouterr().err


def test_an_earlier_training_is_not_overwritten(small_mnist, monkeypatch, capsys):
    base = ("fit", "--config", "mlp_mnist.yaml", *SHORT, "--trainer.max_epochs=1")
    run(monkeypatch, *base)
    last = small_mnist / "runs" / "mlp_mnist_S1_seed0" / "last.ckpt"
    before = last.read_bytes()
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, *base, "--model.learning_rate=0.1")
    assert stopped.value.code == 2
    sentence = capsys.readouterr().err
    assert "last.ckpt is of an earlier training: go on with it by --ckpt_path runs" in sentence
    assert "--trainer.default_root_dir" in sentence
    assert last.read_bytes() == before
    run(monkeypatch, *base, "--model.learning_rate=0.1", "--trainer.default_root_dir=another")


@pytest.mark.parametrize(("words", "sentence"), [
    ([], "of another training: warmup_epochs is 10 in it and 100 here"),
    ([WARMUP, "--data.batch_size=20"], "batch_size is 10 in it and 20 here"),
    ([WARMUP, "--trainer.accumulate_grad_batches=2"], "grad_batches is 1 in it and 2 here"),
    ([WARMUP, "--trainer.limit_train_batches=3"], "limit_train_batches is 1.0 in it and 3 here"),
    ([WARMUP, "--trainer.gradient_clip_val=1"], "gradient_clip_val is None in it and 1 here"),
])  # fmt: skip
def test_a_resume_by_other_settings_is_refused(small_mnist, monkeypatch, capsys, words, sentence):
    run(monkeypatch, "fit", "--config=mlp_mnist.yaml", *SHORT, "--trainer.max_epochs=1")
    folder = small_mnist / "runs" / "mlp_mnist_S1_seed0"
    before = sorted(folder.rglob("*"))
    with pytest.raises(SystemExit):
        run(monkeypatch, "fit", *SHORT, *words, f"--ckpt_path={folder}/last.ckpt")
    assert sentence in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("words", [
    ("--trainer.max_steps=3",),
    ("--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=3"),
])  # fmt: skip
def test_without_a_validation_the_last_weights_are_kept_and_tested(small_mnist, monkeypatch, words):
    base = ("fit", "--config=mlp_mnist.yaml", *SHORT)
    first = run(monkeypatch, *base, *words)
    folder = small_mnist / "runs" / "mlp_mnist_S1_seed0"
    assert json.loads((folder / "test.json").read_text())["steps"] == first.trainer.global_step
    more = run(monkeypatch, *base, "--trainer.max_steps=15", f"--ckpt_path={folder}/last.ckpt")
    assert more.trainer.global_step == 15
    assert (folder / "best.ckpt").is_file()


def test_a_folder_is_of_one_training_at_a_time(small_mnist, monkeypatch, capsys):
    folder = small_mnist / "shared"
    folder.mkdir()
    words = ("fit", "--config=mlp_mnist.yaml", *SHORT, "--trainer.max_epochs=1")
    into = f"--trainer.default_root_dir={folder}"
    with FileLock(folder / "training.lock"):
        for place in (into, f"--best_checkpoint.folder={folder}"):
            with pytest.raises(SystemExit) as stopped:
                run(monkeypatch, *words, place)
            assert stopped.value.code == 2
            assert f"another training is running in {folder}" in capsys.readouterr().err
        assert {path.name for path in folder.iterdir()} <= {"training.lock"}
    run(monkeypatch, *words, into)
    FileLock(folder / "training.lock").acquire(timeout=0).__exit__(None, None, None)


def test_a_folder_that_cannot_be_made_ends_with_one_sentence(small_mnist, monkeypatch, capsys):
    (small_mnist / "file").write_text("no folder")
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "fit", *SHORT, "--trainer.default_root_dir=file/below")
    assert stopped.value.code == 2
    sentence = f"the folder {small_mnist / 'file' / 'below'} cannot be made or written to"
    assert sentence in capsys.readouterr().err


def test_what_comes_after_the_last_validation_is_kept(small_mnist, monkeypatch):
    """An epoch more than were validated; going on from it is as never having stopped."""
    words = ("fit", "--config", "mlp_mnist.yaml", *SHORT, "--trainer.check_val_every_n_epoch=2")
    run(monkeypatch, *words, "--trainer.max_epochs=4", "--trainer.default_root_dir=whole")
    run(monkeypatch, *words, "--trainer.max_epochs=3", "--trainer.default_root_dir=parts")
    kept = read_checkpoint("parts/last.ckpt")
    assert (finished_epochs(kept), kept["global_step"]) == (3, 15)
    record = json.loads((small_mnist / "parts" / "test.json").read_text())
    assert (record["epochs"], record["fit_epochs"]) == (2, 3)
    spent = next(s for key, s in kept["callbacks"].items() if "TestReport" in key)
    assert 0 < spent["clock"] <= record["fit_seconds"]["clock"]
    run(monkeypatch, *words, "--trainer.max_epochs=4", "--ckpt_path=parts/last.ckpt")
    last = [read_checkpoint(f"{name}/last.ckpt")["state_dict"] for name in ("whole", "parts")]
    torch.testing.assert_close(last[0], last[1], rtol=0, atol=0)


def test_a_best_epoch_that_is_gone_is_not_waited_for(small_mnist, monkeypatch, capsys):
    words = ("fit", "--config", "mlp_mnist.yaml", *SHORT, "--trainer.default_root_dir=runs")
    run(monkeypatch, *words, "--trainer.max_epochs=1")
    (small_mnist / "runs" / "best.ckpt").unlink()
    last = read_checkpoint("runs/last.ckpt")
    for state in last["callbacks"].values():
        for name in {"best_model_score", "kth_value"} & set(state):
            state[name] = torch.tensor(0.0)  # nothing gets better
    write_checkpoint(last, "runs/last.ckpt")
    run(monkeypatch, *words, "--trainer.max_epochs=2", "--ckpt_path=runs/last.ckpt")
    assert "best.ckpt is gone: the last weights are tested" in capsys.readouterr().out
    assert json.loads((small_mnist / "runs" / "test.json").read_text())["epochs"] == 2


def test_a_best_epoch_elsewhere_is_not_forgotten(small_mnist, monkeypatch, capsys):
    """A configuration that a run has saved names the folder in which it was."""
    words = (*SHORT, "--trainer.max_epochs=2")
    run(monkeypatch, "fit", "--config=mlp_mnist.yaml", *SHORT, "--trainer.max_epochs=1")
    (small_mnist / "runs").rename(small_mnist / "old")
    folder = small_mnist / "old" / "mlp_mnist_S1_seed0"
    saved = f"--config={next(folder.rglob('config.yaml'))}"
    with pytest.raises(SystemExit):
        run(monkeypatch, "fit", saved, *words, f"--ckpt_path={folder}/last.ckpt")
    names = ("trainer.default_root_dir", "best_checkpoint.folder", "last_checkpoint.folder")
    said = ", ".join(f"--{name}={folder}" for name in names)
    assert f"would be forgotten in runs/mlp_mnist_S1_seed0: pass {said}" in capsys.readouterr().err
    beside = [f"--{name}={folder}" for name in names]
    cli = run(monkeypatch, "fit", saved, *words, f"--ckpt_path={folder}/last.ckpt", *beside)
    assert cli.trainer.current_epoch == 2
    assert not list((small_mnist / "runs").rglob("*.ckpt"))


def test_other_tests_leave_the_report_of_a_whole_one(small_mnist, monkeypatch, capsys):
    run(monkeypatch, "fit", "--config=mlp_mnist.yaml", *SHORT, "--trainer.max_epochs=1")
    folder = small_mnist / "runs" / "mlp_mnist_S1_seed0"
    words = ("test", "--config=mlp_mnist.yaml", *SHORT, f"--ckpt_path={folder}/best.ckpt")
    run(monkeypatch, *words)
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    write_idx(small_mnist / "FashionMNIST" / "raw", gzipped=False, n_train=20, n_test=10)
    run(monkeypatch, *words, "--data.dataset=fashion_mnist")
    record = json.loads((folder / "test_best_on_fashion_mnist.json").read_text())
    assert (record["dataset"], record["fit_dataset"]) == ("fashion_mnist", "mnist")
    for path in folder.glob("*_on_*"):
        path.unlink()
    run(monkeypatch, *words, "--trainer.fast_dev_run=true")
    assert before == {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(SystemExit):
        run(monkeypatch, *words, "--trainer.limit_test_batches=0")
    assert "limit_test_batches must not be 0: there would be no image" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(monkeypatch, *words, f"--report.folder={folder}/best.ckpt")
    assert "best.ckpt cannot be made or written to" in capsys.readouterr().err


def test_a_fast_run_of_a_batch_leaves_nothing(small_mnist, monkeypatch):
    cli = run(monkeypatch, "fit", "--config=mlp_mnist.yaml", *SHORT, "--trainer.fast_dev_run=true")
    assert cli.trainer.global_step == 1
    assert not (small_mnist / "runs").exists()


def test_callbacks_of_the_user_stand_beside_those_of_the_command(small_mnist, monkeypatch, capsys):
    callbacks = [
        {"class_path": "TQDMProgressBar"},
        {"class_path": "ModelCheckpoint", "init_args": {"dirpath": "own", "monitor": "train_loss"}},
    ]
    short = [word for word in SHORT if "progress_bar" not in word]
    words = ("--trainer.callbacks", json.dumps(callbacks), "--trainer.max_epochs=1")
    cli = run(monkeypatch, "fit", "--config=configs/mlp_mnist.yaml", *short, *words)
    assert cli.trainer.ckpt_path == str(small_mnist / "runs/mlp_mnist_S1_seed0/best.ckpt")
    assert isinstance(cli.trainer.progress_bar_callback, TQDMProgressBar)
    assert f"The configuration is {CONFIGS / 'mlp_mnist.yaml'}." in capsys.readouterr().err


def test_a_test_of_another_model_ends_with_one_sentence(small_mnist, monkeypatch, capsys):
    base = ("--config", "configs/mlp_mnist.yaml", *SHORT)
    run(monkeypatch, "fit", *base, "--model.n_components=2", "--trainer.max_epochs=1")
    with pytest.raises(SystemExit):
        run(monkeypatch, "test", *base, "--ckpt_path=runs/mlp_mnist_S2_seed0/last.ckpt")
    assert "n_components is 2 in it and 1 here" in capsys.readouterr().err


def test_a_checkpoint_made_by_hand_cannot_be_rebuilt(tmp_path):
    write_checkpoint({"state_dict": {}}, tmp_path / "own.ckpt")
    with pytest.raises(ValueError, match="does not say which recipe made its model"):
        load_vae(tmp_path / "own.ckpt")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_names_what_exists(path):
    config = yaml.safe_load(path.read_text())
    assert config["model"]["recipe"] in RECIPES
    reading = recipe_training(**config["model"])
    assert reading.n_test_samples == (100 if config["data"]["dataset"] == "cifar10" else 5000)
    assert reading.learning_rate == (1e-3 if path.stem == "mlp_mnist" else 5e-4)


def test_configurations_cover_tables_1_and_2():
    names = {path.stem for path in CONFIGS.glob("*.yaml")}
    table_1 = {f"{m}_mnist" for m in ("vanilla", "hierarchical", "iaf", "vamp", "composite")}
    table_2 = {"vanilla_fashion_mnist", "composite_fashion_mnist", "vanilla_cifar10"}
    assert table_1 | table_2 | {"mlp_mnist"} <= names


class Losses(L.Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        self.seen.append(float(outputs["loss"]))


@pytest.fixture(scope="module")
def real(data_dir):
    """Data modules by name, each read once."""
    modules = {}

    def get(dataset):
        if dataset not in modules:
            modules[dataset] = ImageDataModule(dataset, str(data_dir), batch_size=16)
        return modules[dataset]

    return get


@pytest.mark.filterwarnings("ignore:.*is a subset of cifar10.*")
@pytest.mark.parametrize("recipe", RECIPES)
def test_twenty_steps_on_real_images(real, tmp_path, recipe):
    dataset = {"cifar_vanilla": "cifar10", "vanilla": "fashion_mnist"}.get(recipe, "mnist")
    module = recipe_training(recipe, 2, TINY_RECIPES[recipe], warmup_epochs=0, learning_rate=5e-3)
    losses = Losses()
    trainer = L.Trainer(
        max_epochs=1,
        limit_train_batches=20,
        accelerator="cpu",
        callbacks=[losses],
        limit_val_batches=2,
        limit_test_batches=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    module.n_test_samples = 3
    data = real(dataset)
    trainer.fit(module, data)
    assert len(losses.seen) == 20
    assert sum(losses.seen[-5:]) / 5 < losses.seen[0]
    assert math.isfinite(float(trainer.callback_metrics["val_bound"]))
    trainer.test(module, data, verbose=False)
    assert module.test_nll.shape == (16,)
    assert module.test_nll.isfinite().all()


def test_the_split_of_mnist(real):
    data = real("mnist")
    data.setup()
    sizes = [len(loader().pixels) for loader in (data.train_dataloader, data.val_dataloader)]
    assert sizes == [50_000, 10_000]
    assert len(data.test_dataloader().pixels) == 10_000
    assert [len(data.train_labels), len(data.val_labels)] == sizes
    assert set(data.test_dataloader().pixels.unique().tolist()) == {0.0, 1.0}


def test_a_resume_has_epochs_to_train(small_mnist, monkeypatch, capsys):
    base = ("fit", "--config=mlp_mnist.yaml", *SHORT)
    run(monkeypatch, *base, "--trainer.max_epochs=3")
    last = small_mnist / "runs" / "mlp_mnist_S1_seed0" / "last.ckpt"
    with pytest.raises(SystemExit):
        run(monkeypatch, *base, "--trainer.max_epochs=2", f"--ckpt_path={last}")
    assert "has 3 epochs behind it, and trainer.max_epochs is 2" in capsys.readouterr().err
    run(monkeypatch, *base, "--trainer.max_epochs=3", f"--ckpt_path={last}")
    assert finished_epochs(read_checkpoint(last)) == 3, "none was left to train"


def test_epochs_are_counted_whenever_the_checkpoint_is_written():
    """At the end of the third epoch, in the third, and after three; and of who knows what."""

    def written(epoch, ready, completed, is_last_batch):
        progress = {"current": {"ready": ready, "completed": completed}}
        batches = {"is_last_batch": is_last_batch}
        loop = {"epoch_progress": progress, "epoch_loop.batch_progress": batches}
        return {"epoch": epoch, "loops": {"fit_loop": loop}}

    assert finished_epochs(written(2, 3, 2, True)) == 3
    assert finished_epochs(written(2, 3, 2, False)) == 2
    assert finished_epochs(written(3, 3, 3, True)) == 3
    assert finished_epochs({"epoch": 2, "loops": {"fit_loop": None}}) == 2


def test_a_checkpoint_names_nothing_to_import(small_mnist, monkeypatch):
    """Lightning takes `hyper_parameters` for arguments, and an objective is found by its name."""
    (small_mnist / "from_a_stranger.py").write_text(
        "from pathlib import Path\nPath('imported').touch()\nobjective = None\n"
    )
    monkeypatch.syspath_prepend(small_mnist)
    base = ("--config=mlp_mnist.yaml", *SHORT)
    run(monkeypatch, "fit", *base, "--trainer.max_epochs=1")
    path = small_mnist / "runs" / "mlp_mnist_S1_seed0" / "last.ckpt"
    checkpoint = read_checkpoint(path)
    checkpoint["hyper_parameters"] = {"objective": "from_a_stranger.objective"}
    write_checkpoint(checkpoint, path)
    run(monkeypatch, "test", *base, f"--ckpt_path={path}")
    assert not (small_mnist / "imported").exists()


def test_what_is_told_to_end_says_so(monkeypatch):
    """A shell, make or a scheduler must not take it for a training that has ended well."""

    def told_to_end(args):
        raise SIGTERMException

    monkeypatch.setattr(__main__, "_run", told_to_end)
    with pytest.raises(SystemExit) as ended:
        __main__.main([])
    assert ended.value.code == 143


@pytest.mark.filterwarnings("ignore")
def test_a_test_that_is_told_to_end_does_not_wait_for_its_batch(small_mnist, monkeypatch):
    """A batch of a test may take minutes; what happens to signals afterwards is as before."""
    base = ("fit", *SHORT, "--trainer.max_epochs=1", "--trainer.default_root_dir=ended")
    before = signal.getsignal(signal.SIGTERM)

    def told_to_end(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the batch went on")

    with monkeypatch.context() as patched:
        patched.setattr(ImageVAE, "nll_estimates", told_to_end)
        tested = ("test", *SHORT, "--ckpt_path=ended/best.ckpt")
        for words in (base, tested):
            with pytest.raises(SystemExit) as ended:
                run(patched, *words)
            assert ended.value.code == 143
            assert signal.getsignal(signal.SIGTERM) is before
    assert not list((small_mnist / "ended").glob("test*"))


def test_the_command_can_be_given_again(monkeypatch):
    sizes = "--model.sizes={n_latent: 3, encoder_hidden: [16]}"
    monkeypatch.setattr("sys.argv", ["x", "fit", sizes])
    assert shlex.split(run_record()["command"])[-2:] == ["fit", sizes]


def test_the_command_of_a_script_and_of_a_module(monkeypatch):
    monkeypatch.setattr("sys.argv", ["work/train.py", "--seed", "1"])
    for spec, command in (
        (None, "python train.py --seed 1"),
        (SimpleNamespace(name="scmixvi.image.__main__"), "python -m scmixvi.image --seed 1"),
    ):
        monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
        assert run_record()["command"] == command
