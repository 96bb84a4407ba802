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
from hounsfield.ris_plugin.hl7.desk import dismissed
from hounsfield.ris_plugin.hl7.mapping import load
from hounsfield.ris_plugin.hl7.receiving import Receiver
from hounsfield.ris_plugin.hl7.sending import retry
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


class Applied(msgspec.Struct, frozen=True, kw_only=True):
    """What was done, in words."""

    done: tuple[str, ...]


def replay(change: Change, ask: Ask) -> Applied:
    """Apply a letter after all. What waited for it follows by itself within minutes."""
    key = ask.path["letter"]
    held = change.get(LETTER, key)
    listeners = {one.name: one for one in ask.ris.settings.hl7_listeners}
    if held is None or held.listener not in listeners:
        raise UnknownError("there is no such letter, or no longer the listener that it came to")
    listener = listeners[held.listener]
    done, _ = Receiver(ask.ris, listener, load(listener.mapping)).replayed(key, ask.actor.person, change)
    return Applied(done=tuple(done))


def dismiss_letter(change: Change, ask: Ask) -> None:
    """Say that a letter need not be applied."""
    dismissed(ask.path["letter"], ask.actor.person, change)


def send_again(change: Change, ask: Ask) -> None:
    """Have a message that was refused sent again, at its place in the order."""
    retry(change, ask.path["message"])


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
        "ReplayLetter", "POST", "/letters/{letter}/replay", TAG,
        "Apply a message after all; 409 or 422 says what forbids it, and the letter stays",
        replay, Applied, roles=ONLY,
    ),
    Endpoint(
        "DismissLetter", "POST", "/letters/{letter}/dismiss", TAG, "Say that a message need not be applied",
        dismiss_letter, roles=ONLY,
    ),
    Endpoint(
        "SendMessageAgain", "POST", "/messages/{message}/send-again", TAG,
        "Have a message that was refused sent again, at its place in the order",
        send_again, roles=ONLY,
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
