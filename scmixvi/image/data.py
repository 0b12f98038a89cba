"""MNIST, Fashion-MNIST and CIFAR-10 for Lightning, with the pixels on the training device."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from scmixvi._messages import check_whole
from scmixvi.image._checks import check_one_device
from scmixvi.image.batches import ImageBatches, binarise_once
from scmixvi.image.readers import find_data, known_source, load_images


class ImageDataModule(L.LightningDataModule):
    """Training, validation and test batches of one data set, for one device.

    The last sixth of the training images of MNIST and Fashion-MNIST is the validation set
    (50,000 / 10,000 / 10,000 images), of CIFAR-10 the last tenth. Training pixels are drawn anew
    from their grey values at every step; validation and test images were drawn once, with a seed
    that is the same for all runs. CIFAR-10 keeps its grey values and is mirrored at random.

    Parameters
    ----------
    dataset
        "mnist", "fashion_mnist" or "cifar10".
    data_dir
        Folder of the data (see :func:`scmixvi.image.readers.load_images`); None takes the
        environment variable SCMIXVI_DATA_DIR. Gzipped files are read as they are.
    batch_size
        B, of training, validation and test.
    download
        Let torchvision fetch what is missing into the folder.

    Raises
    ------
    ValueError
        If the data set is unknown (the known ones are listed), or the batch size is no whole number
        of at least 1.
    FileNotFoundError
        If the data is not there: says what to download and where to put it.
    """

    def __init__(
        self,
        dataset: str = "mnist",
        data_dir: str | None = None,
        batch_size: int = 100,
        download: bool = False,
    ) -> None:
        super().__init__()
        check_whole("batch_size", batch_size)
        self.source = known_source(dataset)
        if not download:
            find_data(dataset, data_dir)
        self.dataset, self.data_dir, self.download = dataset, data_dir, download
        self.batch_size = batch_size
        self.name = dataset
        self._train: Tensor | None = None

    @property
    def training_settings(self) -> dict[str, Any]:
        """What a training on these batches goes by: kept in its checkpoints and reports."""
        return {"dataset": self.dataset, "batch_size": self.batch_size}

    def prepare_data(self) -> None:
        """Download, where that was asked for."""
        if self.download:
            load_images(self.dataset, self.data_dir, download=True)

    def setup(self, stage: str | None = None) -> None:
        """Read the files once; `name` then says if they are only a subset of the data set."""
        if self._train is not None:
            return
        folder = Path(self.data_dir) if self.data_dir else None
        images = load_images(self.dataset, folder, self.download)
        n_train = len(images.train_pixels) - len(images.train_pixels) // self.source.held_out
        self._train, held_out = images.train_pixels[:n_train], images.train_pixels[n_train:]
        self.train_labels, self.val_labels = images.train_labels.tensor_split([n_train])
        self.test_labels, self.name = images.test_labels, images.name
        self._val, self._test = held_out, images.test_pixels
        if self.source.binary:
            self._val, self._test = binarise_once(held_out, images.test_pixels)

    def train_dataloader(self) -> ImageBatches:
        """Shuffled batches `[B, C, H, W]`, each drawn or mirrored anew."""
        return ImageBatches(
            self._on_device(self._train),
            self.batch_size,
            shuffle=True,
            binarise=self.source.binary,
            flip=self.source.flip,
        )

    def val_dataloader(self) -> ImageBatches:
        """Batches of the validation images, always the same."""
        return ImageBatches(self._on_device(self._val), self.batch_size)

    def test_dataloader(self) -> ImageBatches:
        """Batches of the test images, always the same."""
        return ImageBatches(self._on_device(self._test), self.batch_size)

    def _on_device(self, pixels: Tensor | None) -> Tensor:
        if pixels is None:
            raise RuntimeError("call setup() before asking for batches.")
        if self.trainer is None:
            return pixels
        check_one_device(self.trainer.world_size)
        device: torch.device = self.trainer.strategy.root_device
        return pixels.to(device)
