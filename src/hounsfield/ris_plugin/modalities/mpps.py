"""The Modality Performed Procedure Step SCP (PS3.4 F.7, and F.8 to read them): what modalities report.

What a request means is ``acquisition.performed``'s; here it is read, answered with the status that PS3.7 10.1
and PS3.4 F.7.2 want, and put down for those that it is handed on to (``modalities.mpps_forwarding``), in one
transaction: what was answered with success is kept.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from typing import Final

import trio
from pydicom import config as pydicom_config
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from hounsfield.archive.dicom.attributes import uid_is_usable
from hounsfield.archive.dicom.find_identifier import is_whole
from hounsfield.archive.plugins import (
    Answer,
    Change,
    DimseRefusedError,
    DimseService,
    Parts,
    RecordError,
    Request,
    TransferSyntax,
    lookup,
)
from hounsfield.ris_plugin.acquisition import performed
from hounsfield.ris_plugin.acquisition.performed import MppsError
from hounsfield.ris_plugin.actors import Actor, Role
from hounsfield.ris_plugin.context import Ris
from hounsfield.ris_plugin.errors import RisError
from hounsfield.ris_plugin.modalities import mpps_forwarding
from hounsfield.ris_plugin.records.performed import PerformedSeries

__all__ = ["MPPS", "MPPS_RETRIEVE", "Mpps", "parts"]

MPPS: Final = "1.2.840.10008.3.1.2.3.3"
MPPS_RETRIEVE: Final = "1.2.840.10008.3.1.2.3.4"

Series = Sequence[PerformedSeries] | None

BYTES_READ_AT_ONCE: Final = 64 << 10
"""Longer data sets, of steps with thousands of images, are read on another thread."""
_NOT_SUPPORTED: Final = 0x0001  # requested optional attributes are not supported (F.8.2.1.3)
_INVALID_VALUE, _PROCESSING_FAILURE, _INVALID_INSTANCE = 0x0106, 0x0110, 0x0117
_UNRECOGNIZED, _TOO_MUCH = 0x0211, 0x0213

# Values that are not as their VR wants are kept as they are; a warning would write them into the log.
pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE


class Mpps:
    """One worker's MPPS."""

    def __init__(self, ris: Ris) -> None:
        self._ris = ris

    def service(self) -> DimseService:
        """What the archive is given."""
        return DimseService(
            "mpps", frozenset({MPPS, MPPS_RETRIEVE}), create=self.create, set=self.set, get=self.get
        )

    async def create(self, request: Request) -> Answer:
        """Begin a step (N-CREATE, F.7.2.1); without a SOP Instance UID we give one."""
        _check(request, MPPS)
        uid = request.sop_instance_uid or f"2.25.{uuid.uuid4().int}"
        if not uid_is_usable(uid):
            return Answer(_INVALID_INSTANCE, comment="the SOP Instance UID is none")
        settings, zone = self._ris.settings, self._ris.zone

        def begin(change: Change, actor: Actor, said: Dataset, series: Series) -> None:
            performed.create(change, actor, zone, uid, said, issuer=settings.issuer, series=series)

        return await self._perform(request, "create", uid, begin)

    async def set(self, request: Request) -> Answer:
        """Change or end a step (N-SET, F.7.2.2)."""
        _check(request, MPPS)
        uid, zone = request.sop_instance_uid, self._ris.zone

        def change_it(change: Change, actor: Actor, said: Dataset, series: Series) -> None:
            performed.update(change, actor, zone, uid, said, series=series)

        return await self._perform(request, "set", uid, change_it)

    async def _perform(
        self,
        request: Request,
        operation: str,
        uid: str,
        action: Callable[[Change, Actor, Dataset, Series], None],
    ) -> Answer:
        actor = Actor(request.caller.calling_ae, frozenset({Role.MODALITY}))
        destinations = self._ris.settings.mpps_forward_to

        def plan(change: Change) -> None:
            action(change, actor, said, series)
            mpps_forwarding.put_down(change, destinations, operation, uid, request)

        try:
            said, series = await _read(request)
            await self._ris.commit(plan)
        except MppsError as error:
            return Answer(
                error.code,
                sop_instance_uid=uid,
                comment=str(error),
                error_id=error.error_id,
                attributes=error.tags,
            )
        except RisError as error:
            return Answer(_PROCESSING_FAILURE, sop_instance_uid=uid, comment=str(error))
        except RecordError:
            return Answer(_TOO_MUCH, sop_instance_uid=uid, comment="more than is kept of one step")
        return Answer(sop_instance_uid=uid)

    async def get(self, request: Request) -> Answer:
        """What is known of a step (N-GET, F.8.2.1)."""
        _check(request, MPPS_RETRIEVE)
        uid = request.sop_instance_uid
        with self._ris.reading() as view:
            try:
                _, step = performed.get(view, uid)
            except MppsError as error:
                return Answer(error.code, sop_instance_uid=uid, comment=str(error))
        syntax = lookup(request.transfer_syntax_uid)
        asked = request.attributes
        known = performed.dataset(step)
        missing = tuple(tag for tag in asked if tag not in known)
        shown = known
        if asked:
            shown = Dataset()
            for tag in asked:
                if tag in known:
                    shown[tag] = known[tag]
        return Answer(
            _NOT_SUPPORTED if missing else 0,
            dataset=_written(shown, syntax),
            sop_instance_uid=uid,
            attributes=missing,
        )


def _check(request: Request, sop_class: str) -> None:
    """Each of the two SOP classes has its own operations, on the same instances."""
    if request.sop_class_uid != sop_class:
        raise DimseRefusedError(_UNRECOGNIZED, "this SOP class does not have the operation")


async def _read(request: Request) -> tuple[Dataset, Series]:
    read = partial(_said, request.dataset, lookup(request.transfer_syntax_uid))
    if len(request.dataset) <= BYTES_READ_AT_ONCE:
        return read()
    return await trio.to_thread.run_sync(read)


def _said(data: bytes, syntax: TransferSyntax) -> tuple[Dataset, Series]:
    """A data set, and its series, which no transaction should read: others wait for it. None where the
    transaction is to say what is wrong with them, since something else may be first."""
    said = _decoded(data, syntax)
    try:
        return said, tuple(performed.series_of(said))
    except MppsError:
        return said, None


def _decoded(data: bytes, syntax: TransferSyntax) -> Dataset:
    """A data set with all its text read. MppsError when it is none."""
    if not is_whole(data, syntax):
        raise MppsError(_PROCESSING_FAILURE, "the data set cannot be read in its transfer syntax")
    try:
        said = read_dataset(BytesIO(data), syntax.implicit_vr, syntax.little_endian)
        said.decode()
    except Exception as error:  # of pydicom, about what strangers sent
        raise MppsError(_PROCESSING_FAILURE, "the data set cannot be read") from error
    for tag in said.keys():  # noqa: SIM118 - to iterate over it is to read the values
        try:
            one = Dataset()
            one[tag] = said[tag]
            one.to_json()  # what cannot be kept is found before anything is changed
        except Exception as error:
            raise MppsError(_INVALID_VALUE, "a value cannot be read", tags=[int(tag)]) from error
    return said


def _written(shown: Dataset, syntax: TransferSyntax) -> bytes:
    shown.SpecificCharacterSet = "ISO_IR 192"
    file = DicomBytesIO()
    file.is_little_endian, file.is_implicit_VR = syntax.little_endian, syntax.implicit_vr
    write_dataset(file, shown)
    return file.getvalue()


def parts(ris: Ris) -> Parts:
    """The MPPS of one worker, and what hands it on from the one that leads."""
    forwarding = mpps_forwarding.parts(ris)
    forwarding.services = [Mpps(ris).service()]
    return forwarding
