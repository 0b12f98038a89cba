"""What a Trainer takes beside an image VAE: when to stop, what to keep, and what to report."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from scmixvi._messages import check_whole
from scmixvi.image.checkpoints import at_home, read_checkpoint, write_checkpoint
from scmixvi.image.lightning import MONITORED, VAETraining
from scmixvi.image.report import run_record, sample_sheet
from scmixvi.records import write

_WHEN_VALIDATED: dict[str, Any] = {
    "mode": "max",
    "enable_version_counter": False,
    "save_on_train_epoch_end": False,
}
"""How checkpoints are kept: one of a name, after each validation."""


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's, whose patience is its own also after a checkpoint with another one."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over everything else."""
        super().load_state_dict(state_dict | {"patience": self.patience})


def early_stopping(patience: int = 100, min_delta: float = 0.0) -> EarlyStopping:
    """Stop once the validation bound at full KL weight has not risen for `patience` epochs.

    Raises
    ------
    ValueError
        If `patience` is no whole number of at least 0, or `min_delta` below 0 or not finite.
    """
    check_whole("patience", patience, least=0)
    if not 0 <= min_delta < float("inf"):
        raise ValueError(f"min_delta must be finite and at least 0, but it is {min_delta}.")
    return EarlyStopping(
        MONITORED,
        min_delta,
        patience,
        mode="max",
        check_on_train_epoch_end=False,  # a resumed run goes through that hook without validation
    )


def best_checkpoint(folder: str | None = None) -> ModelCheckpoint:
    """Keep the epoch with the best validation bound as `FOLDER/best.ckpt`."""
    return ModelCheckpoint(folder, "best", MONITORED, **_WHEN_VALIDATED)


class LastCheckpoint(ModelCheckpoint):
    """Lightning's, which keeps the end of training too where no validation comes after it."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that all steps so far are in a checkpoint, or none have been taken."""
        super().on_train_start(trainer, pl_module)
        self._kept_step = trainer.global_step

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep what was validated."""
        super().on_validation_end(trainer, pl_module)
        self._kept_step = trainer.global_step

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the steps since the last validation."""
        super().on_train_end(trainer, pl_module)
        if trainer.global_step != self._kept_step and not _only_tries(trainer):
            trainer.save_checkpoint(Path(str(self.dirpath)) / f"{self.filename}.ckpt")


def last_checkpoint(folder: str | None = None) -> LastCheckpoint:
    """Keep the last validated epoch as `FOLDER/last.ckpt`: what an interrupted run goes on from.

    When training ends, its last step, also where that comes after the last validation.
    """
    return LastCheckpoint(folder, "last", **_WHEN_VALIDATED)


class SafeCheckpoints(TorchCheckpointIO):
    """Checkpoint files for Lightning's Trainer (`plugins=[SafeCheckpoints()]`).

    They are written whole or not at all, and loaded as tensors and plain values only. A training
    whose folder has moved goes on with its best epoch.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """See `scmixvi.image.checkpoints.write_checkpoint`."""
        write_checkpoint(checkpoint, path)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """See `scmixvi.image.checkpoints.read_checkpoint` and `at_home` there."""
        return at_home(read_checkpoint(path), path)


class TestReport(Callback):
    """After a test: figures as JSON and digits drawn from the model as PNG.

    `epochs` and `steps` are those behind the tested weights, `fit_epochs` those that took
    `fit_seconds`: more, where training went on after the best epoch. `seed` is that of the test's
    process, `fit_seed` that of the training, and so `dataset` and `fit_dataset`. `test_nll_nats` is
    by Eq. 17, `test_nll_pooled_nats` by the pooled estimate (:meth:`scmixvi.image.ImageVAE.nll`)
    from the same draws.

    Parameters
    ----------
    folder
        Where to; None is the trainer's `default_root_dir`.
    name
        The files are `NAME.json` and `NAME.png`; None is "test".
    n_images
        Images on the sample sheet; 0 for no sheet.

    Raises
    ------
    ValueError
        If `n_images` is no whole number of at least 0.
    """

    __test__ = False  # no test of pytest's, for all its name

    def __init__(
        self, folder: str | None = None, name: str | None = None, n_images: int = 64
    ) -> None:
        check_whole("n_images", n_images, least=0)
        self.folder, self.name, self.n_images = folder, name or "test", n_images
        self._spent = {"fit": Seconds(), "test": Seconds()}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clocks, on top of the seconds of an interrupted run."""
        self._start = Seconds.now() - self._spent["fit"]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Read the clocks before the checkpoint of the epoch is written."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._spent["fit"] = Seconds.now() - self._start

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count what came after the last validation."""
        self._spent["fit"] = Seconds.now() - self._start

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clocks of the test."""
        self._start = Seconds.now()

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write both files; none where a batch alone was tried (`fast_dev_run`)."""
        if _only_tries(trainer):
            return
        assert isinstance(pl_module, VAETraining)
        self._spent["test"] = Seconds.now() - self._start
        folder = Path(self.folder or trainer.default_root_dir)
        record = run_record(pl_module.device) | _figures(trainer, pl_module)
        record |= {f"{stage}_seconds": spent._asdict() for stage, spent in self._spent.items()}
        record["fit_epochs"] = trainer.current_epoch or record["epochs"]
        write(folder / f"{self.name}.json", record)
        if self.n_images:
            sample_sheet(pl_module.vae.sample(self.n_images), folder / f"{self.name}.png")

    def state_dict(self) -> dict[str, Any]:
        """Seconds of training so far."""
        return self._spent["fit"]._asdict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the seconds of an interrupted run, unless this one has trained longer."""
        self._spent["fit"] = max(self._spent["fit"], Seconds(**state_dict))


class Seconds(NamedTuple):
    """Seconds of the clock, and of all processors of this process together."""

    clock: float = 0.0
    processors: float = 0.0

    @classmethod
    def now(cls) -> "Seconds":
        """Both readings at this moment."""
        return cls(time.monotonic(), time.process_time())

    def __sub__(self, earlier: "Seconds") -> "Seconds":
        """Both differences, to the millisecond."""
        return Seconds(*(round(a - b, 3) for a, b in zip(self, earlier, strict=True)))


def _only_tries(trainer: L.Trainer) -> bool:
    """Whether it runs a batch to see that it does (`fast_dev_run`)."""
    return bool(getattr(trainer, "fast_dev_run", False))


def _standard_error(values: Tensor) -> float | None:
    """Of a mean; None of one value, which does not say."""
    return round(float(values.std() / len(values) ** 0.5), 4) if len(values) > 1 else None


def _figures(trainer: L.Trainer, module: VAETraining) -> dict[str, Any]:
    nll = module.test_nll
    trained = module.trained
    return trained | {
        "fit_dataset": trained.get("dataset"),
        "dataset": getattr(getattr(trainer, "datamodule", None), "name", None),
        "n_parameters": sum(p.numel() for p in module.vae.parameters()),
        "n_test_images": len(nll),
        "n_test_samples": module.n_test_samples,
        "n_test_refinement_steps": module.n_test_refinement_steps,
        "test_nll_nats": round(float(nll.mean()), 4),
        "test_nll_pooled_nats": round(float(module.test_nll_pooled.mean()), 4),
        "test_nll_standard_error": _standard_error(nll),
        "test_bits_per_dim": round(float(trainer.callback_metrics["test_bits_per_dim"]), 5),
        "test_precision": trainer.precision,
    }
