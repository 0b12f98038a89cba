"""The image experiments at tiny sizes: what is trained, what is fixed, and that a run resumes."""


import pytest
import torch
from idx_files import write_idx

from scmixvi.experiments import image_training
from scmixvi.experiments.image_training import Deadline, Models, OutOfTime, Scheme
from scmixvi.image.lightning import recipe_training

TINY = {"n_latent": 3, "encoder_hidden": (8,), "decoder_hidden": (8,)}


@pytest.fixture
def small_data(tmp_path, monkeypatch):
    """MNIST and Fashion-MNIST of 60 random images each, 50 of which are trained on."""
    for name in ("MNIST", "FashionMNIST"):
        write_idx(tmp_path / name / "raw", gzipped=False, n_train=240, n_test=40)
    monkeypatch.setenv("SCMIXVI_DATA_DIR", str(tmp_path))
    return tmp_path


def models(folder, minutes=None, epochs=3, **changes):
    words = ["--result", str(folder / "x.json"), "--samples", "7", "--seed", "3"]
    options = image_training.parser("An experiment.", folder).parse_args(words)
    scheme = Scheme(epochs=epochs, warmup_epochs=1, **changes)
    return Models("mnist", options, scheme, Deadline(minutes))


def make():
    return recipe_training("mlp", 2, TINY, warmup_epochs=1)


def weights(vae):
    return {key: value.clone() for key, value in vae.state_dict().items()}


class After:
    """A deadline that passes once it has been asked so many times."""

    def __init__(self, n):
        self.n = n

    @property
    def passed(self):
        self.n -= 1
        return self.n < 0

    def check(self):
        if self.passed:
            raise OutOfTime


def test_training_and_test_go_on_as_if_never_stopped(small_data, monkeypatch):
    monkeypatch.setattr(image_training, "TEST_BATCH", 10)
    whole, parts = models(small_data / "whole"), models(small_data / "parts")
    vae, record = whole.trained("a", make)
    expected = whole.nll("a", vae)
    parts.deadline = After(2)
    with pytest.raises(OutOfTime):
        parts.trained("a", make)
    assert not (parts.folder / "a" / "trained.json").exists()
    kept = torch.load(parts.folder / "a" / "last.ckpt", weights_only=True)
    assert kept["epoch"] == 1, "two of three epochs"
    parts.deadline = Deadline()
    resumed, again = parts.trained("a", make)
    torch.testing.assert_close(weights(resumed), weights(vae), rtol=0, atol=0)
    assert again == record
    assert record["epochs"] == 3

    parts.deadline = After(2)
    with pytest.raises(OutOfTime):
        parts.nll("a", resumed)
    parts.deadline = Deadline()
    torch.rand(5)
    assert parts.nll("a", resumed) == expected
    assert expected["n_test_images"] == 40
    assert expected["n_test_samples"] == 7
