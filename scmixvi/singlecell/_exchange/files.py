"""Model files: read only what is data, replace only by what is whole."""

import os
import pickle
import re
import sys
from types import BuiltinFunctionType, FunctionType, ModuleType, SimpleNamespace
from typing import Any

import pandas as pd
import torch
from pandas.api.extensions import ExtensionArray
from scvi.data._constants import _MODEL_NAME_KEY
from scvi.data._download import _download
from scvi.model.base._constants import SAVE_KEYS

# Functions of torch, and of torch.nn.functional, that a model may be told to use as an activation.
ELEMENT_WISE = ("abs", "celu", "erf", "exp", "exp2", "expm1", "relu", "selu", "sigmoid", "tanh")
ACTIVATIONS = (
    r"celu|elu|hardsigmoid|hardswish|hardtanh|leaky_relu|mish|relu|relu6|selu|sigmoid|silu"
    r"|softplus|softsign|tanh|tanhshrink"
)

# What a model saved by scvi-tools may hold besides tensors and plain containers: arrays, tables
# of the training history, categories, activations and scvi-tools' own dictionaries, and the
# functions that make them again. None of these runs code of the file's choosing when it is
# unpickled. Of the first list a name counts if it is a class: a module has others' names in it.
DATA_CLASSES = re.compile(
    r"numpy\.(ndarray|dtype|dtypes\.\w+)"
    r"|pandas\.(DataFrame|Series|\w*Index|\w+Dtype|arrays\.\w+|(_libs\.interval\.)?Interval)"
    r"|pandas\.core\.frame\.DataFrame|pandas\.core\.series\.Series"
    r"|pandas\.core\.indexes\.\w+\.\w*Index"
    r"|pandas\.core\.internals\.managers\.(BlockManager|SingleBlockManager)"
    r"|pandas\.core\.arrays\.\w+\.\w+(Array|Dtype)|pandas\.core\.dtypes\.dtypes\.\w+Dtype"
    r"|pandas\.core\.arrays\.string_\.\w+|pandas\._libs\.missing\.NAType"
    r"|scvi\.utils\._attrdict\.attrdict|collections\.(OrderedDict|defaultdict|Counter)"
    r"|builtins\.(bytes|dict|list|tuple|slice|complex|bytearray|set|frozenset|object)"
    r"|datetime\.(date|datetime|time|timedelta|timezone)"
    r"|torch\.distributions\.constraints\._\w+|torch\.nn\.modules\.activation\.\w+"
    r"|torch\.nn\.modules\.linear\.Identity"
)
DATA_FUNCTIONS = re.compile(
    r"numpy\.(core|_core)\.(multiarray\._reconstruct|multiarray\.scalar|numeric\._frombuffer)"
    r"|pandas\.core\.indexes\.base\._new_Index|pandas\.core\.internals\.blocks\.new_block"
    r"|pandas\._libs\.(internals\._unpickle_block|arrays\.__pyx_unpickle_NDArrayBacked)"
    r"|pandas\._libs\.tslibs\.(timestamps\._unpickle_timestamp|timedeltas\._timedelta_unpickle)"
    r"|copyreg\._reconstructor|torch\._C\._nn\.(gelu|log_sigmoid|softplus|softshrink)"
    rf"|torch\.nn\.functional\.({ACTIVATIONS})|scmixvi\.singlecell\._exchange\.files\.element_wise"
    r"|pandas\.(_libs\.missing\.)?NA"
)

ENTRIES = (SAVE_KEYS.MODEL_STATE_DICT_KEY, SAVE_KEYS.VAR_NAMES_KEY, SAVE_KEYS.ATTR_DICT_KEY)
"""Entries of the dictionary that a model file is."""


def element_wise(name: str) -> Any:
    """One of torch's functions of a number, by its name: how a model file refers to it."""
    if name not in ELEMENT_WISE:
        raise ValueError(f"{name!r} is none of torch's {', '.join(ELEMENT_WISE)}.")
    return getattr(torch, name)


class _Pickler(pickle.Pickler):
    """Python's, but for what a reader would have to refuse, or might not have.

    Of torch's functions it refers to some by `getattr`, which could get anything. And pandas keeps
    strings in pyarrow where that is installed, whose own buffers a file could forge.
    """

    def reducer_override(self, value: Any) -> Any:
        """How to write a value: NotImplemented is as usual."""
        if isinstance(value, ExtensionArray) and _is_in_pyarrow(value):
            return _in_python(value).__reduce_ex__(pickle.DEFAULT_PROTOCOL)
        if not isinstance(value, BuiltinFunctionType) or value.__name__ not in ELEMENT_WISE:
            return NotImplemented
        name = value.__name__
        return (element_wise, (name,)) if value is getattr(torch, name) else NotImplemented


def _is_in_pyarrow(array: ExtensionArray) -> bool:
    dtype = array.dtype
    return isinstance(dtype, pd.StringDtype) and dtype.storage.startswith("pyarrow")


def _in_python(strings: ExtensionArray) -> ExtensionArray:
    """The same strings as Python's, and the same missing value, from pandas 2.3 on."""
    missing = getattr(strings.dtype, "na_value", pd.NA)
    dtype = pd.StringDtype("python") if missing is pd.NA else pd.StringDtype("python", missing)
    return strings.astype(dtype)


PICKLING = SimpleNamespace(**vars(pickle) | {"Pickler": _Pickler})  # torch.save's `pickle_module`


class _CheckingUnpickler(pickle._Unpickler):  # the one in Python, for its steps can be replaced
    """Python's, but it changes no class, function or module that the file names."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def load_build(self) -> None:
        """Give an object its state."""
        target = self.stack[-2]
        if isinstance(target, type | ModuleType | FunctionType | BuiltinFunctionType):
            raise _ChangesCode(f"a change of {getattr(target, '__name__', target)}")
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build


class _DataUnpickler(_CheckingUnpickler):
    """One that finds nothing but data."""

    def find_class(self, module: str, name: str) -> Any:
        """What a file names."""
        if not _is_data(f"{module}.{name}"):
            raise _ChangesCode(f"{module}.{name}")
        return super().find_class(module, name)


class _ChangesCode(Exception):
    """A file would change what is no data of its own."""


def _foreign_names(path: str, entries: tuple[str, ...] = ()) -> list[str]:
    """What a model file names or does besides data; raises ValueError if it is none.

    It is none if it has not all of the `entries`.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        foreign = sorted(name for name in names if not _is_data(name))
        if not foreign:
            unpickling = SimpleNamespace(**vars(pickle) | {"Unpickler": _CheckingUnpickler})
            content = torch.load(path, "cpu", unpickling, weights_only=False, mmap=True)
            if entries and not (isinstance(content, dict) and content.keys() >= set(entries)):
                raise ValueError("something else was saved")
    except _ChangesCode as change:
        return [str(change)]
    except Exception as error:
        raise ValueError(
            f"{path} is damaged or not a saved model: save the model again or fetch a whole copy."
        ) from error
    return foreign


def _is_data(name: str) -> bool:
    """Whether unpickling an object of this name is known to run nothing."""
    if DATA_FUNCTIONS.fullmatch(name):
        return True
    module, _, attribute = name.rpartition(".")
    found = getattr(sys.modules.get(module), attribute, None)
    return DATA_CLASSES.fullmatch(name) is not None and isinstance(found, type)


def check_staged_file(dir_path: str, prefix: str | None = None) -> None:
    """Raise ValueError if :func:`check_model_file` would refuse a file just written."""
    foreign = _foreign_names(_path(dir_path, prefix), ENTRIES)
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
    if os.path.exists(path):  # scvi-tools says what is missing
        _refuse(path, _foreign_names(path, ENTRIES))


def saved_class(dir_path: str, prefix: str | None = None) -> str | None:
    """Name of the class of a model whose file :func:`check_model_file` has passed.

    None where there is no file, or it does not say.
    """
    path = _path(dir_path, prefix)
    if not os.path.exists(path):
        return None
    attributes = torch.load(path, "cpu", weights_only=False, mmap=True)[SAVE_KEYS.ATTR_DICT_KEY]
    return attributes.get("registry_", {}).get(_MODEL_NAME_KEY)


def check_legacy_files(dir_path: str, prefix: str | None = None) -> None:
    """Raise ValueError as :func:`check_model_file`, of a model saved before scvi-tools 0.15."""
    weights, attributes = (
        os.path.join(dir_path, f"{prefix or ''}{name}")
        for name in (SAVE_KEYS.LEGACY_MODEL_FNAME, SAVE_KEYS.LEGACY_SETUP_DICT_FNAME)
    )
    if os.path.exists(weights):
        _refuse(weights, _foreign_names(weights))
    if os.path.exists(attributes):
        _refuse(attributes, _foreign_names_of_pickle(attributes))


def _refuse(path: str, foreign: list[str]) -> None:
    if foreign:
        raise ValueError(
            f"{path} is not loaded, for it would run code: it names {', '.join(foreign)}, "
            "which `save` would not have written. Ask whoever made it for another."
        )


def _foreign_names_of_pickle(path: str) -> list[str]:
    """As :func:`_foreign_names`, of a plain pickle; the first alone."""
    try:
        with open(path, "rb") as file:
            _DataUnpickler(file).load()
    except _ChangesCode as foreign:
        return [str(foreign)]
    except Exception as error:
        raise ValueError(f"{path} is damaged or not a saved model: fetch a whole copy.") from error
    return []


def _path(dir_path: str, prefix: str | None) -> str:
    return os.path.join(dir_path, f"{prefix or ''}{SAVE_KEYS.MODEL_FNAME}")


def replace_files(source: str, target: str) -> None:
    """Move every file of `source` into `target`, each in one step, and the model's last.

    Where one cannot be replaced (Windows keeps those that are open) the model is that of before.
    """
    os.makedirs(target, exist_ok=True)
    for name in sorted(os.listdir(source), key=lambda name: name.endswith(SAVE_KEYS.MODEL_FNAME)):
        os.replace(os.path.join(source, name), os.path.join(target, name))
