"""STOW-RS with the metadata and the bulk data of instances apart (PS3.18 10.5.2, 8.6.1.3).

Metadata comes first: one part with a JSON array of all instances, or one part of XML for each. Bulk data
follows, each value in a part whose Content-Location is the BulkDataURI that refers to it. What is small is
gathered, up to a limit for the request; pixel data streams into its instance as it comes, once all else of
the instance is here.

* Uncompressed pixel data is one part, little endian (PS3.18 8.7.3.3.1); a data set of Explicit VR Little
  Endian is made of it.
* Compressed pixel data is one part for each frame, in order, all with the same Content-Location; a video is
  one part. The transfer syntax is that of the first part's Content-Type, or of the metadata, or what the
  image itself says (:mod:`~hounsfield.archive.dicom.codestreams`). Nothing is transcoded, nothing fetched.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import urljoin

import msgspec

from hounsfield.archive.dicom.attributes import STUDY_INSTANCE_UID
from hounsfield.archive.dicom.from_json import ModelError, text_of
from hounsfield.archive.dicom.xml import XmlError, xml_to_model
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.errors import EngineError, OutOfResourcesError
from hounsfield.archive.engine.ingest import IngestSession
from hounsfield.archive.engine.types import Source
from hounsfield.archive.web.accept import DICOM_JSON, JSON
from hounsfield.archive.web.described import DICOM_XML
from hounsfield.archive.web.limits import WebLimits
from hounsfield.archive.web.multipart import MultipartError
from hounsfield.archive.web.problems import WebError
from hounsfield.archive.web.stow_instance import ArrivingInstance, Commit, MismatchError, PartType
from hounsfield.archive.web.stow_results import (
    CANNOT_UNDERSTAND,
    DOES_NOT_MATCH,
    OTHER_STUDY,
    OUT_OF_RESOURCES,
    PartResult,
)

METADATA_TYPES: Final = frozenset({DICOM_JSON, DICOM_XML, JSON})
#: What reading JSON raises: text that is not UTF-8 is met when the strings are made.
_NO_JSON: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_INLINE_BYTES: Final = 65_536  # of metadata that is read on the event loop: a millisecond


class MetadataParts:
    """The parts of one request, as they arrive: metadata, then bulk data."""

    def __init__(
        self,
        engine: Engine,
        limits: WebLimits,
        source: Source,
        *,
        url: str,
        study_uid: str | None,
        results: list[PartResult],
        commit: Commit,
    ) -> None:
        self._engine = engine
        self._limits = limits
        self._source = source
        self._url = url
        self._study_uid = study_uid
        self._results = results
        self._commit = commit
        self._parts = 0
        self._metadata_bytes = 0
        self._gathered_bytes = 0
        self._taken = 0  # of the memory budget
        self._users: dict[str, list[ArrivingInstance]] = {}
        self._instances: list[ArrivingInstance] = []
        self._bulk: dict[str, bytes] = {}
        self._part: PartType | None = None
        self._location = ""
        self._gathering: bytearray | None = None
        self._streams_to: ArrivingInstance | None = None

    async def begin(self, headers: Mapping[str, str]) -> None:
        """A part begins."""
        self._parts += 1
        if self._parts > self._limits.parts_max:
            raise WebError(413, f"more than {self._limits.parts_max} parts in one request; send several")
        part = self._part = PartType(headers)
        self._streams_to = self._gathering = None
        if part.media_type in METADATA_TYPES:
            if self._location:
                raise MultipartError("metadata comes before the first bulk data")
            self._gathering = bytearray()
            return
        self._location = self._normal(headers.get("content-location", "")) or "?"
        users = self._users.get(self._location, [])
        if all(one.is_over for one in users):
            if not any(one.result.failure_reason for one in users):
                # Nobody refers to it, or has not got all of it yet: it must not seem to be stored.
                self._results.append(PartResult(failure_reason=CANNOT_UNDERSTAND))
            return
        if len(users) == 1 and users[0].is_ready:
            (one,) = users
            length = one.length_of(part)
            if length is not None:
                self._streams_to = one
                await self._attempt(one, one.begin_part(part, length, b""))
                return
        self._gathering = bytearray()

    async def write(self, data: memoryview | bytes) -> None:
        """Some of the part."""
        one = self._streams_to
        if one is not None:
            if not one.is_over:
                await self._attempt(one, one.write(data))
            return
        if self._gathering is None:
            return
        if not self._location:
            self._metadata_bytes += len(data)
            if self._metadata_bytes > self._limits.metadata_bytes_max:
                raise WebError(
                    413,
                    f"the metadata of one request is longer than {self._limits.metadata_bytes_max} bytes: "
                    "send binary values as bulk data, or several requests",
                )
        elif self._gathered_bytes + len(self._gathering) + len(data) > self._limits.bulk_bytes_max:
            self._let_pass(413)
            return
        if self._is_in_budget(len(data)):
            self._gathering += data
        elif self._location:
            self._let_pass(503)
        else:
            raise OutOfResourcesError(
                "the memory budget for what comes in is used up: send again later, with fewer requests at "
                "once, or raise ingest.memory_bytes_max"
            )

    def _let_pass(self, status: int) -> None:
        """There is no room for this part: its instances cannot be stored, and the request goes on."""
        self._gathering = None
        for user in self._users[self._location]:
            if not user.is_over:
                user.fail(OUT_OF_RESOURCES)
                user.result.status, user.result.retry = status, status == 503
        self._is_in_budget(0)

    def _is_in_budget(self, more: int) -> bool:
        """Have the memory budget know what is held, and ``more``; whether there is so much."""
        gathering = len(self._gathering) if self._gathering is not None and self._location else 0
        wanted = self._metadata_bytes + self._gathered_bytes + gathering
        wanted += more if self._location else 0  # metadata is counted already
        if wanted < self._taken:
            self._engine.memory.give_back(self._taken - wanted)
        elif not self._engine.memory.take_nowait(wanted - self._taken):
            return False
        self._taken = wanted
        return True

    async def end(self) -> None:
        """The part is complete."""
        part, self._part = self._part, None
        one, self._streams_to = self._streams_to, None
        gathered, self._gathering = self._gathering, None
        assert part is not None
        if one is not None:
            if not one.is_over:
                await self._attempt(one, one.end_part())
        elif gathered is not None and not self._location:
            await self._understand(part, bytes(gathered))
        elif gathered is not None:
            await self._deliver(part, bytes(gathered))

    def finish(self) -> None:
        """The body is complete: what has not got all it refers to is not stored."""
        for one in self._instances:
            one.fail(DOES_NOT_MATCH)

    def tear(self) -> None:
        """The body broke off: what is not complete is to be sent again."""
        for one in self._instances:
            one.fail(CANNOT_UNDERSTAND)
        if not self._instances:
            self._results.append(PartResult(failure_reason=CANNOT_UNDERSTAND))

    def abandon(self) -> None:
        """Give back what unfinished instances hold."""
        for one in self._instances:
            one.fail(CANNOT_UNDERSTAND)
        self._engine.memory.give_back(self._taken)
        self._taken = 0

    # ------------------------------------------------------------ metadata

    async def _understand(self, part: PartType, document: bytes) -> None:
        try:
            if len(document) <= _INLINE_BYTES:
                found = _instances_of(part, document)
            else:
                found = await self._engine.heavy(_instances_of, part, document)
        except MultipartError:
            if not self._results:
                raise
            self._results.append(PartResult(failure_reason=CANNOT_UNDERSTAND))
            return
        if len(self._results) + len(found) > self._limits.parts_max:
            raise WebError(413, f"more than {self._limits.parts_max} instances in one request; send several")
        for raw in found:
            result = PartResult()
            self._results.append(result)
            await self._admit(raw, result)

    async def _admit(self, raw: bytes, result: PartResult) -> None:
        """Take in one instance's metadata; store the instance when that is all of it."""

        def look() -> tuple[ArrivingInstance, str]:
            model = msgspec.json.decode(raw)
            return (
                ArrivingInstance(raw, model, result, self._begin_session, self._commit),
                text_of(model, STUDY_INSTANCE_UID),
            )

        try:
            one, study_uid = look() if len(raw) <= _INLINE_BYTES else await self._engine.heavy(look)
        except (ModelError, *_NO_JSON):
            result.failure_reason = CANNOT_UNDERSTAND
            return
        self._instances.append(one)
        one.needs = {self._normal(uri) for uri in one.needs}
        one.uses = frozenset(one.needs)
        for uri in one.needs | ({self._normal(one.pixels.uri)} if one.pixels is not None else set()):
            self._users.setdefault(uri, []).append(one)
        if self._study_uid is not None and study_uid != self._study_uid:
            one.fail(OTHER_STUDY)
            return
        await self._complete(one)

    async def _complete(self, one: ArrivingInstance) -> None:
        """When all but pixel data is here: encode, and store or go on with the pixel data that came."""
        if one.needs or one.is_over:
            return
        bulk = _Bulk(self._bulk, self._normal)
        try:
            if self._metadata_bytes <= _INLINE_BYTES:
                one.encode(bulk)
            else:
                await self._engine.heavy(one.encode, bulk)
        except (ModelError, RecursionError) as error:
            one.fail(CANNOT_UNDERSTAND if isinstance(error, RecursionError) else error)
            return
        finally:
            self._let_go(one)
        if one.pixels is None:
            await self._attempt(one, one.store_without_pixels())
            return
        pending, one.pending = one.pending, []
        for part, data in pending:
            self._gathered_bytes -= len(data)
            if not one.is_over:
                await self._attempt(one, one.whole_part(part, data))

    def _let_go(self, one: ArrivingInstance) -> None:
        """Forget the bulk data that nobody needs any more, ``one`` having used its own."""
        for uri in one.uses:
            users = self._users[uri]
            if all(user.is_over or user.is_ready for user in users):
                self._gathered_bytes -= len(self._bulk.pop(uri, b""))

    def _begin_session(self, syntax: str, sop_class_uid: str, sop_uid: str) -> IngestSession:
        return self._engine.begin(
            transfer_syntax_uid=syntax,
            sop_class_uid=sop_class_uid,
            sop_instance_uid=sop_uid,
            source=self._source,
        )

    # ------------------------------------------------------------ bulk data

    async def _deliver(self, part: PartType, data: bytes) -> None:
        """Give a part that was gathered to all that refer to it."""
        users = [one for one in self._users[self._location] if not one.is_over]
        if any(self._location in one.needs for one in users) and self._location not in self._bulk:
            self._bulk[self._location] = data
            self._gathered_bytes += len(data)
        for one in users:
            if self._location in one.needs:
                one.needs.discard(self._location)
                await self._complete(one)
            elif one.pixels is None or self._normal(one.pixels.uri) != self._location:
                one.fail(DOES_NOT_MATCH)  # a second value for one attribute
            elif one.is_ready:
                await self._attempt(one, one.whole_part(part, data))
            else:
                one.pending.append((part, data))
                self._gathered_bytes += len(data)

    def _normal(self, uri: str) -> str:
        """A URI such that equal ones name the same: absolute, as seen from the request's own."""
        try:
            return urljoin(self._url, uri.strip()) if uri.strip() else ""
        except ValueError:
            return uri

    async def _attempt(self, one: ArrivingInstance, step: Awaitable[None]) -> None:
        try:
            await step
        except (EngineError, MismatchError) as error:
            one.fail(error)


class _Bulk(Mapping[str, bytes]):
    """What was gathered, under the URIs that metadata has for it."""

    def __init__(self, gathered: Mapping[str, bytes], normal: Callable[[str], str]) -> None:
        self._gathered = gathered
        self._normal = normal

    def __getitem__(self, uri: str) -> bytes:
        return self._gathered[self._normal(uri)]

    def __iter__(self) -> Any:
        return iter(self._gathered)

    def __len__(self) -> int:
        return len(self._gathered)


def _instances_of(part: PartType, document: bytes) -> list[bytes]:
    """The JSON of each instance in a metadata part. MultipartError when it is not what it says it is."""
    try:
        if part.media_type == DICOM_XML:
            return [msgspec.json.encode(xml_to_model(document))]
        if document.lstrip()[:1] == b"{":
            return [document]
        return [bytes(one) for one in msgspec.json.decode(document, type=list[msgspec.Raw])]
    except XmlError as error:
        raise MultipartError(str(error)) from None
    except _NO_JSON:
        raise MultipartError("the metadata is not a JSON array of objects") from None
