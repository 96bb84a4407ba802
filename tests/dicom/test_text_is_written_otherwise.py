"""Danger: text that is written in a character set reads as another text, here or in other implementations."""

from __future__ import annotations

import random
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import charset as theirs
from pydicom.valuerep import PersonName

from hounsfield.archive.dicom.text import character_set, decode
from hounsfield.archive.dicom.text_encoding import text_encoder

# PS3.5 H.3, I.2, J.3, J.4, K.2: the standard's own names and their bytes.
EXAMPLES = (
    (
        rb"\ISO 2022 IR 87",
        "Yamada^Tarou=山田^太郎=やまだ^たろう",
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
    ),
    (
        rb"ISO 2022 IR 13\ISO 2022 IR 87",
        "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
        b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J="
        b"\x1b$B$d$^$@\x1b(J^\x1b$B$?$m$&\x1b(J",
    ),
    (
        rb"\ISO 2022 IR 149",
        "Hong^Gildong=洪^吉洞=홍^길동",
        b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
    ),
    (
        rb"\ISO 2022 IR 58",
        "Zhang^XiaoDong=张^小东",
        b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab",
    ),
    (b"ISO_IR 100", "Äneas^Rüdiger", b"\xc4neas^R\xfcdiger"),
    (b"ISO_IR 126", "Διονυσιος", b"\xc4\xe9\xef\xed\xf5\xf3\xe9\xef\xf2"),
    (b"ISO_IR 127", "قباني^لنزار", b"\xe2\xc8\xc7\xe6\xea^\xe4\xe6\xd2\xc7\xd1"),
    (b"ISO_IR 138", "שרון^דבורה", b"\xf9\xf8\xe5\xef^\xe3\xe1\xe5\xf8\xe4"),
    (b"ISO_IR 144", "Люкceмбypг", b"\xbb\xee\xdace\xdc\xd1yp\xd3"),
    (b"ISO_IR 192", "Wang^XiaoDong=王^小東", "Wang^XiaoDong=王^小東".encode()),
    (b"GB18030", "Wang^XiaoDong=王^小东", b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab"),
)

#: What each set has, for random text.
LETTERS = {
    b"ISO_IR 100": "ÄÖÜäöüßéèñøþÿ",
    b"ISO_IR 101": "ŁłŐőŽžČč",
    b"ISO_IR 109": "ĦħĞğĴĵ",
    b"ISO_IR 110": "ĀāŅņŽž",
    b"ISO_IR 148": "ĞğİıŞş",
    b"ISO_IR 203": "ŠšŽžŒœŸ€",
    b"ISO_IR 144": "ИванЁПётр",
    b"ISO_IR 126": "Διονυσιος",
    b"ISO_IR 127": "قبانيلنزار",
    b"ISO_IR 138": "שרוןדבורה",
    b"ISO_IR 166": "สมชายใจดี",
    b"ISO_IR 13": "ﾔﾏﾀﾞﾛｳ",
    rb"\ISO 2022 IR 87": "山田太郎やまだたろう",
    rb"\ISO 2022 IR 87\ISO 2022 IR 159": "山田太郎鷗侔",
    rb"ISO 2022 IR 13\ISO 2022 IR 87": "ﾔﾏﾀﾞﾛｳ山田太郎やまだ",
    rb"\ISO 2022 IR 149": "洪吉洞홍길동",
    rb"\ISO 2022 IR 58": "张小东王",
    rb"ISO 2022 IR 100\ISO 2022 IR 144": "ÄöüßИванЁ",
    rb"ISO 2022 IR 100\ISO 2022 IR 126\ISO 2022 IR 144\ISO 2022 IR 101": "ÄöüßДионΔιονŁł",
    rb"\ISO 2022 IR 166\ISO 2022 IR 127": "สมชายقباني",
    b"GB18030": "王小东𠮷€ÄИ",
    b"GBK": "王小东乢",
    b"ISO_IR 192": "王小东𠮷€ÄИשרוןสม홍",
}
#: pydicom has no Latin 9, and leaves the escape sequence of GB2312 in the text that it reads.
NOT_THEIRS = {b"ISO_IR 203", rb"\ISO 2022 IR 58"}


@pytest.mark.parametrize(("declared", "name", "raw"), EXAMPLES)
def test_the_standards_own_names(declared: bytes, name: str, raw: bytes) -> None:
    assert text_encoder(declared).encode(name, "PN") == raw
    assert decode(raw, character_set(declared)) == (name, True)


@pytest.mark.parametrize("declared", LETTERS)
def test_what_is_written_is_read(declared: bytes) -> None:
    source = random.Random(declared)
    encoder, charset = text_encoder(declared), character_set(declared)
    letters = [*LETTERS[declared], *"ABxyz 09'-", *"^=^\\"]
    for _ in range(300):
        text = "".join(source.choices(letters, k=source.randrange(1, 24)))
        raw = encoder.encode(text, "PN")
        assert raw is not None, text
        assert decode(raw, charset) == (text, True)
        if declared not in NOT_THEIRS:
            terms = theirs.convert_encodings(declared.decode().split("\\"))
            values = [str(PersonName(value, terms)) for value in _values(raw, declared)]
            # Theirs leave out empty groups at a name's end.
            assert [value.rstrip("=") for value in values] == [
                value.rstrip("=") for value in text.split("\\")
            ]


def _values(raw: bytes, declared: bytes) -> list[bytes]:
    """Values of one element; in GB18030 and GBK a backslash may be half of a character."""
    if declared in {b"GB18030", b"GBK"}:
        return [value.encode(declared.decode()) for value in raw.decode(declared.decode()).split("\\")]
    return raw.split(b"\\")


@pytest.mark.parametrize("declared", sorted(LETTERS.keys() - NOT_THEIRS))
def test_what_others_write_is_what_we_write_where_both_can(declared: bytes) -> None:
    """Component by component: theirs knows no delimiters by itself."""
    source = random.Random(declared)
    encoder = text_encoder(declared)
    terms = theirs.convert_encodings(declared.decode().split("\\"))
    for _ in range(200):
        text = "".join(source.choices(LETTERS[declared], k=source.randrange(1, 8)))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                written = theirs.encode_string(text, terms)
            except (UnicodeError, UserWarning):
                continue
        ours = encoder.encode(text, "PN")
        assert ours is not None
        assert theirs.decode_bytes(ours, terms, set()) == theirs.decode_bytes(written, terms, set()) == text


@pytest.mark.parametrize(
    ("declared", "text"),
    [
        (b"", "Müller"),
        (b"ISO_IR 100", "Иван"),
        (b"ISO_IR 100", "Ž"),
        (b"ISO_IR 6", "é"),
        (b"ISO_IR 13", "¥"),
        (b"ISO_IR 13", "山"),
        (rb"\ISO 2022 IR 87", "홍길동"),
        (rb"\ISO 2022 IR 149", "Ж\U0001f600"),
        (b"ISO_IR 192", "\ud800"),
        (b"ISO_IR 999", "é"),
        (b"GBK", "\U00020bb7"),
    ],
)
def test_what_a_set_does_not_hold_is_refused(declared: bytes, text: str) -> None:
    assert text_encoder(declared).encode(text, "PN") is None


def test_other_attributes_are_ascii() -> None:
    assert text_encoder(b"ISO_IR 192").encode("Ä", "CS") is None
    assert text_encoder(b"ISO_IR 100").encode("A", "CS") == b"A"


@given(st.sampled_from(sorted(LETTERS)), st.text(max_size=20))
def test_any_text_reads_back_or_is_refused(declared: bytes, text: str) -> None:
    raw = text_encoder(declared).encode(text, "LO")
    assert raw is None or decode(raw, character_set(declared)) == (text, True)
