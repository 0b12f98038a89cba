"""What the image experiments share: train models, over any number of runs.

Every model has a folder of its own. Training goes on from `last.ckpt` there and stops at a
deadline, where one is set, after a checkpoint. Tests are in :mod:`.tests`.
"""

import argparse
import json
import math
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from scmixvi.core.memory import keep_freed_memory
from scmixvi.experiments import _common
from scmixvi.image import ImageVAE
from scmixvi.image._folders import in_turn_in
from scmixvi.image.callbacks import (
    SafeCheckpoints,
    best_checkpoint,
    early_stopping,
    last_checkpoint,
)
from scmixvi.image.checkpoints import read_checkpoint
from scmixvi.image.data import ImageDataModule
from scmixvi.image.lightning import MONITORED, TRAINER_DEFAULTS, VAETraining
from scmixvi.records import environment, read, write

MOST_EPOCHS, PAPER_WARMUP = 2000, 100  # the paper names no maximum
REFINEMENT_STEPS = 100  # of each image's own posterior


@dataclass(frozen=True)
class Scheme:
    """How long a model is trained; the defaults are the paper's (appendix C), but for a maximum.

    Parameters
    ----------
    epochs
        At most so many.
    patience
        Epochs without a better validation bound after which training stops.
    warmup_epochs, learning_rate
        See :class:`scmixvi.image.lightning.VAETraining`.
    max_batches
        Batches of an epoch, for smoke runs; None is all.
    """

    epochs: int = MOST_EPOCHS
    patience: int = 100
    warmup_epochs: int = PAPER_WARMUP
    learning_rate: float = 5e-4
    max_batches: int | None = None


def parser(doc: str, result: Path, n_test_samples: int | None = 5000) -> argparse.ArgumentParser:
    """Arguments that all image experiments take: those of the others, and how long to train."""
    made = _common.parser(doc, result)
    add = made.add_argument
    add("--epochs", type=at_least_one, help="at most so many (default: the paper's scheme)")
    warmup = "epochs of KL warm-up (default: 100, at most epochs / 4)"
    add("--warmup", type=at_least_zero, help=warmup)
    add("--learning-rate", type=positive, default=5e-4)
    samples = "L of the test log-likelihood"
    add("--samples", type=at_least_one, default=n_test_samples, help=samples)
    add("--minutes", type=float, help="stop after the checkpoint that follows so many minutes")
    add("--checkpoints", type=Path, help="folder of checkpoints (default: beside the JSON)")
    return made


def at_least_one(text: str) -> int:
    """A whole number of at least 1, for argparse, which says what is wrong otherwise."""
    return _whole(text, least=1)


def at_least_zero(text: str) -> int:
    """The same of at least 0."""
    return _whole(text, least=0)


def _whole(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least {least}")
    return int(text)


def positive(text: str) -> float:
    """A positive and finite number, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive and finite number")
    return value


def scheme_of(options: argparse.Namespace, paper: Scheme | None = None) -> Scheme:
    """The scheme that the arguments ask for; warm-up takes a quarter of a short training."""
    paper = paper or Scheme()
    epochs = options.epochs or (2 if options.smoke else paper.epochs)
    warmup = min(PAPER_WARMUP, epochs // 4) if options.warmup is None else options.warmup
    n_batches = 5 if options.smoke else None
    return Scheme(epochs, paper.patience, warmup, options.learning_rate, n_batches)


def checkpoints_beside(result: Path, smoke: bool) -> Path:
    """Folder of checkpoints beside a JSON, named like it."""
    return _common.beside(result, ".smoke" if smoke else ".weights")


def chosen_device() -> torch.device:
    """The GPU where there is one; on a CPU the process keeps the memory that it frees."""
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
        return torch.device("cuda")
    keep_freed_memory()
    return torch.device("cpu")


def start_random(seed: int, name: str) -> None:
    """Seed torch for one part of an experiment; parts of other names draw other numbers."""
    torch.manual_seed(zlib.crc32(f"{seed}/{name}".encode()))


class OutOfTime(Exception):
    """The deadline has passed; what was done so far is in checkpoints."""


class Deadline:
    """A number of minutes from now; None is never."""

    def __init__(self, minutes: float | None = None) -> None:
        self.end = float("inf") if minutes is None else time.monotonic() + 60 * minutes

    @property
    def passed(self) -> bool:
        """Whether it is over."""
        return time.monotonic() >= self.end

    def check(self) -> None:
        """Raise OutOfTime if it is over."""
        if self.passed:
            raise OutOfTime


@contextmanager
def until_deadline() -> Iterator[None]:
    """End a run that is out of time with a line that says how to go on."""
    try:
        yield
    except OutOfTime:
        print("time is up: the same command goes on from the checkpoints", flush=True)


class EpochWatch(Callback):
    """Say every half minute how far training is, and stop it at the deadline.

    That is after validation, when the checkpoint of the epoch is written. A bound that is not
    finite stops it before, so that the last checkpoint is of the epoch before.
    """

    def __init__(self, name: str, deadline: Deadline) -> None:
        self.name, self.deadline = name, deadline
        self.start = self.said = time.monotonic()
        self.n_epochs = 0

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Raise FloatingPointError if the bound is not finite."""
        bound = float(trainer.callback_metrics[MONITORED])
        if not math.isfinite(bound):
            raise FloatingPointError(
                f"the validation bound of {self.name} is {bound} after epoch "
                f"{trainer.current_epoch + 1}: train with a lower --learning-rate, into another "
                "--result."
            )

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print a line; ask the trainer to stop if time is up."""
        self.n_epochs += 1
        now = time.monotonic()
        if now - self.said > 30:
            self.said = now
            print(
                f"{self.name}: epoch {trainer.current_epoch + 1} of at most {trainer.max_epochs}, "
                f"validation bound {float(trainer.callback_metrics[MONITORED]):.2f}, "
                f"{(now - self.start) / self.n_epochs:.1f} s an epoch",
                flush=True,
            )
        if self.deadline.passed:
            trainer.should_stop = True


class Models:
    """Trained models of one data set and one seed: made when asked for, and only once.

    Parameters
    ----------
    dataset
        Name of the data set.
    options
        From :func:`parser`.
    scheme
        How long to train.
    deadline
        When to stop for now.
    n_test_images
        Test on so many of the test images, evenly spaced; None is all.
    trainer_settings
        Passed on to Lightning's Trainer.
    """

    def __init__(
        self,
        dataset: str,
        options: argparse.Namespace,
        scheme: Scheme,
        deadline: Deadline,
        n_test_images: int | None = None,
        **trainer_settings: Any,
    ) -> None:
        self.seed, self.scheme, self.deadline = options.seed, scheme, deadline
        self.n_test_images = n_test_images
        self.n_test_samples = min(options.samples, 5) if options.smoke else options.samples
        self.n_refinement_steps = 2 if options.smoke else REFINEMENT_STEPS
        self.trainer_settings = trainer_settings
        beside = checkpoints_beside(options.result, options.smoke)
        self.folder = (options.checkpoints or beside) / dataset / f"seed_{options.seed}"
        self.data = ImageDataModule(dataset)
        self.data.setup()

    @property
    def settings(self) -> dict[str, Any]:
        """What figures of these models depend on besides data set, model and seed."""
        tested = {"samples": self.n_test_samples, "test_images": self.n_test_images}
        return asdict(self.scheme) | self.trainer_settings | tested

    @property
    def test_images(self) -> Tensor:
        """The test images, binarised where the data set is, `[N, C, H, W]`; few in a smoke run."""
        batches = self.data.test_dataloader()
        x = next(iter(batches)) if self.scheme.max_batches else batches.pixels
        if self.n_test_images is not None:
            n = min(self.n_test_images, len(x))
            x = x[torch.arange(n) * len(x) // n]
        return x if x.is_floating_point() else x.float().div_(255)

    def trained(self, name: str, make: Callable[[], VAETraining]) -> tuple[ImageVAE, dict]:
        """Train a model to the end, or take it from its folder, where one process trains at a time.

        Parameters
        ----------
        name
            Of its folder, and of its random numbers.
        make
            Builds model and training; called after seeding.

        Returns
        -------
        The model with the weights of the best epoch, on the chosen device and in evaluation mode.
        Its record: `epochs` trained, `best_epoch`, the `val_bound` of that one (nats), whether
        training `stopped_early`, the scheme, the device's name, and the kind of it.

        Raises
        ------
        OutOfTime
            If the deadline came before the end.
        ValueError
            If the folder holds a training by another scheme, or of another model.
        FloatingPointError
            If the validation bound or a gradient is not finite.
        """
        folder = self.folder / name
        start_random(self.seed, name)
        module, record = make(), folder / "trained.json"
        with in_turn_in(folder):
            _check_training(folder, asdict(self.scheme) | {"origin": module.origin})
            if not record.exists():
                self.deadline.check()
                write(record, self._fit(module, folder))
        module.load_state_dict(read_checkpoint(folder / "best.ckpt")["state_dict"])
        return module.eval().vae.to(chosen_device()), read(record, {})

    def _fit(self, module: VAETraining, folder: Path) -> dict[str, Any]:
        stopping = early_stopping(self.scheme.patience)
        watch = EpochWatch(str(folder), self.deadline)
        checkpoints = [best_checkpoint(str(folder)), last_checkpoint(str(folder))]
        settings = TRAINER_DEFAULTS | {
            "max_epochs": self.scheme.epochs,
            "default_root_dir": folder,
            "limit_train_batches": self.scheme.max_batches,
            "limit_val_batches": self.scheme.max_batches,
            "enable_progress_bar": False,
            "logger": False,
            "plugins": [SafeCheckpoints()],
            "callbacks": [stopping, watch, *checkpoints],
        }
        trainer = L.Trainer(**settings | self.trainer_settings)
        last = folder / "last.ckpt"
        if last.exists():
            stopping.load_state_dict(read_checkpoint(last)["callbacks"][stopping.state_key])
        if stopping.wait_count < stopping.patience:
            with warnings.catch_warnings():
                for expected in ("many workers", "not empty", "in eval mode"):
                    warnings.filterwarnings("ignore", f".*{expected}")
                trainer.fit(module, datamodule=self.data, ckpt_path=last if last.exists() else None)
        epochs = read_checkpoint(last)["epoch"] + 1
        stopped_early = stopping.wait_count >= stopping.patience
        if epochs < self.scheme.epochs and not stopped_early:
            raise OutOfTime
        return {
            "name": folder.name,
            "epochs": epochs,
            "best_epoch": read_checkpoint(folder / "best.ckpt")["epoch"] + 1,
            "val_bound": round(float(stopping.best_score), 4),
            "stopped_early": stopped_early,
            "scheme": asdict(self.scheme),
            "device": environment(chosen_device())["device"],
            "accelerator": chosen_device().type,
            **self.trainer_settings,
        }


def _check_training(folder: Path, wanted: dict[str, Any]) -> None:
    """Refuse a folder that says something else of its training; say it in a new one."""
    path, wanted = folder / "scheme.json", json.loads(json.dumps(wanted))
    found = read(path, wanted)
    for name, value in wanted.items():
        if found.get(name, value) != value:
            raise ValueError(
                f"{folder} holds a training with {name} = {found[name]}, not {value}: "
                "use the same arguments, or name another folder (--checkpoints)."
            )
    if not path.exists():
        write(path, wanted)
