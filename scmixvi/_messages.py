"""What error messages share."""

from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any, NoReturn


def listing(names: Iterable[object], at_most: int = 12) -> str:
    """What there is, for messages: the first names, and how many more."""
    names = list(map(str, names))
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return (", ".join(names[:at_most]) or "nothing") + more


def quoted(values: Iterable[Any]) -> list[str]:
    """How Python writes values, numpy's own as plain ones: 'a', 3, True."""
    return [repr(v.item() if type(v).__module__ == "numpy" else v) for v in values]


def is_whole(value: object, least: int = 1) -> bool:
    """Whether it is a whole number, and not too small; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def is_number(value: object) -> bool:
    """Whether it is a real number, which may be infinite or NaN; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_whole(name: str, value: Any, least: int = 1) -> None:
    """Raise ValueError unless an argument is a whole number that is not too small."""
    if not is_whole(value, least):
        raise ValueError(f"{name} must be a whole number of at least {least}, but it is {value!r}.")


def raise_failed(sentence: str, error: Exception) -> NoReturn:
    """Raise ValueError with the sentence and what was found, for a part of the user's that failed.

    Sizes that do not fit are RuntimeError or ValueError itself, and so may be what a part says by
    itself: the sentence must hold for both. Types derived from them are of something else, as a
    lack of memory, a failing device or a method that is not there, and are raised as they are.
    """
    if type(error) not in (RuntimeError, ValueError):
        raise error
    raise ValueError(f"{sentence} ({str(error).rstrip('.')}).") from error
