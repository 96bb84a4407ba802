"""Messages that go out: in order to each destination, again under the same MSH-10 until they are taken.

A message is a record before it is sent, and sent only once it is taken: killed in between, it goes out again.
Who cannot be reached, is silent, or says that it cannot now (AR, CE) is asked again, later and later; what
comes after waits, since receivers rely on the order. What a receiver calls wrong (AE, CR, AR for its header)
would be wrong for ever: it is set aside as dead for people, and the next one goes. Tried again it goes before
those that came after it.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from functools import partial
from typing import Final

import structlog
import trio
from msgspec import structs

from hounsfield.archive.errors import where
from hounsfield.archive.plugins import Change, EngineError, SucceededError
from hounsfield.ris_plugin.context import Ris
from hounsfield.ris_plugin.errors import NotNowError, RisError, UnknownError
from hounsfield.ris_plugin.hl7.messages import Message as Answer
from hounsfield.ris_plugin.hl7.messages import read
from hounsfield.ris_plugin.hl7.mllp import Framer, MllpError, ask
from hounsfield.ris_plugin.records.base import NS
from hounsfield.ris_plugin.records.messages import DEAD, MESSAGE, SENT, WAITING, Message
from hounsfield.ris_plugin.settings import Hl7Destination

__all__ = ["Sender", "retry"]

log = structlog.get_logger(__name__)

LOOK_S: Final = 0.25
"""Between two looks for messages: one key of the index."""
CONNECT_S: Final = 10.0
ANSWER_BYTES_MAX: Final = 1 << 20
STRAY_ANSWERS_MAX: Final = 16
"""Answers to something else that are passed over before ours: late ones of a receiver that was slow."""
REFUSALS_MAX: Final = 10
"""How often a receiver may say that it cannot now, until it means this message: others wait behind it."""
ERROR_CHARACTERS_MAX: Final = 200
TAKEN: Final = frozenset({"AA", "CA"})
WRONG: Final = frozenset({"AE", "CR"})
OF_HEADER: Final = frozenset({"200", "201", "202", "203"})
"""Errors of table 0357 that sending again does not mend."""


class AnotherAnswerError(MllpError):
    """What is answered is not what was sent."""


class Sender:
    """Sends to one destination; run by who leads."""

    def __init__(self, ris: Ris, to: Hl7Destination) -> None:
        self._ris = ris
        self._to = to
        self._stream: trio.abc.Stream | None = None
        self._framer = Framer(ANSWER_BYTES_MAX)

    async def run(self) -> None:
        """Send what waits, until cancelled."""
        try:
            while True:
                seconds = await self._next()
                if seconds:
                    await trio.sleep(seconds)
        finally:
            await self._hang_up()

    async def _next(self) -> float:
        """Send the first that waits; how long to wait before another look."""
        with self._ris.reading() as view:
            first = next(view.find(MESSAGE, WAITING, self._to.name, limit=1), None)
        if first is None:
            return LOOK_S
        message_id, one = first
        early = one.next_ns - self._ris.now_ns()
        # Later than any pause: the clock was put back since.
        if 0 < early <= self._ris.settings.hl7_retry_seconds_max * NS:
            return min(early / NS, LOOK_S * 4)
        try:
            answer = await self._ask(one)
            outcome = _outcome(answer, one)
        except (OSError, trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            outcome = partial(_later, why=_said(error))
            await self._hang_up()
        except RisError as error:
            outcome = partial(_later, why=str(error))
            await self._hang_up()
        try:
            await self._ris.commit(partial(self._note, message_id, outcome))
        except SucceededError:
            raise  # whoever leads now sends it again, under the same id
        except EngineError as error:  # sent, perhaps, and not known to be: again, under the same id
            log.error("a sent message cannot be noted", destination=self._to.name, **where(error))
            return self._ris.settings.hl7_retry_seconds
        return 0.0

    def _note(self, message_id: str, outcome: Outcome, change: Change) -> None:
        one = change.get(MESSAGE, message_id)
        if one is None or one.state != WAITING:
            return
        settings = self._ris.settings
        after = outcome(one, change.now_ns)
        if after.state == WAITING:
            doubled = settings.hl7_retry_seconds * 2 ** min(after.attempts - 1, 20)
            pause = min(doubled, settings.hl7_retry_seconds_max)
            after = structs.replace(after, next_ns=change.now_ns + int(pause * NS))
        change.put(MESSAGE, message_id, after)
        if after.state == DEAD:
            change.say("hl7-dead", {"message": message_id, "destination": one.destination})
            log.warning("a message was refused", destination=one.destination, what=one.kind)

    # ------------------------------------------------------------ the wire

    async def _ask(self, one: Message) -> Answer:
        """Send a message; its acknowledgement. A connection that has gone stale meanwhile is made anew."""
        fresh = self._stream is None
        try:
            return await self._ask_once(one)
        except (MllpError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            if fresh or isinstance(error, AnotherAnswerError):
                raise
            await self._hang_up()
            return await self._ask_once(one)

    async def _ask_once(self, one: Message) -> Answer:
        if self._stream is None:
            with trio.fail_after(CONNECT_S):
                self._stream = await connected(self._to)
            self._framer = Framer(ANSWER_BYTES_MAX)
        if not self._ris.archive.leads():
            raise SucceededError("another worker sends to this destination by now")
        strays = 0
        try:
            with trio.fail_after(self._to.answer_seconds):
                data = await ask(self._stream, self._framer, one.body)
                while strays < STRAY_ANSWERS_MAX:
                    answer = read(data)
                    msa = answer.first("MSA")
                    if msa is not None and msa.get(2) == one.control_id:
                        return answer
                    strays += 1
                    data = await ask(self._stream, self._framer, None)
        except trio.TooSlowError:
            if not strays:
                raise
        raise AnotherAnswerError("what the receiver answers names another message in MSA-2, or none")

    async def _hang_up(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)


async def connected(to: Hl7Destination) -> trio.abc.Stream:
    """A connection to a destination. Raises OSError, trio.BrokenResourceError for a handshake that fails."""
    stream: trio.abc.Stream = await trio.open_tcp_stream(to.host, to.port)
    if not to.tls:
        return stream
    try:
        context = ssl.create_default_context(cafile=to.tls_ca or None)
        if to.tls_certificate:
            context.load_cert_chain(to.tls_certificate, to.tls_key)
        secured = trio.SSLStream(stream, context, server_hostname=to.host, https_compatible=True)
        await secured.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return secured


# ---------------------------------------------------------------- what became of it

Outcome = Callable[[Message, int], Message]


def _outcome(answer: Answer, one: Message) -> Outcome:
    msa, err = answer.first("MSA"), answer.first("ERR")
    code = msa.get(1).upper() if msa is not None else ""
    if code in TAKEN:
        return _sent
    text = err.get(8) or err.get(3, 2) or err.get(1, 4, sub=2) if err is not None else ""
    why = " ".join(filter(None, (code, msa.get(3) if msa is not None else "", text)))
    numbers = {err.get(3), err.get(1, 4)} if err is not None else set()
    if code in WRONG or numbers & OF_HEADER or (code in {"AR", "CE"} and one.attempts + 1 >= REFUSALS_MAX):
        return partial(_dead, why=why)
    return partial(_later, why=why or "the answer has no acknowledgement code")


def _sent(one: Message, now_ns: int) -> Message:
    return structs.replace(one, state=SENT, sent_ns=now_ns, attempts=one.attempts + 1, error="")


def _later(one: Message, now_ns: int, *, why: str) -> Message:
    del now_ns
    return structs.replace(one, attempts=one.attempts + 1, error=why[:ERROR_CHARACTERS_MAX])


def _dead(one: Message, now_ns: int, *, why: str) -> Message:
    del now_ns
    return structs.replace(one, state=DEAD, attempts=one.attempts + 1, error=why[:ERROR_CHARACTERS_MAX])


def _said(error: BaseException) -> str:
    if isinstance(error, trio.TooSlowError):
        return "the receiver does not answer in time"
    if isinstance(error.__cause__, ssl.SSLError):
        return f"TLS: {error.__cause__.reason or 'the handshake failed'}"
    if isinstance(error, OSError):
        return f"the receiver cannot be reached: {error.strerror or type(error).__name__}"
    return "the connection broke off"


def retry(change: Change, message_id: str) -> Message:
    """Have a dead message sent again, at its place. RisError when it is none."""
    one = change.get(MESSAGE, message_id)
    if one is None:
        raise UnknownError("there is no such message")
    if one.state != DEAD:
        raise NotNowError(f"that message is {one.state}; a dead one is sent again")
    again = structs.replace(one, state=WAITING, attempts=0, next_ns=0)
    change.put(MESSAGE, message_id, again)
    return again
