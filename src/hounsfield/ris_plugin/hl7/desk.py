"""What people do with messages: try a file, look at letters and queues, replay, dismiss, send again."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

from msgspec import structs

from hounsfield.archive.plugins import Change, RecordError
from hounsfield.ris_plugin.context import Ris
from hounsfield.ris_plugin.errors import InvalidError, NotNowError, RisError, UnknownError
from hounsfield.ris_plugin.hl7.encoding import moment_text
from hounsfield.ris_plugin.hl7.messages import several
from hounsfield.ris_plugin.hl7.mllp import Framer, TooLong
from hounsfield.ris_plugin.hl7.receiving import Receiver
from hounsfield.ris_plugin.hl7.sending import retry
from hounsfield.ris_plugin.records.messages import DEAD, LETTER, MESSAGE, WAITING, Letter, Message

__all__ = ["dismissed", "operations", "split"]

LISTED_MAX: Final = 1000
STATES: Final = ("open", "waiting", "replayed", "dismissed")


def operations(ris: Ris, receivers: Mapping[str, Receiver]) -> dict[str, Callable[..., Awaitable[Any]]]:
    """The operations of the command line, JSON in and out."""
    return {
        "hl7-try": partial(try_file, receivers),
        "hl7-letters": partial(letters, ris),
        "hl7-replay": partial(replay, ris, receivers),
        "hl7-dismiss": partial(dismiss, ris),
        "hl7-queue": partial(queue, ris),
        "hl7-retry": partial(send_again, ris),
    }


# ---------------------------------------------------------------- trying


async def try_file(receivers: Mapping[str, Receiver], data: str, listener: str = "") -> list[dict[str, Any]]:
    """What each message of a file (base64) would do and be answered at a listener; nothing is changed."""
    receiver = _receiver(receivers, listener)
    try:
        content = base64.b64decode(data, validate=True)
    except (ValueError, binascii.Error):
        raise InvalidError("the file's content is to be base64", "data") from None
    found = list(split(content))
    if not found:
        raise InvalidError("the file has no message: none begins with MSH", "data")
    return [{"message": at, **await receiver.dry_run(one)} for at, one in enumerate(found, 1)]


def split(content: bytes) -> Iterator[bytes]:
    """The messages of a file: as they go over the wire, or one after another."""
    if b"\x0b" in content and b"\x1c" in content:
        for one in Framer(len(content)).feed(content):
            if not isinstance(one, TooLong):
                yield one
        return
    if b"\0" in content[:2]:
        yield content  # UTF-16: one
        return
    yield from several(content)


# ---------------------------------------------------------------- letters


async def letters(ris: Ris, state: str = "open", limit: int = 100, letter: str = "") -> list[dict[str, Any]]:
    """Messages that could not be applied, or wait for what they speak of, the oldest first. One ``letter``
    alone: with its text."""
    if letter:
        with ris.reading() as view:
            one = view.get(LETTER, letter)
        if one is None:
            raise UnknownError("there is no such letter")
        text = one.body.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
        return [{**_letter(ris, letter, one), "text": text}]
    if state not in STATES:
        raise InvalidError(f"letters are {', '.join(STATES)}", "state")
    with ris.reading() as view:
        found = list(view.find(LETTER, "state", state, limit=min(limit, LISTED_MAX)))
    return [_letter(ris, letter_id, one) for letter_id, one in found]


def _letter(ris: Ris, letter_id: str, one: Letter) -> dict[str, Any]:
    return {
        "letter": letter_id,
        "at": moment_text(one.at_ns, ris.zone),
        "state": one.state,
        "kind": one.kind,
        "sender": one.sender.replace("^", " ").strip(),
        "listener": one.listener,
        "control_id": one.control_id,
        "attempts": one.attempts,
        "error": one.error,
        "by": one.by,
    }


async def replay(
    ris: Ris, receivers: Mapping[str, Receiver], letter: str = "", actor: str = "administrator"
) -> list[dict[str, Any]]:
    """Apply a letter after all, or all that are open, the oldest first; what was done, or why not."""
    with ris.reading() as view:
        ids = [letter] if letter else view.ids(LETTER, "state", "open", limit=LISTED_MAX)
        found = [(each, view.get(LETTER, each)) for each in ids]
    done = []
    for letter_id, one in found:
        if one is None:
            raise UnknownError("there is no such letter")
        try:
            done.append(await _receiver(receivers, one.listener).replay(letter_id, actor))
        except (RisError, RecordError) as error:
            if letter:
                raise
            done.append({"letter": letter_id, "done": [], "error": str(error)})
    return done


async def dismiss(ris: Ris, letter: str, actor: str = "administrator") -> dict[str, Any]:
    """Say that a letter need not be applied. It stays to be looked at."""
    return _letter(ris, letter, await ris.commit(partial(dismissed, letter, actor)))


def dismissed(letter: str, actor: str, change: Change) -> Letter:
    """The letter, which need not be applied."""
    one = change.get(LETTER, letter)
    if one is None:
        raise UnknownError("there is no such letter")
    if one.state not in {"open", "waiting"}:
        raise NotNowError(f"that letter was {one.state} already")
    gone = structs.replace(one, state="dismissed", by=actor)
    change.put(LETTER, letter, gone)
    return gone


def _receiver(receivers: Mapping[str, Receiver], listener: str) -> Receiver:
    if listener:
        if listener not in receivers:
            raise UnknownError(
                f"there is no HL7 listener {listener!r}; there are: {', '.join(receivers) or 'none'}"
            )
        return receivers[listener]
    if not receivers:
        raise UnknownError("no HL7 listener is configured: add one to [plugins.ris] hl7_listeners")
    return next(iter(receivers.values()))


# ---------------------------------------------------------------- what goes out


async def queue(ris: Ris, destination: str = "", state: str = "", limit: int = 100) -> list[dict[str, Any]]:
    """Messages that wait or were refused, by destination, in the order in which they go out."""
    states = (state,) if state else (DEAD, WAITING)
    names = [one.name for one in ris.settings.hl7_destinations if destination in {"", one.name}]
    if not names:
        raise UnknownError("there is no such HL7 destination")
    found: list[dict[str, Any]] = []
    with ris.reading() as view:
        for name in names:
            for each in states:
                for message_id, one in view.find(MESSAGE, each, name, limit=min(limit, LISTED_MAX)):
                    found.append(_message(ris, message_id, one))
    return found


def _message(ris: Ris, message_id: str, one: Message) -> dict[str, Any]:
    return {
        "message": message_id,
        "destination": one.destination,
        "number": one.number,
        "kind": one.kind,
        "state": one.state,
        "made": moment_text(one.made_ns, ris.zone),
        "attempts": one.attempts,
        "next": moment_text(one.next_ns, ris.zone) if one.state == WAITING else "",
        "sent": moment_text(one.sent_ns, ris.zone),
        "error": one.error,
    }


async def send_again(ris: Ris, message: str) -> dict[str, Any]:
    """Have a message that was refused sent again, at its place in the order."""
    return _message(ris, message, await ris.commit(partial(retry, message_id=message)))
