"""The image data sets: what they are, where they lie, and their pixels as tensors."""

import gzip
import os
import shutil
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageSource:
    """What tells one data set from another.

    Parameters
    ----------
    reader
        Name of the class in `torchvision.datasets`.
    files
        What to put below the data folder, for people who have to do it by hand.
    image_size
        (C, H, W).
    binary
        Whether grey values are probabilities from which pixels are drawn.
    flip
        Whether training images are mirrored at random.
    held_out
        One image of this many training images goes to the validation set (the last ones).
    """

    reader: str
    files: str
    image_size: tuple[int, int, int]
    binary: bool
    flip: bool
    held_out: int

    @property
    def gzipped(self) -> bool:
        """Whether the data set is four idx files, which may lie gzipped."""
        return "-ubyte" in self.files


SOURCES = {
    "mnist": ImageSource(
        reader="MNIST",
        files="MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte, gzipped or not",
        image_size=(1, 28, 28),
        binary=True,
        flip=False,
        held_out=6,
    ),
    "fashion_mnist": ImageSource(
        reader="FashionMNIST",
        files="FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte, gzipped or not",
        image_size=(1, 28, 28),
        binary=True,
        flip=False,
        held_out=6,
    ),
    "cifar10": ImageSource(
        reader="CIFAR10",
        files="cifar-10-batches-py/ (or a subset as CIFAR10/cifar10_subset.npz)",
        image_size=(3, 32, 32),
        binary=False,
        flip=True,
        held_out=10,
    ),
}
"""The known data sets, by name."""


@dataclass(frozen=True)
class ImageSet:
    """A data set in memory: `{train,test}_pixels` uint8 `[N, C, H, W]`, `_labels` int64 `[N]`."""

    name: str
    train_pixels: Tensor
    train_labels: Tensor
    test_pixels: Tensor
    test_labels: Tensor


def known_source(dataset: str) -> ImageSource:
    """Return the data set of that name; raise ValueError with the known ones for any other."""
    if dataset not in SOURCES:
        raise ValueError(f"unknown data set {dataset!r}: known are {', '.join(sorted(SOURCES))}.")
    return SOURCES[dataset]


def find_data(dataset: str, data_dir: str | Path | None = None) -> Path:
    """Folder that holds the data set's files.

    Parameters
    ----------
    dataset
        A name in `SOURCES`.
    data_dir
        Folder to look in; None takes the environment variable SCMIXVI_DATA_DIR.

    Raises
    ------
    ValueError
        If the data set is unknown.
    FileNotFoundError
        If there is no folder or the files are not in it: says what to put where.
    """
    source = known_source(dataset)
    advice = (
        f"download {source.reader} and put it there as {source.files}, "
        "or pass download=True (--data.download true) to let torchvision do it."
    )
    folder = _chosen_folder(data_dir)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"the data folder {folder} does not exist: create it, then {advice}"
        )
    if not _is_complete(source, folder):
        raise FileNotFoundError(f"{folder} does not hold {source.reader}: {advice}")
    return folder


def load_images(
    dataset: str, data_dir: str | Path | None = None, download: bool = False
) -> ImageSet:
    """Read a data set into memory.

    Parameters
    ----------
    dataset
        A name in `SOURCES`.
    data_dir
        Folder that holds it; None takes SCMIXVI_DATA_DIR. Nothing is written there.
    download
        Let torchvision fetch what is missing into that folder, which is then written to.

    Raises
    ------
    ValueError
        If the data set is unknown, or a file is damaged or holds something else.
    FileNotFoundError
        If the files are missing and are not to be downloaded.
    """
    source = known_source(dataset)
    folder = _chosen_folder(data_dir) if download else find_data(dataset, data_dir)
    images = _read(source, folder, dataset, download)
    _check_sizes(images, source, folder)
    return images


def _read(source: ImageSource, folder: Path, dataset: str, download: bool) -> ImageSet:
    if download:
        return ImageSet(dataset, *_read_torchvision(source, folder, download=True))
    if source.gzipped:
        raw = _raw(source, folder, "").parent
        if _ending(source, folder) == "":
            with _told_if_damaged(raw, "folder of idx files"):
                return ImageSet(dataset, *_read_torchvision(source, folder))
        with TemporaryDirectory() as unpacked:
            _gunzip(source, folder, Path(unpacked))
            with _told_if_damaged(raw, "folder of idx files"):
                return ImageSet(dataset, *_read_torchvision(source, Path(unpacked)))
    if _subset(folder).is_file():
        with _told_if_damaged(_subset(folder), "file of train_x, train_y, test_x and test_y"):
            return _read_subset(dataset, _subset(folder))
    with _told_if_damaged(folder / "cifar-10-batches-py", "folder of CIFAR-10"):
        return ImageSet(dataset, *_read_torchvision(source, folder))


@contextmanager
def _told_if_damaged(path: Path, kind: str) -> Iterator[None]:
    """Say which file or folder it was that could not be read, for all that readers raise of one."""
    try:
        yield
    except _DAMAGED as error:
        found = str(error).split("\n")[0].rstrip(".") or type(error).__name__
        raise ValueError(
            f"{path} is damaged or no {kind}: download it again and put it there ({found})."
        ) from error


_DAMAGED = (
    *(AssertionError, EOFError, LookupError, RuntimeError, TypeError, ValueError),
    *(gzip.BadGzipFile, zlib.error, BadZipFile, UnpicklingError),
)


def _check_sizes(images: ImageSet, source: ImageSource, folder: Path) -> None:
    """Refuse images of another size than the data set's, and labels that are more or fewer."""
    for pixels, labels in (
        (images.train_pixels, images.train_labels),
        (images.test_pixels, images.test_labels),
    ):
        if tuple(pixels.shape[1:]) != source.image_size or len(pixels) != len(labels):
            raise ValueError(
                f"the files of {source.reader} in {folder} hold {len(pixels)} images of (C, H, W) "
                f"= {tuple(pixels.shape[1:])} and {len(labels)} labels, but its images are "
                f"{source.image_size} with a label each: put {source.reader}'s own files there."
            )


def _chosen_folder(data_dir: str | Path | None) -> Path:
    chosen = data_dir or os.environ.get("SCMIXVI_DATA_DIR")
    if not chosen:
        raise FileNotFoundError(
            "no data folder was named: set the environment variable SCMIXVI_DATA_DIR "
            "or pass data_dir (--data.data_dir)."
        )
    return Path(chosen)


def _raw(source: ImageSource, folder: Path, suffix: str) -> Path:
    return folder / source.reader / "raw" / f"train-images-idx3-ubyte{suffix}"


def _subset(folder: Path) -> Path:
    return folder / "CIFAR10" / "cifar10_subset.npz"


def _is_complete(source: ImageSource, folder: Path) -> bool:
    if not source.gzipped:
        return (folder / "cifar-10-batches-py").is_dir() or _subset(folder).is_file()
    return _ending(source, folder) is not None


def _ending(source: ImageSource, folder: Path) -> str | None:
    """What all four idx files end in: nothing or ".gz"; None if neither are all there."""
    raw = _raw(source, folder, "").parent
    names = [f"{split}-{kind}" for split in ("train", "t10k") for kind in _KINDS]
    for ending in ("", ".gz"):
        if all((raw / (name + ending)).is_file() for name in names):
            return ending
    return None


_KINDS = ("images-idx3-ubyte", "labels-idx1-ubyte")


def _gunzip(source: ImageSource, folder: Path, target: Path) -> None:
    raw = _raw(source, target, "").parent
    raw.mkdir(parents=True)
    for path in sorted(_raw(source, folder, "").parent.glob("*-ubyte.gz")):
        with (
            _told_if_damaged(path, "gzipped idx file"),
            gzip.open(path) as packed,
            open(raw / path.stem, "wb") as unpacked,
        ):
            shutil.copyfileobj(packed, unpacked)


def _read_torchvision(source: ImageSource, folder: Path, download: bool = False) -> list[Tensor]:
    from torchvision import datasets  # an extra: `import scmixvi.image` must do without

    read: list[Tensor] = []
    for train in (True, False):
        images = getattr(datasets, source.reader)(folder, train=train, download=download)
        pixels = torch.as_tensor(images.data)
        channels_first = pixels.unsqueeze(1) if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2)
        read += [channels_first.contiguous(), torch.as_tensor(images.targets)]
    return read


def _read_subset(dataset: str, path: Path) -> ImageSet:
    with np.load(path) as arrays:
        names = ("train_x", "train_y", "test_x", "test_y")
        tensors = [torch.from_numpy(arrays[name]) for name in names]
    warnings.warn(
        f"{path.name} is a subset of {dataset} ({len(tensors[0])} training and {len(tensors[2])} "
        "test images): no figure from it is comparable with a published one.",
        stacklevel=4,
    )
    train_x, train_y, test_x, test_y = tensors
    return ImageSet(f"{dataset}_subset", train_x, train_y.long(), test_x, test_y.long())
