"""How the KL weight rises, unless the user chose otherwise."""

import inspect
from typing import Any

from scvi.train import TrainingPlan

# Share of the epochs over which the KL weight rises from 0 to 1. It multiplies the term that
# spreads the components, so it has to reach 1 well before training ends.
KL_WARMUP_SHARE = 0.25


def with_kl_warmup(plan_kwargs: Any, plan_config: Any, max_epochs: int | None) -> dict:
    """Return the caller's plan_kwargs with a warm-up that reaches 1, unless they chose their own.

    Parameters
    ----------
    plan_kwargs, plan_config
        As given to :meth:`scvi.model.SCVI.train`.
    max_epochs
        Epochs to train; None if it is not known, which leaves the warm-up to scvi-tools.
    """
    plan_kwargs = dict(_as_kwargs(plan_kwargs))
    chosen = {**_changed_from_default(plan_config), **plan_kwargs}
    unset = not {"n_epochs_kl_warmup", "n_steps_kl_warmup"} & chosen.keys()
    if unset and max_epochs is not None:
        plan_kwargs["n_epochs_kl_warmup"] = int(KL_WARMUP_SHARE * max_epochs)
    return plan_kwargs


def _as_kwargs(plan: Any) -> dict:
    if plan is None:
        return {}
    return plan.to_kwargs() if hasattr(plan, "to_kwargs") else dict(plan)


def _changed_from_default(plan_config: Any) -> dict:
    """What a plan_config sets; a config object also carries the defaults its user never chose."""
    given = _as_kwargs(plan_config)
    if plan_config is None or isinstance(plan_config, dict):
        return given
    defaults = inspect.signature(TrainingPlan).parameters
    return {k: v for k, v in given.items() if k not in defaults or defaults[k].default != v}
