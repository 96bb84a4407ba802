"""Plugins as a third party would install them: a package with its metadata, in a folder on the path."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

NOTES = '''
"""Everything that a plugin can have, in little: notes that people leave, by number."""

import os

import msgspec
import trio
from starlette.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Route, WebSocketRoute

from hounsfield.archive.plugins import (
    Answer, DimseRefusedError, DimseService, Key, Kind, Listen, Outgoing, Parts, Plugin, Settings,
)
from hounsfield.archive.errors import ConfigError
from prometheus_client.metrics_core import GaugeMetricFamily

FIND = "1.2.840.10008.5.1.4.31"
STEP = "1.2.840.10008.3.1.2.3.3"


class Note(msgspec.Struct, frozen=True):
    number: int
    text: str = ""


NOTE = Kind(
    "note", Note, lambda note: [Key("number", str(note.number), unique=True), Key("all", "", note.number)]
)


class Tick(msgspec.Struct, frozen=True):
    number: int
    worker: int


TICK = Kind("tick", Tick, lambda tick: [Key("all", "", tick.number)])


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    host: str = "127.0.0.1"
    port: int = 0
    tls_certificate: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""
    plain: bool = False
    sources: tuple[str, ...] = ()
    connections_max: int = 100


class Mine(Settings):
    colour: str = "grey"
    count: int = 0
    fail: str = ""
    ticks: bool = False
    lines: tuple[Line, ...] = ()


def check(settings):
    if settings.fail == "check":
        raise ConfigError("this cannot be")
    return ["notes are kept"]


def listens(settings):
    return [Listen(f"line{n}", **msgspec.structs.asdict(line)) for n, line in enumerate(settings.lines)]


async def start(archive, settings):
    if settings.fail == "start" or (settings.fail.startswith("/") and os.path.exists(settings.fail)):
        raise RuntimeError("SECRET^NAME")

    async def add(text):
        def plan(change):
            number = change.count("notes")
            change.put(NOTE, change.new_id(), Note(number, text))
            change.say("noted", {"number": number})
            return number
        return await archive.records.commit(plan)

    async def every():
        with archive.records.reading() as view:
            return [msgspec.to_builtins(note) for _, note in view.find(NOTE, "all", "")]

    async def led():
        if settings.fail == "leading":
            raise RuntimeError("SECRET^NAME")
        cursor = ""
        while True:
            page = await archive.events(cursor, 100)
            for event in page.events:
                if event.kind == "notes.noted":
                    await follow(event.body["number"])
            cursor = page.next
            if not page.more:
                await archive.wait(cursor, 60)

    async def follow(number):
        def plan(change):
            found = change.first(NOTE, "number", str(number))
            if found is not None and not found[1].text.endswith("!"):
                change.put(NOTE, found[0], Note(number, found[1].text + f" {os.getpid()}!"))
        await archive.records.commit(plan)

    async def find(request):
        if b"REFUSE" in request.dataset:
            raise DimseRefusedError(0xA700, "not now")
        if b"FAIL" in request.dataset:
            raise RuntimeError("SECRET^NAME")
        if b"ENDLESS" in request.dataset:
            while not request.cancelled():
                yield request.dataset
                await trio.sleep(0.001)
            return
        for number in range(settings.count):
            yield Answer(0xFF01, request.dataset) if number % 2 else request.dataset

    async def ticking():
        while settings.ticks:
            def plan(change):
                change.put(TICK, change.new_id(), Tick(change.count("ticks"), os.getpid()))
            await archive.records.commit(plan)
            await trio.sleep(0.05)

    async def ticks():
        with archive.records.reading() as view:
            return [tick.worker for _, tick in view.find(TICK, "all", "")]

    steps = {}

    async def create(request):
        if request.sop_instance_uid in steps:
            return Answer(0x0111, sop_instance_uid=request.sop_instance_uid)
        if b"FAIL" in request.dataset:
            raise RuntimeError("SECRET^NAME")
        uid = request.sop_instance_uid or "1.2.3"
        steps[uid] = request.dataset
        return Answer(0, request.dataset, uid)

    async def change(request):
        if request.sop_instance_uid not in steps:
            raise DimseRefusedError(0x0112, "no such step")
        steps[request.sop_instance_uid] += request.dataset
        return Answer(0, sop_instance_uid=request.sop_instance_uid)

    async def get(request):
        uid = request.sop_instance_uid
        return Answer(0, steps[uid], uid, attributes=request.attributes)

    async def echo(stream, peer):
        while data := await stream.receive_some(100):
            if data == b"FAIL":
                raise RuntimeError("SECRET^NAME")
            await stream.send_all(peer.listener.encode() + b":" + data)

    async def page(request):
        return JSONResponse({"who": request.scope.get("identity"), "notes": await every()})

    async def wrong(request):
        if request.path_params["kind"] == "defect":
            raise RuntimeError("SECRET^NAME")
        raise HTTPException(418, "I am a teapot")

    async def socket(websocket):
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text() + " yourself")
        await websocket.close()

    async def send(title, uid):
        answers = await archive.send(title, [
            Outgoing("create", STEP, uid, b"\\x08\\x00\\x60\\x00CS\\x02\\x00CT"),
            Outgoing("set", STEP, uid, b"\\x08\\x00\\x60\\x00CS\\x02\\x00MR"),
        ])
        return [answer.status for answer in answers]

    async def search(level, matches):
        return [dict(row) for row in await archive.search(level, matches)]

    async def store(path):
        return msgspec.to_builtins(await archive.store(await trio.Path(path).read_bytes()))

    async def events(new=False):
        cursor = await archive.latest() if new else ""
        return [event.kind for event in (await archive.events(cursor, 1000)).events]

    async def correct(study, description):
        values = {"StudyDescription": description}
        return await archive.correct("set-study", actor="me", reason="test", study=study, values=values)

    async def revert(number):
        await archive.revert(number, actor="me", reason="test")

    async def prefetch(name):
        await archive.prefetch(name, patient_id="1", at_ns=10**18)

    named = "other" if settings.fail == "service" else "notes"
    own = "1.2.840.10008.5.1.4.1.1.2" if settings.fail == "class" else FIND
    return Parts(
        services=[
            DimseService(named, frozenset({own}), find=find),
            DimseService("steps", frozenset({STEP}), create=create, set=change, get=get),
        ],
        routes=[Route("/", page), Route("/wrong/{kind}", wrong), WebSocketRoute("/socket", socket)],
        streams={listen.name: echo for listen in listens(settings)},
        leading={"following": led, "ticking": ticking},
        operations={
            "add": add, "every": every, "ticks": ticks, "send": send, "search": search, "store": store,
            "events": events, "correct": correct, "revert": revert, "prefetch": prefetch,
        },
        metrics=lambda: [GaugeMetricFamily("hounsfield_notes_colours", "Colours", value=1)],
    )


def command(cli):
    import click

    @click.group()
    def notes():
        """Notes that people leave."""

    @notes.command()
    @click.argument("text")
    @cli.options
    def add(text, line):
        cli.show(line, [{"number": cli.call(line, "add", text=text)}], {"number": "Number"})

    @notes.command("list")
    @cli.options
    def list_(line):
        cli.show(line, cli.call(line, "every"), {"number": "Number", "text": "Text"})

    @notes.command()
    @cli.options
    def fail(line):
        cli.say("it cannot be done")
        raise cli.fail("it was not done")

    return notes


plugin = Plugin(
    "notes", "Notes that people leave.", start, Mine, ("notes", "steps"), listens, check, command
)
'''


def install(folder: Path, source: str = NOTES, *, name: str = "notes", extras: str = "") -> Path:
    """A package on disk whose plugin is ``plugin`` of its module; the folder to be put on the path."""
    folder.mkdir(parents=True, exist_ok=True)
    module = f"hounsfield_{name}"
    (folder / f"{module}.py").write_text(textwrap.dedent(source))
    metadata = folder / f"{module}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    point = f"[hounsfield.plugins]\n{name} = {module}:plugin{f' [{extras}]' if extras else ''}\n"
    (metadata / "entry_points.txt").write_text(point)
    return folder


def on_the_path(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    """For every process that is started from here."""
    monkeypatch.setenv("PYTHONPATH", ":".join(map(str, folders)))
