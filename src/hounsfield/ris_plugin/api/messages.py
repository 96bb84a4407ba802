"""HL7 messages over the API: what waits for whom, what could not be taken, what could not be acted on."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import msgspec

from hounsfield.archive.plugins import Change, View
from hounsfield.ris_plugin import following
from hounsfield.ris_plugin.actors import Role
from hounsfield.ris_plugin.api.endpoints import Ask, Endpoint, Paged, page_of, paged
from hounsfield.ris_plugin.api.models import item
from hounsfield.ris_plugin.api.sight import STAFF
from hounsfield.ris_plugin.errors import InvalidError, UnknownError
from hounsfield.ris_plugin.records.messages import (
    ASIDE,
    DEAD,
    LETTER,
    MESSAGE,
    SENT,
    WAITING,
    Aside,
    Letter,
    Message,
)

__all__ = ["ENDPOINTS"]

TAG: Final = "Messages"
ONLY: Final = (Role.ADMINISTRATOR,)
MessageItem: Final[Any] = item(Message)
LetterItem: Final[Any] = item(Letter)
AsideItem: Final[Any] = item(Aside)


class Queue(Paged, frozen=True, kw_only=True):
    """Of one destination in one state."""

    destination: str
    state: str = WAITING


class OfState(Paged, frozen=True, kw_only=True):
    """In one state."""

    state: str = "open"


class Text(msgspec.Struct, frozen=True, kw_only=True):
    """A message as it is; bytes that are no UTF-8 are shown as they are in Latin-1."""

    id: str
    version: int
    text: str


def queue(view: View, ask: Ask) -> Any:
    """Messages for a destination, in their order."""
    q: Queue = ask.query
    if q.state not in (WAITING, SENT, DEAD):
        raise InvalidError(f"a state is one of {WAITING}, {SENT}, {DEAD}", "state")
    if q.destination not in {one.name for one in ask.ris.settings.hl7_destinations}:
        raise UnknownError("there is no such destination in [[plugins.ris.hl7_destinations]]")
    return paged(
        ask, view, MESSAGE, (q.state, q.destination), partial(ask.item, view, MESSAGE), answer=MessageItem
    )


def message(view: View, ask: Ask) -> Text:
    """One of them. Who runs the system alone does not read reports."""
    held = view.get(MESSAGE, ask.path["message"])
    if held is not None and held.kind.startswith("ORU"):
        ask.actor.require(*STAFF, what="reading a message with a report")
    return _text(view, ask.path["message"], MESSAGE)


def letters(view: View, ask: Ask) -> Any:
    """Messages that came and could not be applied, the oldest first."""
    return paged(
        ask, view, LETTER, ("state", ask.query.state), partial(ask.item, view, LETTER), answer=LetterItem
    )


def letter(view: View, ask: Ask) -> Text:
    """One of them."""
    return _text(view, ask.path["letter"], LETTER)


def _text(view: View, key: str, kind: Any) -> Text:
    held = view.get(kind, key)
    if held is None:
        raise UnknownError("there is no such message")
    try:
        text = held.body.decode("utf-8")
    except UnicodeDecodeError:
        text = held.body.decode("latin-1")
    return Text(id=key, version=view.version(kind, key), text=text.replace("\r", "\n"))


def asides(view: View, ask: Ask) -> Any:
    """Events of the journal that a part of the RIS could not act on, the oldest first."""
    return paged(
        ask, view, ASIDE, ("state", ask.query.state), partial(ask.item, view, ASIDE), answer=AsideItem
    )


def dismiss(change: Change, ask: Ask) -> None:
    """Say that an event need not be acted on."""
    following.dismiss(change, ask.actor, ask.path["aside"])


ENDPOINTS: Final = (
    Endpoint(
        "ListMessages", "GET", "/messages", TAG, "HL7 messages for a destination, in their order",
        queue, page_of(MessageItem), Queue, roles=ONLY,
    ),
    Endpoint(
        "GetMessage", "GET", "/messages/{message}", TAG,
        "The text of a message",
        message, Text, roles=ONLY,
    ),
    Endpoint(
        "ListLetters", "GET", "/letters", TAG, "HL7 messages that came and could not be applied",
        letters, page_of(LetterItem), OfState, roles=ONLY,
    ),
    Endpoint(
        "GetLetter", "GET", "/letters/{letter}", TAG,
        "The text of a message that could not be applied",
        letter, Text, roles=ONLY,
    ),
    Endpoint(
        "ListAsides", "GET", "/asides", TAG, "Events that a part of the RIS could not act on",
        asides, page_of(AsideItem), OfState, roles=ONLY,
    ),
    Endpoint(
        "DismissAside", "POST", "/asides/{aside}/dismiss", TAG, "Say that an event need not be acted on",
        dismiss, roles=ONLY,
    ),
)  # fmt: skip
