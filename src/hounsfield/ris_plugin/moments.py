"""Who said what last: of each field of a record the newest event counts, whatever came first.

What a message leaves out it does not speak of (HL7 v2 2.5.3), so the last word is kept field by field. Of two
events of one moment the sender whose name sorts later counts, of two of one sender's the one that came later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from hounsfield.ris_plugin.records.base import Said

__all__ = ["NEVER", "at_last", "last_word", "newest"]

NEVER: Final = (-(1 << 63), "")


def last_word(said: Sequence[Said], field: str) -> tuple[int, str]:
    """The moment and the sender of what a field holds; NEVER when nobody spoke of it."""
    return next(((one.at_ns, one.sender) for one in said if field in one.fields), NEVER)


def at_last(said: Sequence[Said], now_ns: int) -> int:
    """When a person says what he says here: now, and after all that he was shown. A sender's clock may be
    ahead of ours, or ours may have been put back."""
    return max(now_ns, *(one.at_ns + 1 for one in said), 0)


def newest(
    said: Sequence[Said], fields: Mapping[str, Any], at: tuple[int, str]
) -> tuple[dict[str, Any], tuple[Said, ...]]:
    """Those ``fields`` of which nobody has said anything newer, and who said what last then."""
    if not said:  # it is new
        return dict(fields), (
            Said(at_ns=at[0], sender=at[1], fields=tuple(sorted(fields))),
        ) if fields else ()
    taken = {name: value for name, value in fields.items() if at >= last_word(said, name)}
    words: dict[tuple[int, str], set[str]] = {}
    for one in said:
        words[one.at_ns, one.sender] = set(one.fields) - taken.keys()
    if taken:
        words.setdefault(at, set()).update(taken)
    kept = (
        Said(at_ns=moment, sender=sender, fields=tuple(sorted(names)))
        for (moment, sender), names in sorted(words.items())
        if names
    )
    return taken, tuple(kept)
