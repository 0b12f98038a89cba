"""Arguments of `train`: what is refused before the first step, and how the KL weight rises."""

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
from scvi import settings
from scvi.train import TrainingPlan

from scmixvi._messages import listing
from scmixvi.singlecell._checks.arguments import check_indices

# Share of the epochs over which the KL weight rises from 0 to 1. It multiplies the term that
# spreads the components, so it has to reach 1 well before training ends.
KL_WARMUP_SHARE = 0.25


def check_latent_key(latent_key: Any) -> None:
    """Raise ValueError for what cannot name a slot of obsm; None is none."""
    if latent_key is None:
        return
    if not isinstance(latent_key, str) or not latent_key or "/" in latent_key:
        raise ValueError(
            "latent_key must be the name of a slot of adata.obsm, without a slash, which files do "
            f"not keep, or None, not {latent_key!r}."
        )


def check_split(n_obs: int, arguments: dict[str, Any]) -> None:
    """Raise ValueError for a split without cells to train on or validate by, or of other cells."""
    splitting = arguments | (arguments.get("datasplitter_kwargs") or {})
    chosen = ("train_size", "external_indexing", "datamodule")
    batch_size = arguments.get("batch_size") or settings.batch_size
    if n_obs < min(3, batch_size) and all(splitting.get(name) is None for name in chosen):
        raise ValueError(
            f"adata has {n_obs} cell(s), of which none would be trained on: pass train_size=1.0, "
            "or train on more cells."
        )
    parts = splitting.get("external_indexing")
    for part in parts if isinstance(parts, list) else []:
        if np.size(part) and part is not None:
            check_indices(part, n_obs, "external_indexing")
    elsewhere = any(splitting.get(name) is not None for name in chosen[1:])
    without = splitting.get("train_size") == 1 or splitting.get("validation_size") == 0
    if arguments.get("check_val_every_n_epoch") is not None and without and not elsewhere:
        raise ValueError(
            "check_val_every_n_epoch asks for validation, and the split leaves no cells for it: "
            "pass train_size=0.9 and no validation_size, or leave check_val_every_n_epoch out."
        )


def named_arguments(train: Any, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a `train` method by name, its trainer's among them."""
    arguments = dict(inspect.signature(train).bind(*args, **kwargs).arguments)
    return arguments | arguments.pop("trainer_kwargs", {})


def check_precision(arguments: dict[str, Any]) -> None:
    """Raise ValueError if arguments of `train` would leave weights that are not float32."""
    precision = (_as_kwargs(arguments.get("trainer_config")) | arguments).get("precision")
    if str(precision) in ("16-true", "bf16-true", "64-true", "64"):
        raise ValueError(
            f"precision={precision!r} leaves weights of a type that the data do not have: use "
            "'32-true', '16-mixed' or 'bf16-mixed'."
        )


def check_plan(plan: type[TrainingPlan], plan_kwargs: Any, plan_config: Any) -> None:
    """Raise ValueError for options that a training plan does not have.

    scvi-tools hands those to the loss, which fails in the first step.
    """
    parameters = inspect.signature(plan).parameters.values()
    known = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name != "module"]
    unknown = sorted({*_as_kwargs(plan_kwargs), *_as_kwargs(plan_config)} - set(known))
    if unknown:
        raise ValueError(
            f"the training plan has no option {listing(unknown)}: in plan_kwargs and plan_config "
            f"it knows {listing(known, at_most=len(known))}."
        )


def with_kl_warmup(
    plan_kwargs: Any,
    plan_config: Any,
    max_epochs: int | None,
    is_trained: bool,
    max_steps: int | None = None,
) -> dict:
    """Return the caller's plan_kwargs with a warm-up that reaches 1, unless they chose their own.

    None is needed for a model that is trained already: at weight 0 its posteriors would shrink to
    points again.

    Parameters
    ----------
    plan_kwargs, plan_config
        As given to :meth:`scvi.model.SCVI.train`.
    max_epochs
        Epochs to train; None if it is not known, which leaves the warm-up to scvi-tools.
    is_trained
        Whether the model has been trained before.
    max_steps
        Steps to train, where these alone say when to end.
    """
    plan_kwargs = dict(_as_kwargs(plan_kwargs))
    chosen = {**_changed_from_default(plan_config), **plan_kwargs}
    if "n_epochs_kl_warmup" in chosen:
        return plan_kwargs
    if chosen.get("n_steps_kl_warmup") is not None:
        plan_kwargs["n_epochs_kl_warmup"] = None  # scvi-tools' 400 would go before the steps
    elif is_trained:
        plan_kwargs["n_epochs_kl_warmup"] = 0
    elif max_steps is not None:
        plan_kwargs["n_epochs_kl_warmup"] = None
        plan_kwargs["n_steps_kl_warmup"] = max(1, int(KL_WARMUP_SHARE * max_steps))
    elif max_epochs is not None:
        plan_kwargs["n_epochs_kl_warmup"] = int(KL_WARMUP_SHARE * max_epochs)
    return plan_kwargs


def _as_kwargs(plan: Any) -> dict:
    if plan is None:
        return {}
    if hasattr(plan, "to_kwargs"):
        return plan.to_kwargs()
    if not isinstance(plan, Mapping):
        raise TypeError(
            f"plan_kwargs and plan_config hold options by name, such as {{'lr': 1e-3}}, but one of "
            f"them is {plan!r}."
        )
    return dict(plan)


def _changed_from_default(plan_config: Any) -> dict:
    """What a plan_config sets; a config object also carries the defaults its user never chose."""
    given = _as_kwargs(plan_config)
    if plan_config is None or isinstance(plan_config, dict):
        return given
    defaults = inspect.signature(TrainingPlan).parameters
    return {k: v for k, v in given.items() if k not in defaults or defaults[k].default != v}
