"""Fuzz target: whatever bytes arrive, however cut, the result is events or ``RemoteProtocolError``.

Standalone: ``python tests/wire/fuzz_wire.py --seconds 60`` (or ``--cases N``, ``--seed N``). Each case takes
a valid conversation, damages it, cuts it, and checks that

* nothing but ``RemoteProtocolError`` is ever raised, at most once by the association;
* no more is held than the limits say;
* another cutting of the same bytes gives the same events;
* what was read can be written, and is then read as the same.

A failure prints the seed of its case; ``--case SEED`` runs that one again.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from hounsfield.archive.wire import (
    NEED_DATA,
    Abort,
    AssociateAccept,
    AssociateReject,
    AssociateRequest,
    Association,
    AsynchronousOperations,
    CCancelRequest,
    CEchoRequest,
    CFindRequest,
    Command,
    CommonExtendedNegotiation,
    CStoreRequest,
    CStoreResponse,
    DataFragment,
    ExtendedNegotiation,
    LocalProtocolError,
    MessageReader,
    NGetRequest,
    PresentationContext,
    PresentationResult,
    ReleaseReply,
    ReleaseRequest,
    RemoteProtocolError,
    Role,
    RoleSelection,
    TransportClosed,
    UnknownItem,
    UserIdentity,
    UserInformation,
    WireLimits,
    encode_command,
)
from hounsfield.archive.wire.pdu_reader import read_associate_accept, read_associate_request
from hounsfield.archive.wire.pdu_writer import write_pdu

LIMITS = WireLimits(
    receive_buffer_bytes=2048,
    associate_bytes_max=2048,
    command_bytes_max=512,
    dataset_bytes_max=8192,
    pdata_unlimited_bytes_max=1 << 20,
)
HELD_MAX = LIMITS.associate_bytes_max + 6 + LIMITS.command_bytes_max + 256
"""Receive buffer, command under way, and an answer of ours."""

IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
REQUEST = AssociateRequest(
    called_ae="ARCHIVE",
    calling_ae="FUZZ",
    contexts=(
        PresentationContext(1, "1.2.840.10008.1.1", (IMPLICIT,)),
        PresentationContext(3, CT, (EXPLICIT, IMPLICIT)),
    ),
    user=UserInformation(
        max_pdu_length=16384,
        implementation_class_uid="1.2.3",
        implementation_version="FUZZ",
        asynchronous_operations=AsynchronousOperations(2, 2),
        roles=(RoleSelection(CT, scu=True, scp=True),),
        extended=(ExtendedNegotiation(CT, b"\1\1"),),
        common_extended=(CommonExtendedNegotiation(CT, "1.2.840.10008.4.2", ("1.2",)),),
        identity=UserIdentity(2, b"user", b"pass", response_requested=True),
        unknown=(UnknownItem(0x70, b"??"),),
    ),
)
ACCEPT = AssociateAccept(
    called_ae="ARCHIVE",
    calling_ae="FUZZ",
    contexts=(PresentationResult(1, 0, IMPLICIT), PresentationResult(3, 0, EXPLICIT)),
    user=UserInformation(max_pdu_length=4096, identity_response=b"ok"),
)
COMMANDS: tuple[Command, ...] = (
    CEchoRequest(1),
    CStoreRequest(2, CT, "1.2.3.4", 0, "MOVER", 7),
    CStoreResponse(2, 0xA700, CT, "1.2.3.4", (0x00100010,), "full"),
    CFindRequest(3, "1.2.840.10008.5.1.4.1.2.2.1"),
    CCancelRequest(3),
    NGetRequest(4, CT, "1.2.3", (0x00100010, 0x00100020)),
)
LENGTHS = (
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\0\0\0\2",
    b"\0\0\0\6",
    b"\0\0\1\0",
    b"\x7f\xff\xff\xff",
    b"\0\4",
)


class BrokenError(AssertionError):
    """The invariant does not hold."""


@dataclass
class Totals:
    cases: int = 0
    events: int = 0
    errors: int = 0
    kinds: set[str] = field(default_factory=set)


def conversation(chance: random.Random, role: Role) -> bytearray:
    """What a peer could say from the beginning to the end."""
    pdus: list[Any] = [REQUEST if role is Role.ACCEPTOR else ACCEPT]
    if role is Role.REQUESTOR and chance.random() < 0.1:
        pdus = [AssociateReject(chance.choice((1, 2)), chance.choice((1, 2, 3)), chance.randrange(9))]
    for _ in range(chance.randrange(5)):
        context_id = chance.choice((1, 3))
        command = chance.choice(COMMANDS)
        raw = encode_command(command)
        cut = chance.randrange(len(raw)) if chance.random() < 0.3 else 0
        if cut:
            pdus.append(DataFragment(context_id, True, False, raw[:cut]))
        pdus.append(DataFragment(context_id, True, True, raw[cut:]))
        if command.has_dataset:
            for _ in range(chance.randrange(3)):
                pdus.append(DataFragment(context_id, False, False, chance.randbytes(chance.randrange(900))))
            pdus.append(DataFragment(context_id, False, True, chance.randbytes(chance.randrange(50))))
    abort = Abort(chance.randrange(4), chance.randrange(9))
    pdus.append(chance.choice((ReleaseRequest(), ReleaseReply(), abort)))
    return bytearray(b"".join(write_pdu(pdu) for pdu in pdus))


def damage(chance: random.Random, stream: bytearray) -> None:
    """Zero to four of the ways in which bytes go wrong."""
    for _ in range(chance.choice((0, 1, 1, 2, 4))):
        if not stream:
            return
        at = chance.randrange(len(stream))
        match chance.randrange(7):
            case 0:
                stream[at] = chance.randrange(256)
            case 1:
                stream[at] ^= 1 << chance.randrange(8)
            case 2:
                del stream[at : at + chance.choice((1, 2, 6, 100))]
            case 3:
                stream[at:at] = chance.randbytes(chance.choice((1, 2, 6, 100)))
            case 4:
                value = chance.choice(LENGTHS)
                stream[at : at + len(value)] = value
            case 5:
                other = chance.randrange(len(stream))
                stream[at:at] = stream[other : other + chance.randrange(200)]
            case _:
                del stream[at:]


def pieces(chance: random.Random, stream: bytes) -> list[bytes]:
    """The same bytes, cut."""
    if chance.random() < 0.1:
        return [stream[i : i + 1] for i in range(len(stream))]
    cuts = sorted(chance.randrange(len(stream) + 1) for _ in range(chance.randrange(12)))
    return [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True) if a < b]


def play(role: Role, pieces_in: list[bytes], moves: int) -> list[Any]:
    """Feed the pieces and behave as ``moves`` says; what was understood, fragments joined."""
    association, reader = Association(role, LIMITS), MessageReader(LIMITS)
    if role is Role.REQUESTOR:
        association.send(REQUEST)
    understood: list[Any] = []
    failures = 0
    reading = True
    for whole in pieces_in:
        piece = memoryview(whole)
        while piece:
            buffer = association.receive_buffer()
            if not buffer:
                raise BrokenError("no room to receive into, and events were taken")
            count = min(len(buffer), len(piece))
            buffer[:count] = piece[:count]
            piece = piece[count:]
            association.received(count)
            reading, failures = _drain(association, reader, moves, understood, reading, failures)
    association.received(0)
    reading, failures = _drain(association, reader, moves, understood, reading, failures)
    if failures > 1:
        raise BrokenError(f"the association raised {failures} times")
    understood.append((association.state, association.should_close, association.artim_running))
    return understood


def _drain(
    association: Association,
    reader: MessageReader,
    moves: int,
    understood: list[Any],
    reading: bool,
    failures: int,
) -> tuple[bool, int]:
    while True:
        held = len(association._incoming.data) + len(reader._command) + sum(map(len, association._out))
        if held > HELD_MAX:
            raise BrokenError(f"{held} bytes held, limit {HELD_MAX}")
        try:
            event = association.next_event()
        except RemoteProtocolError as error:
            failures += 1
            understood.append((str(error), error.reply))
            association.answer(error)
            continue
        if event is NEED_DATA:
            return reading, failures
        if isinstance(event, TransportClosed):
            understood.append(event)
            return reading, failures
        if isinstance(event, DataFragment):
            _join(understood, event)
            if reading:
                try:
                    reader.receive(event)
                except RemoteProtocolError as error:
                    # Not part of what is compared: another cutting finds a bad length earlier.
                    reading = False
                    if not isinstance(error.reply, Abort):
                        raise BrokenError("a message is not answered with a rejection") from error
        else:
            raw = write_pdu(event)
            if isinstance(event, AssociateRequest) and read_associate_request(raw[6:], LIMITS) != event:
                raise BrokenError("a request changes when it is written and read")
            if isinstance(event, AssociateAccept) and read_associate_accept(raw[6:], LIMITS) != event:
                raise BrokenError("an accept changes when it is written and read")
            understood.append(event)
            _move(association, event, moves)


def _join(understood: list[Any], event: DataFragment) -> None:
    before = understood[-1] if understood else None
    data = bytes(event.data)
    key = (event.context_id, event.is_command)
    if isinstance(before, DataFragment) and not before.last and (before.context_id, before.is_command) == key:
        data = bytes(understood.pop().data) + data
    understood.append(DataFragment(*key, event.last, data))


def _move(association: Association, event: Any, moves: int) -> None:
    """What our own side does: depends on the event and the case, never on the cuts."""
    try:
        if isinstance(event, AssociateRequest):
            if moves & 1:
                association.send(AssociateReject())
                return
            results = tuple(
                PresentationResult(context.context_id, 0, context.transfer_syntaxes[0])
                if context.transfer_syntaxes and not (moves & 2 and context.context_id == 3)
                else PresentationResult(context.context_id, 4)
                for context in event.contexts
            )
            accept = AssociateAccept(called_ae="ARCHIVE", calling_ae="FUZZ", contexts=results)
            association.send(accept)
            if moves & 4:
                association.send(ReleaseRequest())
        elif isinstance(event, AssociateAccept) and moves & 4:
            association.send(ReleaseRequest())
        elif isinstance(event, ReleaseRequest | ReleaseReply) and association.release_reply_due:
            association.send(ReleaseReply())
    except LocalProtocolError as error:
        raise BrokenError(f"a proper answer to {type(event).__name__} was refused: {error}") from error


def one_case(seed: int, totals: Totals) -> None:
    """One conversation, damaged, cut in two ways."""
    chance = random.Random(seed)
    role = chance.choice((Role.ACCEPTOR, Role.REQUESTOR))
    stream = conversation(chance, role)
    damage(chance, stream)
    raw = bytes(stream)
    moves = chance.choice((0, 0, 0, 2, 4, 1))
    whole = play(role, [raw] if raw else [], moves)
    again = play(role, pieces(chance, raw), moves)
    if whole != again:
        raise BrokenError(f"cutting changes the events:\n  {whole}\n  {again}")
    totals.cases += 1
    totals.events += len(whole)
    totals.errors += any(isinstance(entry, tuple) and isinstance(entry[0], str) for entry in whole)
    totals.kinds.update(type(entry).__name__ for entry in whole if not isinstance(entry, tuple))


def fuzz(*, cases: int | None = None, seconds: float | None = None, seed: int = 0) -> Totals:
    """Run until ``cases`` or ``seconds`` are used up; the exception's note names the case that broke."""
    totals = Totals()
    end = None if seconds is None else time.monotonic() + seconds
    number = seed
    while (cases is None or totals.cases < cases) and (end is None or time.monotonic() < end):
        try:
            one_case(number, totals)
        except Exception as error:
            error.add_note(f"run again with --case {number}")
            raise
        number += 1
    return totals


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, help="how long (default 10, when no --cases)")
    parser.add_argument("--cases", type=int, help="how many")
    parser.add_argument("--seed", type=int, default=None, help="the first case's seed (default: random)")
    parser.add_argument("--case", type=int, help="run this one case")
    arguments = parser.parse_args()
    if arguments.case is not None:
        one_case(arguments.case, Totals())
        return 0
    seconds = arguments.seconds
    if seconds is None and arguments.cases is None:
        seconds = 10.0
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1 << 48)
    totals = fuzz(cases=arguments.cases, seconds=seconds, seed=seed)
    sys.stdout.write(
        f"wire: {totals.cases} cases from seed {seed}, {totals.events} events, "
        f"{totals.errors} refused, kinds: {', '.join(sorted(totals.kinds))}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
