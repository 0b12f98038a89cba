"""Checkpoint files: written whole or not at all, and read without running code from them."""

import inspect
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor

from scmixvi._messages import is_whole
from scmixvi.image import recipes
from scmixvi.image.vae import ImageVAE

MAY_CHANGE = ("learning_rate", "patience", "precision", "compile", "fit_seed")
"""Settings that a training may change when it goes on from a checkpoint."""


def write_checkpoint(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Save tensors and plain values; an interrupted write leaves the file that was there before.

    The bytes go to a temporary file in the same folder, reach the disk, and only then take the
    name `path` in one step.

    Parameters
    ----------
    checkpoint
        What to save.
    path
        Where; missing folders are made.

    Raises
    ------
    ValueError
        If it holds what :func:`read_checkpoint` would refuse.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        try:
            torch.load(part, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{path} was not written, for it could not be read again: "
                "put only tensors and plain values into a checkpoint."
            ) from error
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load tensors and plain values onto the CPU; a file that holds code is refused.

    Parameters
    ----------
    path
        A file from :func:`write_checkpoint`.

    Returns
    -------
    What was saved.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no checkpoint, is damaged (checksums are compared), or holds more than tensors
        and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}.")
    try:
        with ZipFile(path) as parts:
            if parts.testzip():  # torch does not look at the sums that it writes
                raise BadZipFile("a checksum is wrong")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what damaged bytes raise may be anything
        raise ValueError(
            f"{path} is no readable checkpoint (damaged, cut short, or holding more than tensors "
            "and plain values): use another one, such as the best in the same folder."
        ) from error
    weights = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise ValueError(
            f"{path} holds no weights (tensors by name as 'state_dict'), so it is no checkpoint."
        )
    origin = checkpoint.get("origin")
    if origin is not None and not _is_origin(origin):
        raise ValueError(
            f"{path} does not say rightly how its model was made: 'origin' must hold a recipe's "
            "name, n_components and a dictionary of sizes."
        )
    for name, is_right in _ENTRIES.items():
        if name in checkpoint and not is_right(checkpoint[name]):
            raise ValueError(
                f"{path} was changed or is damaged, for its entry {name!r} is of another kind: "
                "use another checkpoint, such as the best in the same folder."
            )
    return checkpoint


def begun_epochs(checkpoint: dict[str, Any]) -> int:
    """How many epochs have had a step, the last perhaps not all."""
    return checkpoint.get("epoch", -1) + _is_open(_part(checkpoint, "loops", "fit_loop"))


def _is_open(fit_loop: dict[str, Any]) -> bool:
    """Whether Lightning has begun an epoch that it does not count yet: so it says, or nothing."""
    progress = _part(fit_loop, "epoch_progress", "current")
    return progress.get("ready", 1) > progress.get("completed", 0)


def finished_epochs(checkpoint: dict[str, Any]) -> int:
    """How many epochs have had all their steps; Lightning counts one after its callbacks."""
    fit_loop = _part(checkpoint, "loops", "fit_loop")
    is_open = _is_open(fit_loop)
    had_all = _part(fit_loop, "epoch_loop.batch_progress").get("is_last_batch") is True
    return checkpoint.get("epoch", 0) + (is_open and had_all)


def _part(entries: dict[str, Any], *names: str) -> dict[str, Any]:
    """The dictionary at these names; an empty one where there is none."""
    for name in names:
        found = entries.get(name)
        entries = found if isinstance(found, dict) else {}
    return entries


def at_home(checkpoint: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """Name in a checkpoint of Lightning's the folder where it lies now, with what lies beside it.

    Lightning forgets the best epoch of a training whose folder has moved. And it removes the file
    that a checkpoint calls the best when a better one is there: names that lead out of a folder,
    or are of no checkpoint, are left out.

    Parameters
    ----------
    checkpoint
        What :func:`read_checkpoint` returned; it is not changed.
    path
        Of the file.
    """
    path, here = Path(path), str(Path(path).parent.resolve())
    states = {k: _without_other_files(s) for k, s in checkpoint.get("callbacks", {}).items()}
    files = {k: s for k, s in states.items() if isinstance(s, dict) and s.get("best_model_path")}
    own = (
        s["dirpath"]
        for s in files.values()
        if "dirpath" in s and Path(s["best_model_path"]).name == path.name
    )
    there = next(own, here)
    for key, state in files.items():
        kept = Path(here, Path(state["best_model_path"]).name).is_file()
        if state.get("dirpath") == there and kept:
            paths = {k: v.replace(there, here) for k, v in state.items() if isinstance(v, str)}
            best = {k.replace(there, here): v for k, v in state.get("best_k_models", {}).items()}
            states[key] = state | paths | {"best_k_models": best}
    return checkpoint | {"callbacks": states}


def _without_other_files(state: Any) -> Any:
    """State of a ModelCheckpoint without what is no checkpoint's name; any other as it is."""
    if not isinstance(state, dict) or not isinstance(state.get("best_model_path"), str):
        return state
    found: dict[str, Any] = {
        name: "" for name in _FILES if name in state and not _is_file_of_ours(state[name])
    }
    best = state.get("best_k_models")
    if isinstance(best, dict):
        found["best_k_models"] = {k: v for k, v in best.items() if _is_file_of_ours(k)}
    return state | found


def _is_file_of_ours(name: Any) -> bool:
    return isinstance(name, str) and name.endswith(".ckpt") and ".." not in Path(name).parts


def plain(value: Any, name: str = "value") -> Any:
    """Turn arrays, tensors, ranges and other sequences into tuples of plain values.

    Parameters
    ----------
    value
        None, a number, a text, or sequences, arrays and mappings of them.
    name
        What to call it when it is refused.

    Raises
    ------
    ValueError
        If it is something else, such as a function: a checkpoint cannot hold that.
    """
    if hasattr(value, "tolist"):  # of numpy and torch
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(item, str(key)) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(plain(item, name) for item in value)
    if type(value) not in (type(None), bool, int, float, str):
        raise ValueError(
            f"a checkpoint cannot hold {name} = {value!r}: give numbers, text or sequences of "
            "them, or make the model by hand and train it with VAETraining(model)."
        )
    return value


def check_fit(saved: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Raise ValueError, naming the first difference, unless names and shapes agree."""
    for name in [*wanted, *saved]:
        here, there = wanted.get(name), saved.get(name)
        if here is None or there is None or here.shape != there.shape:
            described = ["none" if t is None else str(tuple(t.shape)) for t in (there, here)]
            raise ValueError(
                "the checkpoint is of another model: parameter "
                f"{name!r} has shape {described[0]} in it and {described[1]} here. "
                "Use the recipe, n_components and sizes that it was trained with."
            )


def check_origin(saved: dict[str, Any] | None, wanted: dict[str, Any] | None) -> None:
    """Raise ValueError, naming the first difference, unless both models were made alike.

    Mixture weights and other settings are in no parameter, so that :func:`check_fit` cannot see
    them. A size that is left out counts as its default; None on either side fits everything.
    """
    if saved is None or wanted is None:
        return
    there, here = (_settings(**plain(origin)) for origin in (saved, wanted))
    for name in [*here, *there]:
        if here.get(name) != there.get(name):
            raise ValueError(
                f"the checkpoint is of another model: {name} is {there.get(name)!r} in it and "
                f"{here.get(name)!r} here. Use the recipe, n_components and sizes that it was "
                "trained with."
            )


def check_settings(saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise ValueError, naming the first difference, unless a training goes on as it began.

    It may go on with another learning rate, patience, precision, mode of compilation or seed (the
    random state is the checkpoint's). What is missing on either side is not compared.
    """
    for name in [name for name in wanted if name in saved and name not in MAY_CHANGE]:
        if saved[name] != wanted[name]:
            raise ValueError(
                f"the checkpoint is of another training: {name} is {saved[name]!r} in it and "
                f"{wanted[name]!r} here. Go on with the settings that it began with (the same "
                "--config and options), or start another training in another folder."
            )


def build_vae(recipe: str, n_components: int, sizes: dict[str, Any]) -> ImageVAE:
    """Call a recipe by name.

    Parameters
    ----------
    recipe
        Name of a function in :mod:`scmixvi.image.recipes`.
    n_components
        S.
    sizes
        Further arguments of the recipe.

    Raises
    ------
    ValueError
        If the recipe or a size is unknown (the known ones are listed), or a value is wrong.
    """
    maker = recipes.by_name(recipe)
    known = _sizes(maker)
    unknown = [name for name in sizes if name not in known]
    if unknown:
        raise ValueError(
            f"the recipe {recipe!r} has no size {unknown[0]!r}: known are {', '.join(known)}."
        )
    return maker(n_components, **sizes)


def load_vae(path: str | Path) -> ImageVAE:
    """Build the model of a checkpoint again and load its weights.

    Parameters
    ----------
    path
        A checkpoint of a training that began with :func:`recipe_training`.

    Returns
    -------
    The model, on the CPU and in evaluation mode.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it cannot be read, or does not say how its model was made.
    """
    checkpoint = read_checkpoint(path)
    if not checkpoint.get("origin"):
        raise ValueError(f"{path} does not say which recipe made its model: build it by hand.")
    vae = build_vae(**checkpoint["origin"])
    found = checkpoint["state_dict"].items()  # an objective may have weights of its own
    weights = {k.removeprefix("vae."): tensor for k, tensor in found if k.startswith("vae.")}
    check_fit(weights, vae.state_dict())
    vae.load_state_dict(weights)
    return vae.eval()


def _is_random_state(state: Any) -> bool:
    cpu = state.get("cpu") if isinstance(state, dict) else None
    return isinstance(cpu, Tensor) and cpu.dtype == torch.uint8 and cpu.shape == _STATE_SHAPE


def _has_seed(settings: Any) -> bool:
    """Whether settings are a dictionary whose seed, if any, is one."""
    seed = settings.get("fit_seed") if isinstance(settings, dict) else "none"
    return seed is None or (isinstance(seed, int) and 0 <= seed < 2**32)


_STATE_SHAPE = torch.get_rng_state().shape
_FILES = ("best_model_path", "kth_best_model_path", "last_model_path")
_ENTRIES: dict[str, Callable[[Any], bool]] = {
    "settings": _has_seed,
    "random": _is_random_state,
    "callbacks": lambda states: isinstance(states, dict),
    "optimizer_states": lambda states: isinstance(states, list),
    "lr_schedulers": lambda states: isinstance(states, list),
    "loops": lambda states: isinstance(states, dict),
    "epoch": partial(is_whole, least=0),
    "global_step": partial(is_whole, least=0),
}


def _is_origin(origin: Any) -> bool:
    kinds = {"recipe": str, "n_components": int, "sizes": dict}
    return (
        isinstance(origin, dict)
        and origin.keys() == kinds.keys()
        and all(isinstance(origin[name], kind) for name, kind in kinds.items())
    )


def _settings(recipe: str, n_components: int, sizes: dict[str, Any]) -> dict[str, Any]:
    """Everything that a model was made by, defaults included, with plain values."""
    maker = recipes.by_name(recipe)
    return {"recipe": recipe, "n_components": n_components} | _sizes(maker) | sizes


def _sizes(maker: Callable[..., ImageVAE]) -> dict[str, Any]:
    """A recipe's sizes and their defaults; `**sizes` stands for those of `convolutional`."""
    named = dict(inspect.signature(maker).parameters)
    if named.pop("sizes", None) is not None:
        named |= inspect.signature(recipes.convolutional).parameters
    return {name: p.default for name, p in named.items() if name != "n_components"}
