"""A process without numpy as yet does one thing with an engine, and says which thread imported what.

``python first_imports.py ACT DIRECTORY KEY FILE``: the file is stored, and the act done with it. Standard
output: a JSON object, module → "loop" or "thread", of what was imported since the engine was open.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import trio

from hounsfield.archive.dicom.part10 import split
from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.engine.types import Instance, Source
from hounsfield.archive.rendering.request import Rendering
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.master_key import load_master_key

WATCHED = {"numpy", "imagecodecs", "PIL", "gdcm", "openjpeg", "rle", "zstandard"}
IMPLICIT, HTJ2K, JPEG_LS = (f"1.2.840.10008.1.2{suffix}" for suffix in ("", ".4.201", ".4.80"))
importers: dict[str, str] = {}


class Watch:
    """Finds no module, and notes in which thread it was looked for."""

    def __init__(self) -> None:
        self.loop = threading.get_ident()

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name in WATCHED:
            importers.setdefault(name, "loop" if threading.get_ident() == self.loop else "thread")


async def act(engine: Engine, what: str, instance: Instance) -> None:
    if what == "decode":
        await engine.decoded(instance, 1)
    elif what == "reorder":
        await engine.transcoded_frame(instance, 1, IMPLICIT)
    elif what == "encode":
        for uid in (HTJ2K, JPEG_LS):
            await engine.transcoded_frame(instance, 1, uid)
    elif what == "draw":
        (subject,) = await engine.rendered.subjects(instance)
        await engine.rendered.file(subject, [1], Rendering())
    elif what == "compare":
        pieces = [bytes(piece) async for piece in engine.transcoded(instance, JPEG_LS)]
        await put(engine, b"".join(pieces), JPEG_LS)
    else:
        raise SystemExit(f"no act {what}")


async def put(engine: Engine, data_set: bytes, transfer_syntax_uid: str) -> Instance:
    session = engine.begin(transfer_syntax_uid=transfer_syntax_uid, source=Source("import"))
    await session.write(data_set)
    result = await session.commit()
    (instance,) = await engine.instances(result.study_uid, result.series_uid, result.sop_instance_uid)
    return instance


async def main(what: str, directory: Path, key: str, file: Path) -> None:
    options = EngineOptions()
    stores = Stores.open(directory, Keyring.create(directory / "keys", load_master_key(key)), options)
    try:
        async with open_engine(stores, options, owner="test") as engine:
            raw = file.read_bytes()
            cut = split(raw)
            sys.meta_path.insert(0, Watch())  # type: ignore[arg-type]
            instance = await put(engine, raw[cut.offset :], cut.transfer_syntax_uid)
            await act(engine, what, instance)
    finally:
        stores.close()
    sys.stdout.write(json.dumps(importers))


if __name__ == "__main__":
    trio.run(main, sys.argv[1], Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
