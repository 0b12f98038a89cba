"""Reading of the image data sets, and what is said when they are not there."""

import struct

import numpy as np
import pytest
import torch
from idx_files import grey, write_idx
from torchvision import datasets

from scmixvi.image.readers import SOURCES, find_data, load_images


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


def test_rows_stay_rows_in_pixels_whose_channels_are_last(tmp_path, monkeypatch):
    """As torchvision reads CIFAR-10."""
    pixels = torch.arange(2 * 32 * 32 * 3).reshape(2, 32, 32, 3).to(torch.uint8)

    class CIFAR10:
        def __init__(self, folder, train, download):
            self.data, self.targets = pixels.numpy(), [3, 4]

    monkeypatch.setattr(datasets, "CIFAR10", CIFAR10)
    (tmp_path / "cifar-10-batches-py").mkdir()
    images = load_images("cifar10", tmp_path)
    assert torch.equal(images.train_pixels[1, 2], pixels[1, :, :, 2])
    assert images.train_labels.tolist() == [3, 4]


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


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def page(path):
    path.write_text("<html>not found</html>")


def emptied(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, page, emptied])
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("gzipped", [True, False])
def test_a_damaged_file_is_named(tmp_path, damage, name, gzipped):
    raw = tmp_path / "MNIST" / "raw"
    write_idx(raw, gzipped, n_train=300, n_test=300)
    path = raw / (name + ".gz" * gzipped)
    damage(path)
    named = path if gzipped and damage is not emptied else raw  # gzip takes nothing for nothing
    with pytest.raises(ValueError, match="is damaged or no .* idx file.*: download it") as told:
        load_images("mnist", tmp_path)
    assert str(told.value).startswith(f"{named} ")


def test_a_damaged_folder_or_subset_of_cifar_is_named(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(ValueError, match="cifar-10-batches-py is damaged or no folder of CIFAR-10"):
        load_images("cifar10", tmp_path)
    subset = tmp_path / "CIFAR10" / "cifar10_subset.npz"
    subset.parent.mkdir()
    np.savez(subset, train_x=np.zeros(3))
    with pytest.raises(ValueError, match=r"cifar10_subset.npz is damaged .*train_y"):
        load_images("cifar10", tmp_path)
    cut(subset)
    with pytest.raises(ValueError, match=r"cifar10_subset.npz is damaged .* download it again"):
        load_images("cifar10", tmp_path)


@pytest.mark.parametrize(("size", "n_labels"), [(10, 12), (28, 11)])
def test_images_are_as_large_and_as_many_as_said(tmp_path, size, n_labels):
    raw = tmp_path / "MNIST" / "raw"
    write_idx(raw, gzipped=False, size=size)
    labels = raw / "train-labels-idx1-ubyte"
    labels.write_bytes(struct.pack(">2i", 2049, n_labels) + bytes(n_labels))
    found = rf"12 images of \(C, H, W\) = \(1, {size}, {size}\) and {n_labels} labels"
    with pytest.raises(ValueError, match=rf"{found}, but its images are \(1, 28, 28\)"):
        load_images("mnist", tmp_path)


def test_one_unpacked_file_beside_the_gzipped_ones_changes_nothing(tmp_path):
    arrays = write_idx(tmp_path / "MNIST" / "raw", gzipped=True)
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"half unpacked")
    pixels = load_images("mnist", tmp_path).train_pixels
    np.testing.assert_array_equal(pixels[:, 0].numpy(), arrays["train"])


def test_an_unknown_data_set_lists_the_known_ones():
    with pytest.raises(ValueError, match="'svhn': known are cifar10, fashion_mnist, mnist"):
        load_images("svhn")


@pytest.mark.parametrize(("dataset", "n_train", "n_test"), [
    ("mnist", 60_000, 10_000),
    ("fashion_mnist", 60_000, 10_000),
])  # fmt: skip
def test_the_real_files(data_dir, dataset, n_train, n_test):
    images = load_images(dataset, data_dir)
    assert images.train_pixels.shape == (n_train, 1, 28, 28)
    assert images.test_pixels.shape == (n_test, 1, 28, 28)
    assert images.train_pixels.shape[1:] == SOURCES[dataset].image_size
    assert (
        images.test_labels.bincount().tolist()
        == {
            "mnist": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
            "fashion_mnist": [1000] * 10,
        }[dataset]
    )
