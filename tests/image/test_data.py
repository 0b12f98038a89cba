"""The data module: which images are in which loader, and what is done to their pixels there."""

import numpy as np
import pytest
import torch
from idx_files import grey, write_idx

from scmixvi.image.batches import binarise_once
from scmixvi.image.data import ImageDataModule


def ready(dataset, folder, batch_size):
    data = ImageDataModule(dataset, str(folder), batch_size)
    data.setup()
    return data


def nearest(draws, pixels):
    """Number of the grey image that each binary one was drawn from."""
    apart = draws.flatten(1).unsqueeze(1) - pixels.flatten(1).float() / 255
    return apart.square().sum(-1).argmin(1).tolist()


@pytest.mark.parametrize(
    ("dataset", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")]
)
def test_training_images_are_shuffled_and_drawn_anew_and_the_last_sixth_is_drawn_once(
    tmp_path, dataset, folder
):
    arrays = write_idx(tmp_path / folder / "raw", gzipped=False, n_train=24)
    train, test = (torch.from_numpy(arrays[name]).unsqueeze(1) for name in ("train", "t10k"))
    data = ready(dataset, tmp_path, 5)
    batches = data.train_dataloader()
    epochs = [torch.cat(list(batches)) for _ in range(2)]
    orders = [nearest(epoch, train) for epoch in epochs]
    assert [sorted(order) for order in orders] == [list(range(20))] * 2
    assert len({tuple(order) for order in orders} | {tuple(range(20))}) == 3
    assert all(set(epoch.unique().tolist()) == {0.0, 1.0} for epoch in epochs)
    one, other = (epoch[np.argsort(order)] for epoch, order in zip(epochs, orders, strict=True))
    assert not torch.equal(one, other)
    held_out = binarise_once(train[20:], test)
    for loader, expected in zip((data.val_dataloader, data.test_dataloader), held_out, strict=True):
        for _ in range(2):
            assert torch.equal(torch.cat(list(loader())), expected)
    assert data.train_labels.tolist() == [i % 10 for i in range(20)]
    assert data.val_labels.tolist() == [0, 1, 2, 3]
    assert data.test_labels.tolist() == list(range(6))


@pytest.mark.filterwarnings("ignore:.*subset of cifar10")
def test_colour_images_keep_their_grey_values_and_only_training_mirrors_them(tmp_path):
    pixels = {"train": grey(20, 32, 3, seed=1), "test": grey(3, 32, 3, seed=2)}
    arrays = {f"{name}_x": images.numpy() for name, images in pixels.items()}
    labels = {f"{name}_y": np.arange(len(images)) % 10 for name, images in pixels.items()}
    (tmp_path / "CIFAR10").mkdir()
    np.savez(tmp_path / "CIFAR10" / "cifar10_subset.npz", **arrays, **labels)
    data = ready("cifar10", tmp_path, 18)
    whole = pixels["train"].float() / 255
    (batch,) = data.train_dataloader()
    plain, mirrored = (
        (batch.unsqueeze(1) == images).flatten(2).all(-1) for images in (whole, whole.flip(-1))
    )
    assert plain.any()
    assert mirrored.any()
    assert (plain | mirrored).sum(0).tolist() == [1] * 18 + [0] * 2
    assert torch.equal(torch.cat(list(data.val_dataloader())), whole[18:])
    assert torch.equal(torch.cat(list(data.test_dataloader())), pixels["test"].float() / 255)
