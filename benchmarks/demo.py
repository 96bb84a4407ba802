"""``make demo``: real studies in over DICOM, every one of them out over HTTP; then a department's day.

Starts ``hounsfield serve`` with the RIS on an empty directory below ``.demo``, sends with ``hounsfield send``
(C-STORE over a socket), reads every object and every frame back over DICOMweb with httpx, and compares: data
set bytes with the bytes of the file, frames with what pydicom finds in the file. Then plays
``benchmarks/day.py``, an order becoming a report. Any difference, and any step that fails, ends the demo with
an error. Leaves the archive running; with ``--exit`` stops it.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import pydicom
from pydicom.encaps import generate_frames
from rich.console import Console
from rich.progress import track
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import department
from benchmarks.day import Day, play
from benchmarks.day_peers import PROGRAMS, Api, DayError, Receiver
from benchmarks.demo_data import DemoFile, prepare
from hounsfield.archive.app.asking import ask
from hounsfield.archive.dicom.part10 import split
from hounsfield.codecs.registry import lookup

# What the packages carry that cannot be sent, and what is kept in quarantine because no viewer could find
# it: a change in these numbers is a change in this archive's behaviour, or in the packages.
UNSENDABLE = 2
QUARANTINED = 16

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / ".demo"
SENDERS = 4
console = Console(width=max(Console().width, 110))


@dataclass
class Tally:
    """What went in and out for one modality and transfer syntax."""

    objects: int = 0
    frames: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    seconds_out: float = 0.0
    differences: list[str] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--exit", action="store_true", help="stop the archive after the table")
    options = parser.parse_args()
    with console.status("gathering real files from the packages ..."):
        files = prepare(DEMO / "files", ROOT / ".cache" / "demo")
    shutil.rmtree(DEMO / "archive", ignore_errors=True)
    with Receiver() as receiver:
        return play_all(files, receiver, stays=not options.exit)


def play_all(files: list[DemoFile], receiver: Receiver, *, stays: bool) -> int:
    """Both parts, on one archive; the exit status."""
    tokens = department.tokens_file(DEMO / "tokens")
    server, status = start_server(department.settings(DEMO / "tokens", receiver.port))
    try:
        http = address(status, "http")
        seconds_in = send(files, address(status, "dicom"))
        bearer = {"authorization": f"Bearer {tokens['radiologist']}"}
        with httpx.Client(base_url=f"http://{http}/dicom-web", timeout=60, headers=bearer) as client:
            check_listing(client, files)
            tallies = read_back(client, files)
        exact = show(files, tallies, seconds_in)
        if not exact:
            return 1
        if not play_day(status, tokens, receiver):
            return 1
        console.print(
            f"\n[bold]The archive is running[/]   DICOMweb  http://{http}/dicom-web   "
            f"DICOM  {status['ae_title']}@{address(status, 'dicom')}   RIS  http://{http}/ris/api   "
            f"HL7  {address(status, 'ris.his')}\n"
            f"try:  curl -s -H 'Authorization: {bearer['authorization']}' "
            f"http://{http}/dicom-web/studies?ModalitiesInStudy=MR\n"
            f"      .venv/bin/hounsfield ls --data {os.path.relpath(DEMO / 'archive')}",
            soft_wrap=True,
        )
        if stays:
            console.print("Ctrl-C stops it.")
            server.wait()
    except KeyboardInterrupt:
        console.print("stopping")
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGTERM)
            server.wait(60)
    return 0


def play_day(status: dict[str, object], tokens: dict[str, str], receiver: Receiver) -> bool:
    """A day of a department, step by step; whether all of it went as it has to."""
    console.print("\n[bold]a day in the department[/]")
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        console.print(
            f"  [yellow]not played:[/] {', '.join(missing)} of DCMTK are not installed: `sudo make programs`"
        )
        return True

    def say(title: str, told: str) -> None:
        console.print(f"  [green]✓[/] {title:42} [dim]{told}[/]", highlight=False)

    socket = DEMO / "archive" / "control.sock"
    say("the department is described", department.furnish(partial(ask, socket)))
    day = Day(
        api=Api(f"http://{address(status, 'http')}", tokens),
        dicom=host_and_port(status, "dicom"),
        hl7=host_and_port(status, "ris.his"),
        receiver=receiver,
        folder=DEMO / "day",
        procedure=department.PROCEDURE,
    )
    try:
        play(day, say)
    except DayError as error:
        console.print(f"  [red]✗ {error}[/]", highlight=False)
        return False
    return True


def start_server(settings: Sequence[str]) -> tuple[subprocess.Popen[bytes], dict[str, object]]:
    """``hounsfield serve`` on ports that are free; its process and what it says of itself when ready."""
    read_end, write_end = os.pipe()
    command = [
        str(Path(sys.executable).with_name("hounsfield")),
        "serve",
        "--data",
        str(DEMO / "archive"),
        "--dicom",
        "127.0.0.1:0",
        "--http",
        "127.0.0.1:0",
        "--ready-fd",
        str(write_end),
        *(word for setting in settings for word in ("--set", setting)),
    ]
    log = (DEMO / "server.log").open("wb")
    server = subprocess.Popen(command, pass_fds=[write_end], stderr=log, stdout=log)
    os.close(write_end)
    with os.fdopen(read_end) as ready:
        line = ready.readline()
    if not line:
        raise SystemExit(f"the archive did not start; see {DEMO / 'server.log'}")
    return server, json.loads(line)


def host_and_port(status: dict[str, object], kind: str) -> tuple[str, int]:
    """Of the first listener of a kind."""
    host, _, port = address(status, kind).rpartition(":")
    return host, int(port)


def address(status: dict[str, object], kind: str) -> str:
    """HOST:PORT of the first listener of a kind."""
    listeners = status["listeners"]
    assert isinstance(listeners, list)
    each = next(each for each in listeners if each["kind"] == kind)
    return f"{each['host']}:{each['port']}"


def send(files: list[DemoFile], target: str) -> float:
    """Send everything as a modality would; seconds. What could not be sent must be what was expected."""
    command = [
        str(Path(sys.executable).with_name("hounsfield")),
        "send",
        f"HOUNSFIELD@{target}",
        str(DEMO / "files"),
        "--associations",
        str(SENDERS),
        "--json",
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    summary = json.loads(done.stdout)
    unsendable = {
        Path(each["path"]).name: each["reason"]
        for each in summary["files"]
        if each["outcome"] == "unsendable"
    }
    failed = [each for each in summary["files"] if each["outcome"] == "failed"]
    expected = {file.path.name for file in files if file.expect == "unsendable"}
    console.print(f"{len(unsendable)} files cannot be sent:")
    for name, reason in sorted(unsendable.items()):
        console.print(f"  {name}: {reason}", highlight=False)
    if set(unsendable) != expected or len(expected) != UNSENDABLE:
        raise SystemExit(
            f"unsendable: {len(unsendable)} by the archive, {len(expected)} expected, {UNSENDABLE} known"
        )
    if failed:
        raise SystemExit(f"not stored: {failed}")
    return float(summary["seconds"])


def check_listing(client: httpx.Client, files: list[DemoFile]) -> None:
    """QIDO-RS finds every instance that should be served, and none besides."""
    wanted = {file.sop_uid for file in files if file.expect == "served"}
    answer = client.get("/instances", params={"limit": 10_000})
    answer.raise_for_status()
    found = {each["00080018"]["Value"][0] for each in answer.json()}
    if found != wanted:
        raise SystemExit(f"QIDO-RS lists {len(found)} instances, {len(wanted)} were sent: {found ^ wanted}")
    if sum(file.expect == "quarantined" for file in files) != QUARANTINED:
        raise SystemExit(f"{QUARANTINED} files were known to be quarantined")


def read_back(client: httpx.Client, files: list[DemoFile]) -> dict[tuple[str, str], Tally]:
    """Every object and every frame, compared with the file."""
    tallies: dict[tuple[str, str], Tally] = defaultdict(Tally)
    served = [file for file in files if file.expect == "served"]
    for file in track(served, "reading back", console=console, transient=True):
        tally = tallies[file.modality, file.transfer_syntax_uid]
        path = f"/studies/{file.study_uid}/series/{file.series_uid}/instances/{file.sop_uid}"
        started = time.perf_counter()
        answer = client.get(path, headers={"Accept": "application/dicom; transfer-syntax=*"})
        tally.seconds_out += time.perf_counter() - started
        answer.raise_for_status()
        body = answer.content
        part10 = split(body)
        tally.objects += 1
        tally.bytes_in += len(file.data)
        tally.bytes_out += len(body)
        if body[part10.offset :] != file.data:
            tally.differences.append(f"{file.path.name}: data set")
        if part10.transfer_syntax_uid != file.transfer_syntax_uid:
            tally.differences.append(f"{file.path.name}: transfer syntax")
        metadata = client.get(f"{path}/metadata")
        metadata.raise_for_status()
        if metadata.json()[0]["00080018"]["Value"] != [file.sop_uid]:
            tally.differences.append(f"{file.path.name}: metadata")
        for number, wanted in enumerate(frames_of(file), 1):
            started = time.perf_counter()
            frame = client.get(f"{path}/frames/{number}", headers={"Accept": FRAME_ACCEPT})
            tally.seconds_out += time.perf_counter() - started
            frame.raise_for_status()
            tally.frames += 1
            tally.bytes_out += len(frame.content)
            if only_part(frame) != wanted:
                tally.differences.append(f"{file.path.name}: frame {number}")
    return tallies


FRAME_ACCEPT = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'


def frames_of(file: DemoFile) -> Iterator[bytes]:
    """The frames as pydicom finds them; none where it cannot (bit-packed, corrupt, deflated)."""
    if not file.frames or lookup(file.transfer_syntax_uid).deflated:
        return
    try:
        data = pydicom.dcmread(io.BytesIO(file.path.read_bytes()), force=True)
        pixels = data.PixelData
        if lookup(file.transfer_syntax_uid).encapsulated:
            frames = list(generate_frames(pixels, number_of_frames=file.frames))
        else:
            size = pydicom.pixels.utils.get_expected_length(data) // file.frames
            frames = [pixels[start : start + size] for start in range(0, size * file.frames, size)]
    except (AttributeError, ValueError, KeyError, TypeError):
        return
    odd = int(data.BitsAllocated) == 1 or len(frames) != file.frames or any(len(each) == 0 for each in frames)
    big = not lookup(file.transfer_syntax_uid).little_endian
    truncated = not lookup(file.transfer_syntax_uid).encapsulated and len(pixels) < size * file.frames
    if odd or big or truncated:
        return
    yield from frames


def only_part(answer: httpx.Response) -> bytes:
    """The one part of a multipart/related body."""
    boundary = answer.headers["Content-Type"].split("boundary=")[1].split(";")[0].strip('"').encode()
    _, _, rest = answer.content.partition(b"\r\n\r\n")
    end = rest.rindex(b"\r\n--" + boundary + b"--")
    return rest[:end]


def short_name(syntax: str) -> str:
    """A transfer syntax in a few words."""
    name = lookup(syntax).name.replace("Little Endian", "LE").replace("Big Endian", "BE")
    name = (
        name.replace("Image Compression", "")
        .replace("Implicit VR", "implicit")
        .replace("Explicit VR", "explicit")
    )
    for long, short in (("JPEG Lossless, Non-Hierarchical, First-Order", "JPEG Lossless SV1 ("), ("  ", " ")):
        name = name.replace(long, short)
    return name.split(" (Process")[0].split(" ( Pred")[0].strip(" (")


def show(files: list[DemoFile], tallies: dict[tuple[str, str], Tally], seconds_in: float) -> bool:
    """Print what went in and out; whether all of it is exact."""
    table = Table(title="real studies, in over C-STORE, out over DICOMweb")
    for name in ("modality", "transfer syntax"):
        table.add_column(name)
    for name in ("objects", "frames", "MB in", "MB out", "ms out", "exact"):
        table.add_column(name, justify="right")
    for (modality, syntax), tally in sorted(tallies.items()):
        table.add_row(
            modality,
            short_name(syntax),
            str(tally.objects),
            str(tally.frames),
            f"{tally.bytes_in / 1e6:.1f}",
            f"{tally.bytes_out / 1e6:.1f}",
            f"{tally.seconds_out * 1e3:.0f}",
            "[red]no[/]" if tally.differences else "yes",
        )
    objects = sum(tally.objects for tally in tallies.values())
    frames = sum(tally.frames for tally in tallies.values())
    megabytes = sum(tally.bytes_in for tally in tallies.values()) / 1e6
    seconds_out = sum(tally.seconds_out for tally in tallies.values())
    console.print(table)
    counts = Counter(file.expect for file in files)
    console.print(
        f"{objects} objects and {frames} frames compared, {megabytes:.0f} MB; in {seconds_in:.1f} s with "
        f"{SENDERS} associations, out {seconds_out:.1f} s with one client; "
        f"{counts['quarantined']} kept in quarantine, {counts['unsendable']} unsendable"
    )
    differences = [each for tally in tallies.values() for each in tally.differences]
    for each in differences:
        console.print(f"[red]differs:[/] {each}", highlight=False)
    console.print(
        "[green]every object is exact[/]" if not differences else f"[red]{len(differences)} differ[/]"
    )
    return not differences


if __name__ == "__main__":
    sys.exit(main())
