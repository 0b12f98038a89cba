"""Model files: read only what is data, replace only by what is whole."""

import os
import re

import torch
from scvi.data._download import _download
from scvi.model.base._constants import SAVE_KEYS

# What a model saved by scvi-tools may hold besides tensors and plain containers: arrays, tables
# of the training history, and scvi-tools' own dictionaries. None of these runs code of the file's
# choosing when it is unpickled.
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
    r"|torch\.(exp|nn\.functional\.softplus)|torch\._C\._nn\.softplus"
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
    path = os.path.join(dir_path, f"{prefix or ''}{SAVE_KEYS.MODEL_FNAME}")
    if backup_url is not None:
        _download(backup_url, dir_path, os.path.basename(path))
    if not os.path.exists(path):
        return  # scvi-tools says what is missing
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception as error:
        raise ValueError(
            f"{path} is damaged or not a saved model: save the model again or fetch a whole copy."
        ) from error
    foreign = sorted(name for name in names if not DATA_CLASSES.fullmatch(name))
    if foreign:
        raise ValueError(
            f"{path} is not loaded, for it would run code: it names {', '.join(foreign)}, "
            "which no model saved by this package does."
        )


def replace_files(source: str, target: str) -> None:
    """Move every file of `source` into `target`, each in one step."""
    os.makedirs(target, exist_ok=True)
    for name in os.listdir(source):
        os.replace(os.path.join(source, name), os.path.join(target, name))
