"""The danger: fragments of two messages taken for one, or a data set where none was announced."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_strategies import CT, commands, established

from hounsfield.archive.wire import (
    Abort,
    CEchoRequest,
    CFindResponse,
    Command,
    CommandReceived,
    CStoreRequest,
    DataFragment,
    DatasetFragment,
    MessageReader,
    MessageWriter,
    RemoteProtocolError,
    Role,
    WireLimits,
    encode_command,
)

STORE = CStoreRequest(1, CT, "1.2.3")
STORE_BYTES = encode_command(STORE)
ECHO_BYTES = encode_command(CEchoRequest(2))


def _command(raw: bytes, *, context: int = 3, last: bool = True) -> DataFragment:
    return DataFragment(context, True, last, raw)


def _data(raw: bytes, *, context: int = 3, last: bool = False) -> DataFragment:
    return DataFragment(context, False, last, raw)


@given(commands(), st.data())
def test_a_command_in_any_fragments(command: Command, data: st.DataObject) -> None:
    raw = encode_command(command)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)), max_size=6)))
    reader = MessageReader()
    for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        event = reader.receive(_command(raw[a:b], last=False))
        assert event is None
        assert not reader.idle
    assert reader.receive(_command(b"")) == CommandReceived(3, command)
    assert reader.idle is not command.has_dataset


def test_a_message_then_another_on_another_context() -> None:
    reader = MessageReader()
    received = [
        reader.receive(fragment)
        for fragment in (
            _command(STORE_BYTES),
            _data(b"abc"),
            _data(b"", last=True),
            _command(ECHO_BYTES, context=1),
            _command(STORE_BYTES),
            _data(b"d", last=True),
        )
    ]
    assert received == [
        CommandReceived(3, STORE),
        DatasetFragment(3, b"abc", last=False),
        DatasetFragment(3, b"", last=True),
        CommandReceived(1, CEchoRequest(2)),
        CommandReceived(3, STORE),
        DatasetFragment(3, b"d", last=True),
    ]
    assert reader.idle


def test_the_payload_is_passed_on_not_copied() -> None:
    reader = MessageReader()
    reader.receive(_command(STORE_BYTES))
    view = memoryview(b"payload")
    event = reader.receive(DataFragment(3, False, True, view))
    assert isinstance(event, DatasetFragment)
    assert event.data is view


@pytest.mark.parametrize(
    "fragments",
    [
        [_data(b"x")],  # a data set first
        [_command(ECHO_BYTES), _data(b"x")],  # none was announced
        [_command(STORE_BYTES), _command(STORE_BYTES)],  # one was, and a command comes
        [_command(STORE_BYTES), _data(b"x"), _command(ECHO_BYTES)],
        [_command(STORE_BYTES), _data(b"x", context=1)],  # another context
        [_command(STORE_BYTES[:10], last=False), _command(STORE_BYTES[10:], context=1)],
        [_command(STORE_BYTES[:10], last=False), _data(b"x")],
        [_command(STORE_BYTES), _data(b"x", last=True), _data(b"y", last=True)],  # after its end
        [_command(b"")],
        [_command(b"", last=False), _command(ECHO_BYTES, context=1)],
    ],
)
def test_what_is_mixed_is_refused(fragments: list[DataFragment]) -> None:
    reader = MessageReader()
    for fragment in fragments[:-1]:
        reader.receive(fragment)
    with pytest.raises(RemoteProtocolError) as caught:
        reader.receive(fragments[-1])
    assert caught.value.reply == Abort()


def test_a_command_over_the_limit_is_refused_before_it_is_held() -> None:
    reader = MessageReader(WireLimits(command_bytes_max=200))
    reader.receive(_command(bytes(200), last=False))
    with pytest.raises(RemoteProtocolError, match="200"):
        reader.receive(_command(b"x", last=False))
    with pytest.raises(RemoteProtocolError, match="200"):
        MessageReader(WireLimits(command_bytes_max=200)).receive(_command(bytes(201)))


def test_a_data_set_that_never_ends_is_refused() -> None:
    reader = MessageReader(WireLimits(dataset_bytes_max=1000))
    for _ in range(2):  # the count begins again with each message
        reader.receive(_command(STORE_BYTES))
        reader.receive(_data(bytes(999)))
        reader.receive(_data(b"x", last=True))
    reader.receive(_command(STORE_BYTES))
    reader.receive(_data(bytes(1000)))
    with pytest.raises(RemoteProtocolError, match="1000"):
        reader.receive(_data(b"x"))


@pytest.mark.parametrize("peer_max", [1024, 16_384, 1 << 20])
@pytest.mark.parametrize(
    "sizes", [(), (0,), (10, 200), (10,) * 5000, (70_000, 10, 1010, 1012, 70_000), (300_000,)]
)
@pytest.mark.parametrize("with_final", [False, True])
def test_answers_sent_together_are_the_messages_they_are_alone(
    peer_max: int, sizes: tuple[int, ...], with_final: bool
) -> None:
    pending = CFindResponse(7, 0xFF00, CT, has_dataset=True)
    final = CFindResponse(7, 0, CT) if with_final else None
    answers = [bytes([number % 256]) * size for number, size in enumerate(sizes)]
    writer = MessageWriter(established(Role.ACCEPTOR, peer_max=peer_max))
    together = b"".join(bytes(part) for batch in writer.answers(3, pending, answers, final) for part in batch)
    writer = MessageWriter(established(Role.ACCEPTOR, peer_max=peer_max))
    alone = [part for each in answers for batch in writer.message(3, pending, [each]) for part in batch]
    if final is not None:
        alone += writer.command(3, final)
    assert together == b"".join(bytes(part) for part in alone)
