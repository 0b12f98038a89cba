"""Model files: read only what is data, replace only by what is whole."""

import os
import pickle
import re
from types import BuiltinFunctionType, SimpleNamespace
from typing import Any

import torch
from scvi.data._download import _download
from scvi.model.base._constants import SAVE_KEYS

# Functions of torch, and of torch.nn.functional, that a model may be told to use as an activation.
ELEMENT_WISE = ("abs", "celu", "erf", "exp", "exp2", "expm1", "relu", "selu", "sigmoid", "tanh")
ACTIVATIONS = (
    r"celu|elu|hardsigmoid|hardswish|hardtanh|leaky_relu|mish|relu|relu6|selu|sigmoid|silu"
    r"|softplus|softsign|tanh|tanhshrink"
)

# What a model saved by scvi-tools may hold besides tensors and plain containers: arrays, tables
# of the training history, categories, activations and scvi-tools' own dictionaries. None of these
# runs code of the file's choosing when it is unpickled.
DATA_CLASSES = re.compile(
    r"numpy\.(ndarray|dtype|core\.multiarray\._reconstruct|core\.multiarray\.scalar"
    r"|_core\.multiarray\._reconstruct|_core\.multiarray\.scalar|_core\.numeric\._frombuffer"
    r"|core\.numeric\._frombuffer|dtypes\.\w+)"
    r"|pandas\.(DataFrame|Series|\w*Index|\w+Dtype|arrays\.\w+)"
    r"|pandas\.core\.frame\.DataFrame|pandas\.core\.series\.Series"
    r"|pandas\.core\.indexes\.(base\._new_Index|\w+\.\w*Index)"
    r"|pandas\.core\.internals\.(managers\.(BlockManager|SingleBlockManager)|blocks\.new_block)"
    r"|pandas\._libs\.internals\._unpickle_block"
    r"|pandas\.core\.arrays\.\w+\.\w+(Array|Dtype)|pandas\.core\.dtypes\.dtypes\.\w+Dtype"
    r"|pandas\._libs\.arrays\.__pyx_unpickle_NDArrayBacked"
    r"|pandas\.core\.arrays\.string_\.\w+|pandas\.core\.strings\.\w+|pandas\._libs\.missing\._?\w+"
    r"|scvi\.utils\._attrdict\.attrdict|builtins\.(bytes|dict|list|tuple|slice|complex|bytearray|set|frozenset|object)"
    r"|collections\.(OrderedDict|defaultdict|Counter)|copyreg\._reconstructor"
    r"|torch\.distributions\.constraints\._\w+|torch\.nn\.modules\.activation\.\w+"
    r"|datetime\.(date|datetime|time|timedelta|timezone)|pandas\.(_libs\.interval\.)?Interval"
    r"|pandas\._libs\.tslibs\.(timestamps\._unpickle_timestamp|timedeltas\._timedelta_unpickle)"
    r"|torch\.nn\.modules\.linear\.Identity|torch\._C\._nn\.(gelu|log_sigmoid|softplus|softshrink)"
    rf"|torch\.nn\.functional\.({ACTIVATIONS})|scmixvi\.singlecell\._files\.element_wise"
)


def element_wise(name: str) -> Any:
    """One of torch's functions of a number, by its name: how a model file refers to it."""
    if name not in ELEMENT_WISE:
        raise ValueError(f"{name!r} is none of torch's {', '.join(ELEMENT_WISE)}.")
    return getattr(torch, name)


class _Pickler(pickle.Pickler):
    """Python's refers to torch's functions by `getattr`, which could get anything."""

    def reducer_override(self, value: Any) -> Any:
        """How to write a value: NotImplemented is as usual."""
        if not isinstance(value, BuiltinFunctionType) or value.__name__ not in ELEMENT_WISE:
            return NotImplemented
        name = value.__name__
        return (element_wise, (name,)) if value is getattr(torch, name) else NotImplemented


PICKLING = SimpleNamespace(**vars(pickle) | {"Pickler": _Pickler})  # torch.save's `pickle_module`


def _foreign_names(path: str) -> list[str]:
    """What a model file names besides data; raises ValueError if it is none."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception as error:
        raise ValueError(
            f"{path} is damaged or not a saved model: save the model again or fetch a whole copy."
        ) from error
    return sorted(name for name in names if not DATA_CLASSES.fullmatch(name))


def check_staged_file(dir_path: str, prefix: str | None = None) -> None:
    """Raise ValueError if :func:`check_model_file` would refuse a file just written."""
    foreign = _foreign_names(_path(dir_path, prefix))
    if foreign:
        raise ValueError(
            f"the model is not saved, for loading would refuse its file: it names "
            f"{', '.join(foreign)}. Use categories that are strings, numbers, dates or intervals, "
            "and activations of torch.nn or torch.nn.functional."
        )


def check_model_file(
    dir_path: str, prefix: str | None = None, backup_url: str | None = None
) -> None:
    """Raise unless a saved model is whole and holds nothing but data.

    scvi-tools unpickles model files, and unpickling runs whatever the file names. This lists the
    names without running any, and refuses the file if one is not a known container of data.

    Parameters
    ----------
    dir_path, prefix, backup_url
        As given to :meth:`scvi.model.SCVI.load`.

    Raises
    ------
    ValueError
        If the file is damaged, is not a saved model, or would run code when loaded.
    """
    path = _path(dir_path, prefix)
    if backup_url is not None:
        _download(backup_url, dir_path, os.path.basename(path))
    if not os.path.exists(path):
        return  # scvi-tools says what is missing
    foreign = _foreign_names(path)
    if foreign:
        raise ValueError(
            f"{path} is not loaded, for it would run code: it names {', '.join(foreign)}, "
            "which `save` would not have written. Ask whoever made it for another."
        )


def _path(dir_path: str, prefix: str | None) -> str:
    return os.path.join(dir_path, f"{prefix or ''}{SAVE_KEYS.MODEL_FNAME}")


def replace_files(source: str, target: str) -> None:
    """Move every file of `source` into `target`, each in one step."""
    os.makedirs(target, exist_ok=True)
    for name in os.listdir(source):
        os.replace(os.path.join(source, name), os.path.join(target, name))
