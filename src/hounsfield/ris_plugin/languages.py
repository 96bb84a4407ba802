"""Languages of texts, by their tags (RFC 5646)."""

from __future__ import annotations

import re
from typing import Final

from hounsfield.ris_plugin.errors import InvalidError

__all__ = ["UNDETERMINED", "checked", "is_tag", "primary"]

UNDETERMINED: Final = "und"
_TAG: Final = re.compile(
    r"[a-z]{2,3}(-[A-Za-z]{4})?(-([A-Za-z]{2}|[0-9]{3}))?(-[A-Za-z0-9]{5,8}){0,3}", re.ASCII
)


def is_tag(text: str) -> bool:
    """Whether that is a language's tag, with a script and a region where they matter: ``de``, ``pt-BR``,
    ``zh-Hant``."""
    return _TAG.fullmatch(text) is not None


def checked(text: str) -> str:
    """``text``, a tag or nothing. InvalidError."""
    if text and not is_tag(text):
        raise InvalidError("a language is a tag of RFC 5646, such as de or pt-BR", "language")
    return text


def primary(tag: str) -> str:
    """The language without script and region."""
    return tag.partition("-")[0]
