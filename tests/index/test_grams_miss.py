"""No gram of a pattern is missing from a text that the pattern matches, whatever both are made of."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hounsfield.archive.dicom.matching import (
    all_name_groups,
    matcher,
    name_groups,
    name_words,
    wildcard_matches,
)
from hounsfield.archive.index import grams
from hounsfield.archive.index.wanted import _cover

LETTERS = "ab^ =,山ヤ한é\u3000İßﬁ"
TEXTS = st.text(LETTERS, max_size=9)


@st.composite
def patterns_of(draw: st.DrawFn, text: str) -> str:
    """The text with runs and characters of it made wild: it always matches."""
    out, at = "", 0
    while at < len(text):
        kind = draw(st.integers(0, 5))
        if kind == 0:
            out += "*"
            at += draw(st.integers(0, 3))
        elif kind == 1:
            out += "?"
            at += 1
        else:
            out += text[at]
            at += 1
    return out + "*" * draw(st.integers(0, 1))


@settings(max_examples=600, deadline=None)
@given(st.data(), TEXTS)
def test_plain_text(data: st.DataObject, text: str) -> None:
    pattern = data.draw(patterns_of(text))
    assert wildcard_matches(pattern, text)
    assert grams.of_pattern(pattern.casefold()) <= grams.of_text(text.casefold()), pattern


@settings(max_examples=1500, deadline=None)
@given(st.data(), TEXTS)
def test_names(data: st.DataObject, name: str) -> None:
    key = data.draw(st.one_of(patterns_of(name), st.text(LETTERS + "*?", max_size=6)))
    key = data.draw(st.sampled_from((key, key + "^*", key + "^^?", key.upper())))
    if not key.strip("*") or not name or "\\" in key or not matcher("PN", key)(name):
        return
    wanted, held = name_groups(key), [group for group in all_name_groups(name) if group]
    have = [set[str](), *(grams.of_text(group, name=True) for group in held)]
    for group in wanted:
        if len(wanted) > 1 and not group.strip("*"):
            continue
        asked = grams.of_pattern(group, name=True)
        either = grams.of_component_ends(group)
        assert any(
            asked <= one and all(first in one or second in one for first, second in either) for one in have
        ), (key, name)


@settings(max_examples=600, deadline=None)
@given(st.data(), TEXTS)
def test_words_of_names(data: st.DataObject, name: str) -> None:
    words = name_words(name)
    if not words:
        return
    word = data.draw(st.sampled_from(words))
    key = data.draw(patterns_of(word[: data.draw(st.integers(1, len(word)))]))
    if key.strip("*") and matcher("PN", key, True)(name):
        have = set().union(*(grams.of_text(group, name=True) for group in all_name_groups(name)))
        for part in name_words(key):
            assert grams.of_word_beginning(part) <= have, (key, name)


@settings(max_examples=300, deadline=None)
@given(st.dates(), st.dates(), st.dates())
def test_a_range_of_days_is_covered_and_no_more(low, high, day) -> None:  # type: ignore[no-untyped-def]
    first, last, text = (f"{d.year:04d}{d.month:02d}{d.day:02d}" for d in (low, high, day))
    cover = _cover("", first, last)
    assert (first <= text <= last) is any(text.startswith(prefix) for prefix in cover)


@pytest.mark.parametrize(("pattern", "text"), [("DOE^*", "doe"), ("山^*", "山田"), ("*a^?", "xa^b")])
def test_what_a_component_ends_with(pattern: str, text: str) -> None:
    for first, second in grams.of_component_ends(pattern.lower()):
        assert ({first, second} & grams.of_text(text, name=True) != set()) == wildcard_matches(
            pattern.lower(), text + "^" * (pattern.count("^") - text.count("^"))
        )
