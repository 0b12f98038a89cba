"""What error messages share."""

from collections.abc import Iterable


def listing(names: Iterable[object], at_most: int = 12) -> str:
    """What there is, for messages: the first names, and how many more."""
    names = list(map(str, names))
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return (", ".join(names[:at_most]) or "nothing") + more
