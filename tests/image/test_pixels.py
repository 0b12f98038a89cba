"""Reading, splitting, binarising and batching of pixels."""

import numpy as np
import pytest
import torch
from idx_files import grey, write_idx

from scmixvi.image.pixels import (
    ImageBatches,
    binarise_once,
    find_data,
    load_images,
)


@pytest.mark.parametrize("gzipped", [True, False])
@pytest.mark.parametrize(
    ("dataset", "name"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")]
)
def test_idx_files_are_read_plain_or_gzipped_and_the_folder_is_left_alone(
    tmp_path, dataset, name, gzipped
):
    arrays = write_idx(tmp_path / name / "raw", gzipped)
    before = sorted(tmp_path.rglob("*"))
    images = load_images(dataset, tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    np.testing.assert_array_equal(images.train_pixels[:, 0].numpy(), arrays["train"])
    np.testing.assert_array_equal(images.test_pixels[:, 0].numpy(), arrays["t10k"])
    assert images.train_labels.tolist() == [i % 10 for i in range(12)]
    assert images.train_pixels.dtype == torch.uint8
    assert images.name == dataset


def test_a_cifar_subset_is_named_as_one(tmp_path):
    (tmp_path / "CIFAR10").mkdir()
    train, test = grey(7, 32, 3, seed=1), grey(3, 32, 3, seed=2)
    np.savez(
        tmp_path / "CIFAR10" / "cifar10_subset.npz",
        train_x=train.numpy(),
        train_y=np.arange(7, dtype=np.uint8),
        test_x=test.numpy(),
        test_y=np.arange(3, dtype=np.uint8),
    )
    with pytest.warns(UserWarning, match=r"subset of cifar10 \(7 training and 3 test"):
        images = load_images("cifar10", tmp_path)
    assert images.name == "cifar10_subset"
    assert torch.equal(images.train_pixels, train)
    assert images.test_labels.tolist() == [0, 1, 2]


def test_the_environment_names_the_folder(tmp_path, monkeypatch):
    write_idx(tmp_path / "MNIST" / "raw", gzipped=True)
    monkeypatch.setenv("SCMIXVI_DATA_DIR", str(tmp_path))
    assert find_data("mnist") == tmp_path


def test_missing_data_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.delenv("SCMIXVI_DATA_DIR", raising=False)
    with pytest.raises(FileNotFoundError, match="set the environment variable SCMIXVI_DATA_DIR"):
        load_images("mnist")
    with pytest.raises(FileNotFoundError, match="does not exist: create it, then download MNIST"):
        load_images("mnist", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"does not hold FashionMNIST: download .* put it"):
        load_images("fashion_mnist", tmp_path)
    with pytest.raises(FileNotFoundError, match="cifar-10-batches-py"):
        load_images("cifar10", tmp_path)


def test_an_incomplete_folder_is_missing_data(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw", gzipped=True)
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="does not hold MNIST"):
        load_images("mnist", tmp_path)


def test_an_unknown_data_set_lists_the_known_ones():
    with pytest.raises(ValueError, match="'svhn': known are cifar10, fashion_mnist, mnist"):
        load_images("svhn")


def test_binarise_once_is_the_same_draw_and_leaves_the_default_generator_alone():
    pixels = grey(40, 9)
    state = torch.get_rng_state()
    first, rest = binarise_once(pixels[:10], pixels[10:])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(torch.cat(binarise_once(pixels[:10], pixels[10:])), torch.cat([first, rest]))
    assert set(first.unique().tolist()) == {0.0, 1.0}
    p = pixels[10:].float() / 255
    error = (p * (1 - p)).sum().sqrt()
    assert (rest.sum() - p.sum()).abs() < 4 * error
    assert rest[pixels[10:] == 255].all()
    assert not rest[pixels[10:] == 0].any()


def test_every_image_comes_once_an_epoch_and_the_order_changes():
    pixels = torch.arange(12, dtype=torch.uint8).reshape(12, 1, 1, 1)
    batches = ImageBatches(pixels, 4, shuffle=True)
    epochs = [torch.cat(list(batches)).mul(255).round().flatten().tolist() for _ in range(2)]
    assert [sorted(e) for e in epochs] == [list(range(12))] * 2
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize(("n", "shuffle", "sizes"), [
    (11, False, [4, 4, 3]),
    (11, True, [4, 4]),
    (3, True, [3]),
    (12, True, [4, 4, 4]),
])  # fmt: skip
def test_only_shuffled_batches_drop_the_incomplete_last(n, shuffle, sizes):
    batches = ImageBatches(grey(n), 4, shuffle=shuffle)
    assert [len(x) for x in batches] == sizes
    assert len(batches) == len(sizes)


def test_grey_values_are_scaled_to_the_unit_interval():
    pixels = grey(5)
    (x,) = ImageBatches(pixels, 5)
    torch.testing.assert_close(x, pixels.float() / 255)
    assert torch.equal(next(iter(ImageBatches(x, 5))), x)


def test_pixels_are_drawn_anew_from_their_grey_values():
    pixels = grey(3)
    batches = ImageBatches(pixels, 3, binarise=True)
    draws = torch.stack([next(iter(batches)) for _ in range(800)])
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    p = pixels.float() / 255
    z = (draws.mean(0) - p) / (p * (1 - p) / 800).sqrt().clamp(min=1e-6)
    assert z.abs().max() < 5
    assert z.square().mean() < 2


def test_half_of_the_images_are_mirrored_each_whole():
    pixels = grey(2000, 3, 3)
    (x,) = ImageBatches(pixels, 2000, flip=True)
    plain = (x == pixels.float() / 255).flatten(1).all(1)
    mirrored = (x.flip(-1) == pixels.float() / 255).flatten(1).all(1)
    assert (plain | mirrored).all()
    assert abs(int(mirrored.sum()) - 1000) < 4 * (2000 * 0.25) ** 0.5


def test_an_interrupted_epoch_goes_on_where_it_stood():
    torch.manual_seed(3)
    whole = list(ImageBatches(grey(20), 4, shuffle=True))
    torch.manual_seed(3)
    interrupted = ImageBatches(grey(20), 4, shuffle=True)
    epoch = iter(interrupted)
    head = [next(epoch), next(epoch)]
    resumed = ImageBatches(grey(20), 4, shuffle=True)
    resumed.load_state_dict(interrupted.state_dict())
    torch.testing.assert_close(head + list(resumed), whole, rtol=0, atol=0)
    assert len(list(resumed)) == 5


def test_the_state_after_a_whole_epoch_is_a_new_epoch():
    batches = ImageBatches(grey(8), 4, shuffle=True)
    list(batches)
    assert batches.state_dict()["position"] == 0


@pytest.mark.parametrize(("pixels", "complaint"), [
    (torch.zeros(3, 4, 4), r"\[N, C, H, W\]"),
    (torch.zeros(0, 1, 4, 4), "no empty axis"),
    (torch.zeros(1, 1, 4, 4, dtype=torch.int64), "not torch.int64"),
    (torch.full((1, 1, 4, 4), 1.5), r"within \[0, 1\]"),
    (torch.full((1, 1, 4, 4), torch.nan), "not be NaN"),
])  # fmt: skip
def test_pixels_that_are_no_images_are_refused(pixels, complaint):
    with pytest.raises(ValueError, match=complaint):
        ImageBatches(pixels, 2)


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        ImageBatches(grey(2), 0)


@pytest.mark.parametrize(("dataset", "n_train", "n_test"), [
    ("mnist", 60_000, 10_000),
    ("fashion_mnist", 60_000, 10_000),
])  # fmt: skip
def test_the_real_files(data_dir, dataset, n_train, n_test):
    images = load_images(dataset, data_dir)
    assert images.train_pixels.shape == (n_train, 1, 28, 28)
    assert images.test_pixels.shape == (n_test, 1, 28, 28)
    assert (
        images.test_labels.bincount().tolist()
        == {
            "mnist": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
            "fashion_mnist": [1000] * 10,
        }[dataset]
    )
