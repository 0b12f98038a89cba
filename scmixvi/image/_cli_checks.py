"""What the command line refuses before it trains or tests, each in one sentence."""

from typing import Any

import lightning as L
from jsonargparse import Namespace

from scmixvi.image._checks import check_precision
from scmixvi.image.data import ImageDataModule

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def check_words(config: Namespace, subcommand: str) -> None:
    """Raise ValueError for a value that no training and no test can run by.

    Parameters
    ----------
    config
        Of the subcommand.
    subcommand
        "fit" or "test".
    """
    if not 0 <= config.seed_everything < 2**32:
        raise ValueError(
            f"seed_everything must be 0 to 2^32 - 1, but it is {config.seed_everything}."
        )
    if config.compile not in (None, *COMPILE_MODES):
        raise ValueError(
            f"compile must be one of {', '.join(COMPILE_MODES)}, but it is {config.compile!r}."
        )
    trainer = config.trainer
    check_precision(trainer.precision)
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch"):
        if trainer[name] is not None and trainer[name] < 1:
            raise ValueError(f"trainer.{name} must be at least 1, but it is {trainer[name]}.")
    clip = trainer.gradient_clip_val
    if clip is not None and not clip >= 0:
        raise ValueError(
            f"trainer.gradient_clip_val must be 0 or more (0 is no clipping), but it is {clip}."
        )
    if trainer.val_check_interval in (0, 0.0):
        raise ValueError(
            "trainer.val_check_interval must be above 0, a share of an epoch's batches or a number "
            "of them."
        )
    if trainer.limit_test_batches == 0 and subcommand == "test":
        raise ValueError(
            "trainer.limit_test_batches must not be 0: there would be no image to test."
        )
    if trainer.limit_val_batches == 0 and subcommand == "fit":
        raise ValueError(
            "trainer.limit_val_batches must not be 0: early stopping, best.ckpt and last.ckpt "
            "go by the validation bound."
        )


def check_batches(trainer: L.Trainer, data: ImageDataModule, subcommand: str) -> None:
    """Raise ValueError where shares or numbers of batches do not fit those of the data.

    Lightning looks at them when training begins, at those of the test when it has ended.

    Parameters
    ----------
    trainer, data
        As built. The data are read here.
    subcommand
        "fit", which ends with a test, or "test".
    """
    data.setup()  # which downloads too, where that was asked for
    counts = {"test": len(data.test_dataloader())}
    if subcommand == "fit":
        counts |= {"train": len(data.train_dataloader()), "val": len(data.val_dataloader())}
    for which, n_batches in counts.items():
        share: Any = getattr(trainer, f"limit_{which}_batches")
        if isinstance(share, float) and 0 < share and share * n_batches < 1:
            raise ValueError(
                f"trainer.limit_{which}_batches is {share}, of {n_batches} batches less than one: "
                "pass a number of batches, or a larger share."
            )
    interval: Any = getattr(trainer, "val_check_interval", None)  # a trainer has none by the clock
    within = trainer.check_val_every_n_epoch is not None and isinstance(interval, int)
    if subcommand == "fit" and within:
        limit = trainer.limit_train_batches
        n_batches = counts["train"]
        n_batches = min(limit, n_batches) if isinstance(limit, int) else int(limit * n_batches)
        if n_batches and interval > n_batches:
            raise ValueError(
                f"trainer.val_check_interval is {interval}, but an epoch has {n_batches} batches: "
                "pass at most as many, or validate after several epochs by "
                "trainer.check_val_every_n_epoch."
            )
