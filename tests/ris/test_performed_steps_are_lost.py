"""Danger: what a modality reports is lost, refused without need, or handed on otherwise than it came."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec import structs
from pydicom.dataset import Dataset
from pynetdicom import AE, evt

from hounsfield.archive.app.asking import ask
from hounsfield.archive.dicom.recoding import NotRecodableError
from hounsfield.archive.plugins import Answer, DimseRefusedError, Outgoing, UnreachableError
from hounsfield.ris_plugin.acquisition.performed import INSTANCES_IN_DATASET_MAX, get
from hounsfield.ris_plugin.modalities.mpps import MPPS, MPPS_RETRIEVE, Mpps
from hounsfield.ris_plugin.modalities.mpps_forwarding import (
    LOOK_SECONDS,
    REFUSALS_RETRIED,
    RETRY_SECONDS_MAX,
    Forwarding,
    parts,
)
from hounsfield.ris_plugin.orders import MACHINE as ORDER_MACHINE
from hounsfield.ris_plugin.records.base import NS
from hounsfield.ris_plugin.records.forwarding import FORWARD, SENT
from hounsfield.ris_plugin.records.orders import ORDER
from hounsfield.ris_plugin.records.schedule import STEP
from hounsfield.ris_plugin.schedule.steps import MACHINE as STEP_MACHINE
from hounsfield.ris_plugin.settings import RisSettings
from ris.conftest import Desk
from ris.following import department
from ris.modality import EXPLICIT, IMPLICIT, decoded, encoded, request, ris_at, take_in
from support.server import archive_server, until

UID = "1.2.826.0.1.1"


def begun(**more: Any) -> Dataset:
    """An N-CREATE with everything that must be in it."""
    said = Dataset()
    said.PerformedProcedureStepStatus = "IN PROGRESS"
    said.PerformedProcedureStepID = "P1"
    said.PerformedStationAETitle = "CT1"
    said.PerformedProcedureStepStartDate = "20261122"
    said.PerformedProcedureStepStartTime = "120500"
    said.Modality = "CT"
    said.PatientID, said.PatientName = "P1", "DOE^JANE"
    item = Dataset()
    item.StudyInstanceUID = "1.2.3"
    said.ScheduledStepAttributesSequence = [item]
    for name, value in more.items():
        setattr(said, name, value)
    return said


def ended(status: str = "COMPLETED", instances: int = 1, **more: Any) -> Dataset:
    said = Dataset()
    said.PerformedProcedureStepStatus = status
    said.PerformedProcedureStepEndDate, said.PerformedProcedureStepEndTime = "20261122", "121500"
    series = Dataset()
    series.SeriesInstanceUID = "1.2.3.1"
    series.ReferencedImageSequence = []
    for number in range(instances):
        one = Dataset()
        one.ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        one.ReferencedSOPInstanceUID = f"1.2.3.1.{number}"
        series.ReferencedImageSequence.append(one)
    said.PerformedSeriesSequence = [series]
    for name, value in more.items():
        setattr(said, name, value)
    return said


@pytest.fixture
def mpps(desk: Desk) -> Mpps:
    return Mpps(ris_at(desk))


async def create(mpps: Mpps, said: Dataset, uid: str = UID, **more: Any) -> Answer:
    return await mpps.create(request(said, sop_class=MPPS, uid=uid, **more))


async def change(mpps: Mpps, said: Dataset, uid: str = UID, **more: Any) -> Answer:
    return await mpps.set(request(said, sop_class=MPPS, uid=uid, **more))


# ---------------------------------------------------------------- N-CREATE, N-SET


async def test_a_step_is_begun_changed_and_ended_for_good(desk: Desk, mpps: Mpps) -> None:
    assert await create(mpps, begun()) == Answer(0, sop_instance_uid=UID)
    again = await create(mpps, begun())
    assert (again.status, again.sop_instance_uid) == (0x0111, UID)
    assert (await change(mpps, ended("IN PROGRESS"))).status == 0
    assert (await change(mpps, ended("COMPLETED"))).status == 0
    late = await change(mpps, ended("DISCONTINUED"))
    assert (late.status, late.error_id) == (0x0110, 0xA710)
    assert desk.look(get, UID)[1].state == "completed"
    assert (await change(mpps, ended(), "1.2.9")).status == 0x0112


async def test_who_leaves_the_uid_to_us_is_told_which(desk: Desk, mpps: Mpps) -> None:
    answer = await create(mpps, begun(), "")
    assert answer.status == 0
    assert answer.sop_instance_uid.startswith("2.25.")
    assert desk.look(get, answer.sop_instance_uid)[1].number == "P1"
    assert (await create(mpps, begun(), "no.uid")).status == 0x0117


def without(name: str) -> Dataset:
    said = begun()
    delattr(said, name)
    return said


@pytest.mark.parametrize(
    ("said", "status", "tag"),
    [
        (without("Modality"), 0x0120, 0x00080060),
        (without("PerformedProcedureStepID"), 0x0120, 0x00400253),
        (without("PerformedStationAETitle"), 0x0120, 0x00400241),
        (without("PerformedProcedureStepStartDate"), 0x0120, 0x00400244),
        (without("PerformedProcedureStepStartTime"), 0x0120, 0x00400245),
        (without("ScheduledStepAttributesSequence"), 0x0120, 0x00400270),
        (begun(Modality=""), 0x0121, 0x00080060),
        (begun(ScheduledStepAttributesSequence=[]), 0x0121, 0x00400270),
        (begun(ScheduledStepAttributesSequence=[Dataset()]), 0x0120, 0x0020000D),
        (begun(PerformedProcedureStepStatus="COMPLETED"), 0x0106, 0x00400252),
    ],
)  # fmt: skip
async def test_a_begin_that_says_too_little_is_refused(
    desk: Desk, mpps: Mpps, said: Dataset, status: int, tag: int
) -> None:
    answer = await create(mpps, said)
    assert (answer.status, answer.attributes) == (status, (tag,))
    assert (await change(mpps, ended())).status == 0x0112


@pytest.mark.parametrize(
    ("said", "status", "tags"),
    [
        (ended("DONE"), 0x0106, (0x00400252,)),
        (ended(PatientID="P2"), 0x0106, (0x00100020,)),
        (ended(PerformedStationAETitle="CT2", Modality="MR"), 0x0106, (0x00080060, 0x00400241)),
        (ended(PerformedProcedureStepEndDate=""), 0x0121, (0x00400250,)),
        (ended(PerformedSeriesSequence=[]), 0x0121, (0x00400340,)),
        (ended(PerformedSeriesSequence=[Dataset()]), 0x0120, (0x0020000E,)),
    ],
)
async def test_an_end_that_cannot_be_changes_nothing(
    desk: Desk, mpps: Mpps, said: Dataset, status: int, tags: tuple[int, ...]
) -> None:
    await create(mpps, begun())
    before = desk.look(get, UID)
    answer = await change(mpps, said)
    assert (answer.status, answer.attributes) == (status, tags)
    assert desk.look(get, UID) == before
    assert (await change(mpps, ended())).status == 0


async def test_who_says_again_what_is_known_is_heard(desk: Desk, mpps: Mpps) -> None:
    """Many devices send the whole data set each time."""
    await create(mpps, begun())
    whole = begun()
    whole.update(ended())
    whole.AdmissionID = ""  # and nothing of what was not said either
    assert (await change(mpps, whole)).status == 0
    assert desk.look(get, UID)[1].state == "completed"


async def test_a_step_that_was_discontinued_before_its_first_series_ends(desk: Desk, mpps: Mpps) -> None:
    await create(mpps, begun())
    assert (await change(mpps, ended("DISCONTINUED", PerformedSeriesSequence=[]))).status == 0
    assert desk.look(get, UID)[1].state == "discontinued"


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
async def test_bytes_that_are_no_data_set_are_refused(mpps: Mpps, syntax: str) -> None:
    data = encoded(begun(), syntax)
    for cut in range(1, len(data), 7):
        asked = request(Dataset(), syntax=syntax, sop_class=MPPS, uid=UID)
        answer = await mpps.create(type(asked)(**{**_fields(asked), "dataset": data[:cut]}))
        assert answer.status in {0x0110, 0x0120}, cut


def _fields(asked: Any) -> dict[str, Any]:
    return {name: getattr(asked, name) for name in asked.__dataclass_fields__}


async def test_operations_of_the_other_sop_class_are_not_known(mpps: Mpps) -> None:
    with pytest.raises(DimseRefusedError):
        await mpps.create(request(begun(), sop_class=MPPS_RETRIEVE, uid=UID))
    with pytest.raises(DimseRefusedError):
        await mpps.get(request(Dataset(), sop_class=MPPS, uid=UID))


async def test_a_step_of_very_many_images_is_kept_and_tracked(desk: Desk, mpps: Mpps) -> None:
    many = INSTANCES_IN_DATASET_MAX + 1
    await create(mpps, begun())
    assert (await change(mpps, ended("IN PROGRESS", many))).status == 0
    comment = Dataset()
    comment.CommentsOnThePerformedProcedureStep = "one more"
    assert (await change(mpps, comment)).status == 0
    (series,) = desk.look(get, UID)[1].series
    assert len(series.instances) == many


@pytest.mark.parametrize("of_order", ORDER_MACHINE.states)
@pytest.mark.parametrize("status", ["COMPLETED", "DISCONTINUED"])
async def test_what_was_performed_is_taken_whatever_the_desk_did_meanwhile(
    desk: Desk, mpps: Mpps, of_order: str, status: str
) -> None:
    """The patient lies there: an order that was cancelled, held, or done already is no reason to refuse."""
    for number, of_step in enumerate(STEP_MACHINE.states):
        item = Dataset()
        item.AccessionNumber, item.PatientID, item.StudyInstanceUID = (
            f"A{number}",
            f"P{number}",
            f"1.2.3.{number}",
        )
        step = Dataset()
        step.Modality, step.ScheduledProcedureStepID = "CT", f"S{number}"
        step.ScheduledProcedureStepStartDate, step.ScheduledProcedureStepStartTime = "20261122", "120000"
        item.ScheduledProcedureStepSequence = [step]

        def plan(change: Any, item: Dataset = item, of_step: str = of_step) -> None:
            step_id = take_in(change, item)
            step = change.get(STEP, step_id)
            change.put(STEP, step_id, structs.replace(step, state=of_step))
            order = change.get(ORDER, step.order)
            change.put(ORDER, step.order, structs.replace(order, state=of_order))

        desk.commit(plan)
        of = Dataset()
        of.StudyInstanceUID, of.AccessionNumber = item.StudyInstanceUID, item.AccessionNumber
        of.ScheduledProcedureStepID = f"S{number}"
        uid = f"1.2.4.{number}"
        said = begun(ScheduledStepAttributesSequence=[of], PatientID=item.PatientID)
        assert (await create(mpps, said, uid)).status == 0
        assert (await change(mpps, ended(status), uid)).status == 0
        _, performed = desk.look(get, uid)
        assert (len(performed.steps), len(performed.orders)) == (1, 1), of_step


# ---------------------------------------------------------------- N-GET, character sets


@pytest.mark.parametrize(
    ("declared", "name"),
    [
        ("ISO_IR 100", "MÜLLER^JÖRG"),
        ("ISO_IR 192", "Δημητρίου^Ελένη"),
        ("\\ISO 2022 IR 87", "YAMADA^TARO=山田^太郎"),
    ],
)
async def test_text_is_read_in_its_character_set_and_given_in_utf_8(
    desk: Desk, mpps: Mpps, declared: str, name: str
) -> None:
    said = begun()
    said.SpecificCharacterSet = declared.split("\\")
    said.PatientName = name
    assert (await create(mpps, said)).status == 0
    other = Dataset()
    other.SpecificCharacterSet = "ISO_IR 192"
    other.PerformedProcedureStepDescription = "Übersicht 山"
    assert (await change(mpps, other)).status == 0
    answer = await mpps.get(request(Dataset(), sop_class=MPPS_RETRIEVE, uid=UID))
    shown = decoded(answer.dataset)
    assert (answer.status, str(shown.PatientName)) == (0, name)
    assert shown.PerformedProcedureStepDescription == "Übersicht 山"


async def test_of_a_step_is_given_what_is_asked(mpps: Mpps) -> None:
    await create(mpps, begun())
    asked = request(Dataset(), syntax=IMPLICIT, sop_class=MPPS_RETRIEVE, uid=UID)
    asked = type(asked)(**{**_fields(asked), "attributes": (0x00080060, 0x00102160)})
    answer = await mpps.get(asked)
    assert (answer.status, answer.attributes) == (0x0001, (0x00102160,))
    shown = decoded(answer.dataset, IMPLICIT)
    assert (shown.Modality, len(shown)) == ("CT", 2)
    assert (await mpps.get(request(Dataset(), sop_class=MPPS_RETRIEVE, uid="1.9"))).status == 0x0112


# ---------------------------------------------------------------- handing on


@dataclass
class Destination:
    """Others, as ``archive.send`` reaches them; answers as scripted, then with success."""

    script: list[Any] = field(default_factory=list)
    heard: list[tuple[str, Outgoing]] = field(default_factory=list)

    async def send(self, ae_title: str, requests: list[Outgoing]) -> list[Answer]:
        (one,) = requests
        step = self.script.pop(0) if self.script else Answer(0)
        if isinstance(step, Exception):
            raise step
        self.heard.append((ae_title, one))
        return [] if step is None else [step]


@pytest.fixture
def forwarded(desk: Desk) -> Iterator[tuple[Mpps, Destination, Forwarding]]:
    ris = ris_at(desk, mpps_forward_to=("PACS",))
    destination = Destination()
    ris.archive.send = destination.send  # type: ignore[method-assign]
    yield Mpps(ris), destination, Forwarding(ris, "PACS")


Forwarded = tuple[Mpps, Destination, Forwarding]


def waiting(desk: Desk) -> int:
    with desk.view() as view:
        return len(view.ids(FORWARD, "waiting", "PACS"))


async def test_requests_go_out_as_they_came_in_order(desk: Desk, forwarded: Forwarded) -> None:
    mpps, destination, forwarding = forwarded
    private = begun()
    private.add_new(0x00091010, "LO", "a maker's own")
    private.add_new(0x00090010, "LO", "MAKER 1.0")
    private.PatientName = "MÜLLER"
    private.SpecificCharacterSet = "ISO_IR 100"
    await create(mpps, private)
    await change(mpps, ended(), syntax=IMPLICIT)
    assert (await create(mpps, begun())).status == 0x0111  # what is refused is not handed on
    while waiting(desk):
        await forwarding.send_next()
    sent = [(one.operation, one.sop_instance_uid) for _, one in destination.heard]
    assert sent == [("create", UID), ("set", UID)]
    assert destination.heard[0][1].dataset == encoded(private)
    assert decoded(destination.heard[1][1].dataset) == ended()


async def test_what_is_to_be_sent_goes_out_when_it_is_there(tmp_path: Path) -> None:
    """Nobody waits for the next look."""
    async with department(tmp_path / "data", settings=RisSettings(mpps_forward_to=("PACS",))) as here:
        destination = Destination()
        here.ris.archive.send = destination.send  # type: ignore[method-assign]
        mpps = Mpps(here.ris)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Forwarding(here.ris, "PACS").run)
            for number in range(1, 4):
                await create(mpps, begun(), f"1.2.{number}")
                with trio.fail_after(LOOK_SECONDS / 2):
                    while len(destination.heard) < number:
                        await trio.sleep(0.01)
            nursery.cancel_scope.cancel()


async def test_who_cannot_be_reached_is_asked_again_later_and_less_often(
    desk: Desk, forwarded: Forwarded
) -> None:
    mpps, destination, forwarding = forwarded
    await create(mpps, begun())
    await change(mpps, ended())
    destination.script = [UnreachableError("no answer"), None, *[UnreachableError("no answer")] * 10]
    pauses = []
    while destination.script:
        await forwarding.send_next()
        with desk.view() as view:
            _, first = view.first(FORWARD, "waiting", "PACS") or ("", None)
        assert first is not None
        assert first.operation == "create"
        pauses.append((first.next_ns - desk.now_ns) / NS)
        heard = len(destination.heard)
        assert await forwarding.send_next() > 0
        assert len(destination.heard) == heard  # not due yet
        desk.now_ns = first.next_ns
    assert pauses == sorted(pauses)
    assert pauses[-1] == RETRY_SECONDS_MAX
    assert waiting(desk) == 2
    while waiting(desk):
        await forwarding.send_next()
    assert [one.operation for _, one in destination.heard][-2:] == ["create", "set"]


async def test_a_refused_request_stays_to_be_seen_and_tried_again(desk: Desk, forwarded: Forwarded) -> None:
    mpps, destination, forwarding = forwarded
    await create(mpps, begun())
    destination.script = [Answer(0x0120, comment="missing attribute")]
    await forwarding.send_next()
    assert waiting(desk) == 0
    operations = parts(mpps._ris).operations
    state = await operations["mpps"]()
    assert (state["destinations"][0]["refused"], state["refused"][0]["error"]) == (
        1,
        "0120 missing attribute",
    )
    assert [event.kind for event in desk.said()][-1] == "ris.mpps-refused"
    figures = {
        sample.name: sample
        for each in parts(mpps._ris).metrics()
        for sample in each.samples
        if sample.labels.get("state") != "waiting"
    }
    assert figures["hounsfield_ris_mpps_queued"].value == 1
    assert figures["hounsfield_ris_mpps_oldest_seconds"].value == 0
    await operations["mpps-again"](forward=state["refused"][0]["forward"])
    await forwarding.send_next()
    assert len(destination.heard) == 2
    assert (await operations["mpps"]())["destinations"][0]["refused"] == 0


@pytest.mark.parametrize(
    ("answers", "state"),
    [
        ([Answer(0x0111)], "sent"),  # it was sent, and a crash came before that was noted
        ([Answer(0x0116)], "sent"),
        ([Answer(0x0110)] * REFUSALS_RETRIED, "refused"),
        ([*[Answer(0x0213)] * (REFUSALS_RETRIED + 3), Answer(0)], "sent"),
    ],
)
async def test_what_passes_is_tried_again_and_what_does_not_is_not(
    desk: Desk, forwarded: Forwarded, answers: list[Answer], state: str
) -> None:
    mpps, destination, forwarding = forwarded
    await create(mpps, begun())
    destination.script = answers
    while waiting(desk):
        await forwarding.send_next()
        desk.now_ns += int(RETRY_SECONDS_MAX * NS)
    assert not destination.script
    with desk.view() as view:
        (found,) = [one for _, one in view.find(FORWARD, state, "PACS")]
    assert found.packed == (b"" if state == SENT else found.packed)


async def test_what_cannot_be_sent_does_not_stop_what_follows(
    desk: Desk, forwarded: Forwarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    mpps, destination, forwarding = forwarded
    await create(mpps, begun(), syntax=IMPLICIT)
    await change(mpps, ended())

    def recoded(*_: Any) -> None:
        raise NotRecodableError("no VR for this")

    monkeypatch.setattr("hounsfield.ris_plugin.modalities.mpps_forwarding.recoded", recoded)
    while waiting(desk):
        await forwarding.send_next()
    assert [one.operation for _, one in destination.heard] == ["set"]
    assert (await parts(mpps._ris).operations["mpps"]())["refused"][0]["error"] == "no VR for this"


async def test_an_end_that_was_there_already_is_sent(desk: Desk, forwarded: Forwarded) -> None:
    mpps, destination, forwarding = forwarded
    await create(mpps, begun())
    await change(mpps, ended())
    destination.script = [Answer(0), Answer(0x0110, error_id=0xA710)]
    while waiting(desk):
        await forwarding.send_next()
    assert (await parts(mpps._ris).operations["mpps"]())["destinations"][0]["refused"] == 0


# ---------------------------------------------------------------- a real server


def test_pynetdicom_reports_a_step_and_another_system_hears_of_it(tmp_path: Path) -> None:
    heard: list[tuple[str, str, Dataset]] = []

    def created(event: Any) -> tuple[int, Dataset]:
        heard.append(("create", str(event.request.AffectedSOPInstanceUID), event.attribute_list))
        return 0x0000, event.attribute_list

    def changed(event: Any) -> tuple[int, Dataset]:
        heard.append(("set", str(event.request.RequestedSOPInstanceUID), event.modification_list))
        return 0x0000, event.modification_list

    other = AE(ae_title="PACS")
    other.add_supported_context(MPPS)
    handlers = [(evt.EVT_N_CREATE, created), (evt.EVT_N_SET, changed)]
    listener = other.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    try:
        settings = ('plugins.ris.mpps_forward_to=["PACS"]',)
        with archive_server(tmp_path, *settings, workers=2) as server:
            added = server.run("ae", "add", "PACS", f"127.0.0.1:{listener.server_address[1]}")
            assert added.returncode == 0, added.stderr
            entity = AE(ae_title="CT1")
            for uid in (MPPS, MPPS_RETRIEVE):
                entity.add_requested_context(uid)
            association = entity.associate("127.0.0.1", server.dicom_port, ae_title="HOUNSFIELD")
            assert association.is_established
            assert association.send_n_set(ended(), MPPS, UID)[0].Status == 0x0112
            assert association.send_n_create(begun(), MPPS, UID)[0].Status == 0
            assert association.send_n_create(begun(), MPPS, UID)[0].Status == 0x0111
            wrong = begun(PerformedProcedureStepID="", PatientBirthDate="DOE ON MAY DAY", PatientSex="DOEISH")
            status, _ = association.send_n_create(wrong, MPPS, "1.2.7")
            assert status.Status == 0x0121
            assert association.send_n_set(ended(), MPPS, UID)[0].Status == 0
            status, _ = association.send_n_set(ended(), MPPS, UID)
            assert (status.Status, status.ErrorID) == (0x0110, 0xA710)
            status, shown = association.send_n_get([0x00400252], MPPS_RETRIEVE, UID)
            assert (status.Status, shown.PerformedProcedureStepStatus) == (0, "COMPLETED")
            association.release()
            until(lambda: len(heard) == 2, "both requests were handed on")
            assert [(operation, uid) for operation, uid, _ in heard] == [("create", UID), ("set", UID)]
            assert heard[0][2].PatientName == "DOE^JANE"
            state = ask(server.data / "control.sock", "ris.mpps")
            until(
                lambda: ask(server.data / "control.sock", "ris.mpps")["destinations"][0]["waiting"] == 0,
                "noted",
            )
            assert state["refused"] == []
            assert "DOE" not in server.log_text()
    finally:
        listener.shutdown()
