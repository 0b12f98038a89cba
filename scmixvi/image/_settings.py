"""What a training goes by: what is refused of it, and what its checkpoints and reports say."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning as L
from torch import Tensor

from scmixvi._messages import check_whole
from scmixvi.image._scoring import BoundTerms
from scmixvi.image.report import run_seed


def run_settings(trainer: L.Trainer, data: Any = None) -> dict[str, Any]:
    """What a training goes by besides its module: data, batches, clipping, patience, seed, ....

    Parameters
    ----------
    trainer
        Of the training.
    data
        Its data module; None is the one that the trainer has taken up.
    """
    data = getattr(trainer, "datamodule", None) if data is None else data
    return getattr(data, "training_settings", {}) | {
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "gradient_clip_val": trainer.gradient_clip_val,
        "gradient_clip_algorithm": _clipped_by(trainer),
        "limit_train_batches": trainer.limit_train_batches,
        "patience": getattr(trainer.early_stopping_callback, "patience", None),
        "precision": trainer.precision,
        "fit_seed": run_seed(),
    }


def _clipped_by(trainer: L.Trainer) -> str | None:
    """What gradients are clipped by, "norm" or "value"; None where they are not."""
    named: Any = trainer.gradient_clip_algorithm or "norm"
    return str(getattr(named, "value", named)) if trainer.gradient_clip_val else None


def check_training(
    objective: Callable[..., Tensor], warmup_epochs: int, learning_rate: float, **samples: int
) -> None:
    """Raise what :class:`scmixvi.image.lightning.VAETraining` raises for these arguments.

    Parameters
    ----------
    objective, warmup_epochs, learning_rate
        Of the training.
    **samples
        Numbers of samples, by name.
    """
    for name, n_samples in samples.items():
        check_whole(f"{name} (L)", n_samples)
    check_whole("warmup_epochs", warmup_epochs, least=0)
    if not 0 < learning_rate < float("inf"):
        raise ValueError(f"learning_rate must be positive and finite, but it is {learning_rate}.")
    try:
        taken = inspect.signature(objective)
    except (TypeError, ValueError) as error:  # built in, compiled to a script, or no function
        raise ValueError(
            f"what the objective {name_of(objective)} takes cannot be read: pass a function that "
            f"calls it with {', '.join(BoundTerms._fields)}, as scmixvi.core.miselbo has them."
        ) from error
    try:
        taken.bind(*BoundTerms._fields)
    except TypeError as error:
        raise ValueError(
            f"the objective must take {', '.join(BoundTerms._fields)}, as scmixvi.core.miselbo "
            f"does, but {name_of(objective)} does not: {error}."
        ) from error
    takes_any = any(p.kind is p.VAR_KEYWORD for p in taken.parameters.values())
    if warmup_epochs and not takes_any and "beta" not in taken.parameters:
        raise ValueError(
            f"the objective {name_of(objective)} takes no KL weight (beta): pass "
            "warmup_epochs=0 with it."
        )


def name_of(objective: Callable[..., Tensor]) -> str:
    """The same in every process: a function's name, with what a partial fixes, or a class's."""
    if isinstance(objective, partial):
        fixed = [*map(_named, objective.args)]
        fixed += [f"{name}={_named(value)}" for name, value in sorted(objective.keywords.items())]
        return f"{name_of(objective.func)}({', '.join(fixed)})"
    return getattr(objective, "__name__", type(objective).__name__)


def _named(value: Any) -> str:
    """A value of a partial: where a function lies in memory is another place in every process."""
    return name_of(value) if callable(value) else repr(value)
