"""What a power cut may leave of a directory tree, given what was asked of it and in which order.

The model is what POSIX promises and no more, with sectors that are written whole or not at all:

- The bytes of a file are durable when an fsync or fdatasync of that file (by whomever) that *began after the
  write had returned* has returned without an error. Until then each sector of each write is on the disk or
  is not, whatever became of the others; of several writes to one sector it holds any one's result. So with
  ``O_DIRECT``. With ``O_DSYNC`` a write is durable when it returns.
- After a failed sync no later one makes the writes durable that it was for: the kernel has given them up, and
  tells everyone who has the file open once. What is then read from memory may not be on the disk. When the
  file is dropped from memory after a sync that succeeded, what is read is what the disk has; and the log's
  server read what had been written.
- A file's length grows with the sectors that were kept, or to where it was, the gap being zeros.
- A name (made, linked, renamed, removed) is durable after an fsync of its directory. A directory whose own
  name is lost is lost with all that is in it. A rename is atomic.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from crash_truth.trace import DURABLE, IS_DIRECTORY, OF_BEFORE, Entry, Kind

SECTOR_BYTES = 512

# Locks and sockets hold nothing that a start needs; LMDB makes its lock file anew (and maps it, unseen here).
VOLATILE_NAMES = frozenset({"lock", "lock.mdb", "control.sock"})


class UnsupportedError(Exception):
    """Something was done of which the model does not know what a power cut leaves."""


@dataclass(slots=True, eq=False)
class PendingWrite:
    """A write that is not durable: whole sectors, as the file had them when it returned."""

    number: int
    start: int
    data: bytes
    end: int
    """Where the file's written bytes end: the last sector may reach past them."""
    doomed: bool = False

    @property
    def sectors(self) -> int:
        return (len(self.data) + SECTOR_BYTES - 1) // SECTOR_BYTES


@dataclass(slots=True, eq=False)
class File:
    """A file: as readers see it, and what of it a power cut cannot take."""

    live: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    pending: list[PendingWrite] = field(default_factory=list)
    synced: int = 0
    """What came before this entry is in the last sync that succeeded."""

    def write(self, number: int, offset: int, data: bytes, *, durable: bool) -> None:
        end = offset + len(data)
        if len(self.live) < end:
            self.live.extend(bytes(end - len(self.live)))
        self.live[offset:end] = data
        start = offset // SECTOR_BYTES * SECTOR_BYTES
        stop = min(-(-end // SECTOR_BYTES) * SECTOR_BYTES, len(self.live))
        one = PendingWrite(number, start, bytes(self.live[start:stop]), stop)
        self.pending.append(one)
        if durable:
            self._settle([one])

    def sync(self, number: int, *, failed: bool) -> None:
        covered = [one for one in self.pending if one.number < number and not one.doomed]
        if failed:
            for one in covered:
                one.doomed = True
        else:
            self.synced = number
            if covered:
                self._settle(covered)

    def drop(self) -> None:
        doomed = [one for one in self.pending if one.doomed and one.number < self.synced]
        if doomed:
            self._settle(doomed)

    def truncate(self, number: int, length: int) -> None:
        if length < len(self.live) or length < len(self.durable):
            if self.live and self.durable:
                raise UnsupportedError(f"a file is cut short (entry {number})")
            self.live.clear()
        self.live.extend(bytes(max(0, length - len(self.live))))

    def _settle(self, kept: list[PendingWrite]) -> None:
        for one in kept:
            if len(self.durable) < one.end:
                self.durable.extend(bytes(one.end - len(self.durable)))
            self.durable[one.start : one.start + len(one.data)] = one.data
        gone = {id(one) for one in kept}
        self.pending = [
            piece for one in self.pending if id(one) not in gone for piece in _not_under(one, kept)
        ]


def _not_under(one: PendingWrite, settled: Iterable[PendingWrite]) -> Iterator[PendingWrite]:
    """What is left undecided of ``one`` when later writes to some of its sectors are durable."""
    over = [(s.start, s.start + len(s.data)) for s in settled if s.number > one.number]
    over = [(a, b) for a, b in over if a < one.start + len(one.data) and one.start < b]
    if not over:
        yield one
        return
    for at in range(one.start, one.start + len(one.data), SECTOR_BYTES):
        if not any(a <= at < b for a, b in over):
            data = one.data[at - one.start : at - one.start + SECTOR_BYTES]
            yield PendingWrite(one.number, at, data, at + len(data), one.doomed)


@dataclass(slots=True, eq=False)
class PendingNames:
    """One change of one directory's names that is not durable."""

    number: int
    changes: tuple[tuple[str, Node | None], ...]


@dataclass(slots=True, eq=False)
class Directory:
    """A directory: the names in it now, and those that a power cut cannot take."""

    live: dict[str, Node] = field(default_factory=dict)
    durable: dict[str, Node] = field(default_factory=dict)
    pending: list[PendingNames] = field(default_factory=list)

    def change(self, number: int, *changes: tuple[str, Node | None]) -> None:
        _apply(self.live, changes)
        self.pending.append(PendingNames(number, changes))

    def sync(self, number: int) -> None:
        for one in self.pending:
            if one.number < number:
                _apply(self.durable, one.changes)
        self.pending = [one for one in self.pending if one.number >= number]


Node = File | Directory


def _apply(names: dict[str, Node], changes: Iterable[tuple[str, Node | None]]) -> None:
    for name, node in changes:
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


@dataclass(frozen=True)
class Choice:
    """Which of the pending changes a power cut keeps: one of the states it may leave."""

    name: str
    keeps: Callable[[PendingWrite], bool | frozenset[int]]
    """All of it, none of it, or these sectors of it."""
    keeps_names: Callable[[PendingNames], bool]
    grows: bool = False
    """Files are as long as they were, whatever was lost of their bytes."""


class Disk:
    """A directory tree that takes a trace's entries, one by one, and can be asked for its futures."""

    def __init__(self, root: str) -> None:
        self.root = Directory()
        self._prefix = root.rstrip("/")
        self._nodes: dict[int, Node] = {}
        self._begun: dict[int, int] = {}

    def take(self, entry: Entry) -> None:
        """Let ``entry`` have happened."""
        match entry.kind:
            case Kind.CREATE | Kind.MKDIR:
                node: Node = File() if entry.kind is Kind.CREATE else Directory()
                self._nodes[entry.inode] = node
                folder, name = self._place(entry.path)
                folder.change(entry.number, (name, node))
            case Kind.WRITE:
                self._file(entry).write(
                    entry.number, entry.offset, entry.data, durable=bool(entry.flags & DURABLE)
                )
            case Kind.TRUNCATE:
                self._file(entry).truncate(entry.number, entry.offset)
            case Kind.ALLOCATE:
                if entry.result:
                    raise UnsupportedError(f"fallocate with mode {entry.result}")
                file = self._file(entry)
                file.truncate(entry.number, max(len(file.live), entry.offset + entry.token))
            case Kind.SYNC_BEGIN:
                self._begun[entry.token] = entry.number
            case Kind.SYNC_END:
                self._synced(entry)
            case Kind.DROP:
                self._file(entry).drop()
            case Kind.RENAME:
                self._rename(entry)
            case Kind.LINK:
                folder, name = self._place(entry.path2)
                folder.change(entry.number, (name, self._nodes[entry.inode]))
            case Kind.UNLINK | Kind.RMDIR:
                folder, name = self._place(entry.path)
                folder.change(entry.number, (name, None))
            case Kind.MAPPED:
                if Path(entry.path).name not in VOLATILE_NAMES:
                    raise UnsupportedError(f"{entry.path} is written through memory")
            case Kind.UNSUPPORTED:
                raise UnsupportedError(str(entry))
            case Kind.NOTE | Kind.FAULT:
                pass

    def _synced(self, entry: Entry) -> None:
        began = self._begun.pop(entry.token)
        if entry.flags & IS_DIRECTORY:
            node = self._nodes.get(entry.inode, self.root)  # the root was there before
            if isinstance(node, Directory) and not entry.result:
                node.sync(began)
        elif not entry.flags & OF_BEFORE:  # an error of before says nothing of what was written since
            self._file(entry).sync(began, failed=entry.result != 0)

    def _rename(self, entry: Entry) -> None:
        before, old = self._place(entry.path)
        after, new = self._place(entry.path2)
        node = before.live[old]
        if before is after:
            before.change(entry.number, (old, None), (new, node))
        else:
            raise UnsupportedError("a rename to another directory")

    def _file(self, entry: Entry) -> File:
        node = self._nodes[entry.inode]
        assert isinstance(node, File)
        return node

    def _place(self, path: str) -> tuple[Directory, str]:
        relative = path.removeprefix(self._prefix).strip("/").split("/")
        folder = self.root
        for name in relative[:-1]:
            node = folder.live[name]
            assert isinstance(node, Directory)
            folder = node
        return folder, relative[-1]

    # ------------------------------------------------------------------ futures

    def pending(self) -> tuple[list[PendingWrite], list[PendingNames]]:
        """Everything that a power cut may take now, oldest first."""
        writes: list[PendingWrite] = []
        names: list[PendingNames] = []
        seen: set[int] = set()

        def walk(folder: Directory) -> None:
            if id(folder) in seen:
                return
            seen.add(id(folder))
            names.extend(one for one in folder.pending if not _volatile(one))
            for name, node in [*folder.live.items(), *folder.durable.items()]:
                if isinstance(node, Directory):
                    walk(node)
                elif name not in VOLATILE_NAMES and id(node) not in seen:
                    seen.add(id(node))
                    writes.extend(node.pending)

        walk(self.root)
        return sorted(writes, key=lambda one: one.number), sorted(names, key=lambda one: one.number)

    def after(self, choice: Choice) -> dict[str, bytes | None]:
        """The tree a power cut leaves: path → content, None for a directory."""
        found: dict[str, bytes | None] = {}

        def walk(folder: Directory, lead: str) -> None:
            names = dict(folder.durable)
            for one in folder.pending:
                if _volatile(one) or choice.keeps_names(one):
                    _apply(names, one.changes)
            for name, node in names.items():
                if isinstance(node, Directory):
                    found[lead + name] = None
                    walk(node, f"{lead}{name}/")
                elif name not in VOLATILE_NAMES:
                    found[lead + name] = _content(node, choice)

        walk(self.root, "")
        return found


def _volatile(one: PendingNames) -> bool:
    return all(name in VOLATILE_NAMES for name, _ in one.changes)


def _content(file: File, choice: Choice) -> bytes:
    if not file.pending:
        return bytes(file.durable)
    content = bytearray(file.durable)
    for one in file.pending:
        keeps = choice.keeps(one)
        if keeps is False:
            continue
        sectors = range(one.sectors) if keeps is True else sorted(keeps)
        if keeps is True:
            _put(content, one.start, one.data)
        else:
            for sector in sectors:
                at = sector * SECTOR_BYTES
                _put(content, one.start + at, one.data[at : at + SECTOR_BYTES])
    if choice.grows and len(content) < len(file.live):
        content.extend(bytes(len(file.live) - len(content)))
    return bytes(content)


def _put(content: bytearray, start: int, data: bytes) -> None:
    end = start + len(data)
    if len(content) < end:
        content.extend(bytes(end - len(content)))
    content[start:end] = data


def fingerprint(tree: dict[str, bytes | None]) -> bytes:
    """The same for the same tree."""
    found = hashlib.blake2b(digest_size=16)
    for name in sorted(tree):
        content = tree[name]
        found.update(name.encode() + b"\0")
        found.update(b"/" if content is None else len(content).to_bytes(8, "big"))
        if content is not None:
            found.update(content)
    return found.digest()


def write_tree(tree: dict[str, bytes | None], directory: Path) -> None:
    """Bring a tree into being below ``directory``, which must be empty."""
    for name, content in tree.items():
        if content is None:
            (directory / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        else:
            path = directory / name
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(0o600)
