"""A power cut at any place of what a server writes: what was acknowledged is there, whole, and it goes on.

The long run, over a longer workload and all states, is ``make crash``.
"""

from __future__ import annotations

import os
import random
import re
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from crash_truth import explore, workload
from crash_truth.disk import Choice, Disk
from crash_truth.recovery import Promises
from crash_truth.trace import IS_DIRECTORY, Entry, Kind, entries

STATES = 200  # of some 20,000


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of a first start, a load, facts, a death between write and sync, recovery, and a clean end."""
    directory = tmp_path_factory.mktemp("recorded") / "server"
    workload.record(directory, workload.SHORT_STEPS)
    return directory


def root_of(recorded: Path) -> str:
    return str((recorded / "disk").resolve())


def test_every_promise_is_kept(recorded: Path) -> None:
    report = explore.explore_in_processes(recorded / "log", root_of(recorded), wanted=STATES, processes=1)
    assert report.failures == []
    assert report.states == STATES
    assert report.distinct > STATES // 3
    assert len(report.kinds) >= 10


def test_what_is_on_the_disk_at_the_end_is_what_the_log_says(recorded: Path, tmp_path: Path) -> None:
    """Nothing was written that the recorder did not see: files replayed from the log are the files."""
    disk = Disk(root_of(recorded))
    for entry in entries(recorded / "log"):
        disk.take(entry)
    everything = Choice("all", explore.everything, explore.everything, grows=True)
    replayed = disk.after(everything)
    root = recorded / "disk"
    found = {
        str(path.relative_to(root)): None if path.is_dir() else path.read_bytes()
        for path in root.rglob("*")
        if path.name not in {"lock", "lock.mdb", "control.sock"}
    }
    assert set(replayed) == set(found)
    assert {name for name in found if replayed[name] != found[name]} == set()


@pytest.mark.parametrize("where", ["/segments/", "/ledger/"])
def test_a_sync_that_lies_is_found_out(recorded: Path, where: str) -> None:
    """The last state without the syncs of the segments: objects are missed, or nothing here means much; of
    the ledger: facts and records."""
    disk, promises = Disk(root_of(recorded)), Promises()
    for entry in entries(recorded / "log"):
        promises.take(entry)
        lies = entry.kind is Kind.SYNC_END and (where in entry.path or "/index/" in entry.path)
        disk.take(replace(entry, result=-1) if lies else entry)
    nothing = Choice("nothing kept", explore.nothing, explore.everything)
    failure = explore.try_state(disk.after(nothing), promises, recorded.parent, thorough=False)
    assert "Error" in failure


def test_a_name_that_was_not_synced_is_found_out(recorded: Path) -> None:
    disk, promises = Disk(root_of(recorded)), Promises()
    for entry in entries(recorded / "log"):
        promises.take(entry)
        lies = entry.kind is Kind.SYNC_END and entry.path.endswith("/segments") and entry.flags & IS_DIRECTORY
        disk.take(replace(entry, result=-1) if lies else entry)
    nothing = Choice("nothing kept", explore.nothing, explore.nothing)
    failure = explore.try_state(disk.after(nothing), promises, recorded.parent, thorough=False)
    assert "Error" in failure


# ---------------------------------------------------------------------- the recorder itself

_RECORDED = {
    "write": ("write", "pwrite64", "writev", "pwritev", "pwritev2"),
    "sync": ("fsync", "fdatasync"),
    "truncate": ("ftruncate", "truncate"),
    "rename": ("rename", "renameat", "renameat2"),
    "link": ("link", "linkat"),
    "unlink": ("unlink", "unlinkat", "rmdir"),
    "mkdir": ("mkdir", "mkdirat"),
}
_NEVER = (
    "sync", "syncfs", "msync", "fallocate", "symlink", "symlinkat", "copy_file_range", "sendfile", "splice",
    "io_uring_setup", "io_submit",
)  # fmt: skip
_KINDS = {
    "write": {Kind.WRITE},
    "sync": {Kind.SYNC_BEGIN},
    "truncate": {Kind.TRUNCATE},
    "rename": {Kind.RENAME},
    "link": {Kind.LINK},
    "unlink": {Kind.UNLINK, Kind.RMDIR},
    "mkdir": {Kind.MKDIR},
}
_CALL = re.compile(r"^\d+ +(?P<name>\w+)\((?P<rest>.*)$")
_RESUMED = re.compile(r"^<\.\.\. \w+ resumed>(?P<rest>.*)$")


@pytest.mark.peer("strace")
def test_the_recorder_misses_no_call(tmp_path: Path) -> None:
    """The kernel's own list of what the server asked for, and the recorder's, have the same numbers."""
    server = workload.recorded_server(tmp_path / "server")
    calls = tmp_path / "calls"
    names = [name for group in _RECORDED.values() for name in group] + list(_NEVER)
    server.around = (
        "strace", "-f", "-q", "-y", "-s", "0", "--seccomp-bpf", "-o", str(calls),
        "-e", "trace=" + ",".join(names),
    )  # fmt: skip
    client = workload.Client(server, random.Random(7))
    try:
        for step in (workload.start, workload.store_in_parallel, workload.change_facts):
            step(client)
        os.kill(server.ready["pid"], signal.SIGTERM)
        assert server.wait() == 0
    finally:
        if server.process is not None and server.process.poll() is None:
            server.kill_all()
    root = root_of(tmp_path / "server")
    assert len(client.acked) == 12
    seen, forbidden = Counter[str](), []
    group_of = {name: group for group, members in _RECORDED.items() for name in members}
    for line in _whole_calls(calls.read_text(errors="replace")):
        call = _CALL.match(line)
        if call is None or (root not in line and "io_" not in call["name"]) or _failed(call["rest"]):
            continue
        if call["name"] in _NEVER:
            forbidden.append(line)
        else:
            seen[group_of[call["name"]]] += 1
    recorded = Counter(
        group
        for entry in entries(tmp_path / "server" / "log")
        for group, kinds in _KINDS.items()
        if entry.kind in kinds
    )
    assert forbidden == []
    assert seen["write"] > 30
    assert seen["sync"] > 30
    assert recorded == seen


def _whole_calls(text: str) -> Iterator[str]:
    """The calls, each in one line: strace cuts a call in two where another thread's is printed between.

    The second half has the result, so a cut call that failed (a ``mkdir`` of what exists) would else be
    counted as one that was done.
    """
    begun: dict[str, str] = {}
    for line in text.splitlines():
        thread, _, rest = line.partition(" ")
        if line.endswith("<unfinished ...>"):
            begun[thread] = line.removesuffix("<unfinished ...>")
        elif (second := _RESUMED.match(rest.lstrip())) is not None:
            yield begun.pop(thread) + second["rest"]
        else:
            yield line
    yield from begun.values()  # ended with its process: it may have been done


def test_a_call_cut_in_two_is_read_whole() -> None:
    text = (
        '11 mkdir("/a", 0700 <unfinished ...>\n12 fdatasync(3</a/b>) = 0\n'
        "11 <... mkdir resumed>) = -1 EEXIST (File exists)\n"
    )
    calls = list(_whole_calls(text))
    assert calls == ["12 fdatasync(3</a/b>) = 0", '11 mkdir("/a", 0700 ) = -1 EEXIST (File exists)']
    assert [_failed(call) for call in calls] == [False, True]


def _failed(rest: str) -> bool:
    return re.search(r"= -1 E\w+", rest) is not None


def test_what_a_power_cut_may_keep_of_one_file() -> None:
    """Two writes to one file, the second unsynced and over a sector of the first."""
    disk = Disk("/r")
    for entry in (
        made(1, Kind.CREATE, path="/r/file"),
        made(2, Kind.WRITE, data=b"a" * 1024),
        made(3, Kind.SYNC_BEGIN, token=1),
        made(4, Kind.WRITE, data=b"b" * 1024, offset=512),
        made(5, Kind.SYNC_END, token=1),
    ):
        disk.take(entry)
    writes, names = disk.pending()
    assert [one.number for one in writes] == [4]  # it began before the sync had returned, after it had begun
    assert [one.number for one in names] == [1]
    found = {disk.after(choice).get("file") for choice in explore.choices(writes, names, random.Random(1))}
    old, new = b"a" * 1024, b"a" * 512 + b"b" * 1024
    assert {None, old, old + bytes(512), new, b"a" * 512 + b"b" * 512} <= found
    assert found <= {
        None, old, old + bytes(512), new, b"a" * 512 + b"b" * 512, b"a" * 1024 + b"b" * 512,
        b"a" * 512 + b"b" * 512 + bytes(512),
    }  # fmt: skip


def test_a_failed_sync_is_never_made_good() -> None:
    disk = Disk("/r")
    for entry in (
        made(1, Kind.CREATE, path="/r/file"),
        made(2, Kind.WRITE, data=b"a" * 1024),
        made(3, Kind.SYNC_BEGIN, token=1),
        made(4, Kind.SYNC_END, token=1, result=-1),
        made(5, Kind.SYNC_BEGIN, token=2),
        made(6, Kind.SYNC_END, token=2),
        made(7, Kind.WRITE, data=b"c" * 512),
        made(8, Kind.SYNC_BEGIN, token=3),
        made(9, Kind.SYNC_END, token=3),
    ):
        disk.take(entry)
    writes, _ = disk.pending()
    assert [(one.number, one.start, len(one.data)) for one in writes] == [(2, 512, 512)]
    kept = Choice("nothing", explore.nothing, explore.everything)
    assert disk.after(kept) == {"file": b"c" * 512}


def made(
    number: int,
    kind: Kind,
    *,
    path: str = "",
    data: bytes = b"",
    offset: int = 0,
    token: int = 0,
    result: int = 0,
) -> Entry:
    return Entry(number, kind, 1, 1, 7, offset, token, result, 0, path, "", data, len(data))
