"""Grams: the short pieces of a text by which a wildcard finds it.

A text is cut into windows of three characters, the last one with :data:`END` behind the text, and into the
beginnings of its words, one and two characters after :data:`START`; each single character counts too, and
in names each pair. Where a window holds an ideograph, kana or Hangul it is two characters wide: those say
as much as three Latin ones, and names are that short.

What must hold, and the tests try to break: every gram of a pattern is a gram of every text that the pattern
matches (PS3.4 C.2.2.2.4), so that looking for grams never misses. Both sides must be folded in the same
way before.
"""

from __future__ import annotations

import re

START = "\x04"  # before a word
END = "\x03"  # behind a text

_SEPARATOR = re.compile(r"[\s^,=]")
_WORD_START = re.compile(r"(?<![^\s^,=])[^\s^,=]")
_WILD = re.compile(r"[*?]+")
#: Hangul, kana, ideographs with their iteration marks, and their half-width and compatibility forms.
_DENSE = re.compile(
    "[\u1100-\u11ff\u3005-\u3007\u3040-\u30ff\u3130-\u318f\u31f0-\u31ff\u3400-\u9fff\ua960-\ua97f"
    "\uac00-\ud7ff\uf900-\ufaff\uff66-\uffdc\U00020000-\U0003ffff]"
)


def of_text(text: str, *, name: bool = False) -> set[str]:
    """Every gram of one folded text; ``name``: which is one group of a person name."""
    found = {character for character in text if not _SEPARATOR.match(character)}
    if name:
        found.update(text[i : i + 2] for i in range(len(text) - 1))
    found.update(_windows(text + END))
    for start in _WORD_START.finditer(text):
        found.update(_word_start(text, start.start()))
    return found


def of_pattern(pattern: str, *, name: bool = False) -> set[str]:
    """Grams that every text matching a pattern with ``*`` and ``?`` has; none when nothing is certain.

    ``name``: the pattern is one group of a person name, and a text may lack the carets that the pattern has
    at the end of a component (``dicom.matching``), so that these ask for nothing.
    """
    found: set[str] = set()
    runs = _WILD.split(pattern)
    for i, run in enumerate(runs):
        ends = i == len(runs) - 1
        found |= _of_run(run.rstrip("^") if name and not ends else run, begins=i == 0, ends=ends, name=name)
    return found


def of_word_beginning(pattern: str) -> set[str]:
    """Grams that a name has when one of its words begins with ``pattern`` (fuzzy matching)."""
    return of_pattern(pattern + "*", name=True)


def of_component_ends(pattern: str) -> list[tuple[str, str]]:
    """Pairs of grams of which every name has one that matches a pattern with carets before a wildcard.

    ``DOE^*`` matches what goes on after the caret, and what ends before it.
    """
    found = []
    for run in _WILD.split(pattern)[:-1]:
        component = run.rstrip("^")
        if len(component) < 2 or component == run:
            continue
        goes_on, ends = (_windows(component[-2:] + last)[-1:] for last in ("^", END))
        if goes_on and goes_on[0].endswith("^"):
            found.append((goes_on[0], ends[0]))
    return found


def _of_run(run: str, *, begins: bool, ends: bool, name: bool) -> set[str]:
    """Grams of literal characters that stand together; at the text's beginning, or its end."""
    if not run:
        return set()
    found = set(_windows(run + END if ends else run))
    for start in _WORD_START.finditer(run):
        if begins or start.start() > 0:
            found.update(_word_start(run, start.start()))
    # Pairs and single characters say less than any window; they are asked for when there is none.
    if not found and name and len(run) == 2:
        return {run}
    return found or {character for character in run if not _SEPARATOR.match(character)}


def _windows(text: str) -> list[str]:
    if not _DENSE.search(text):
        return [text[i : i + 3] for i in range(len(text) - 2)]
    dense = [_DENSE.match(character) is not None for character in text]
    found = []
    for i in range(len(text) - 1):
        if dense[i] or dense[i + 1]:
            found.append(text[i : i + 2])
        elif i + 2 < len(text) and not dense[i + 2]:
            found.append(text[i : i + 3])
    return found


def _word_start(text: str, at: int) -> list[str]:
    first = text[at]
    if at + 1 == len(text) or _SEPARATOR.match(text[at + 1]):
        return [START + first]
    return [START + first, START + text[at : at + 2]]
