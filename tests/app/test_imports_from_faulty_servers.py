"""Danger: a DICOMweb server or an AE with faults costs objects that it has, or all that come after."""

from __future__ import annotations

import base64
import json
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import trio
from pydicom import dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.uid import generate_uid
from pynetdicom import AE, build_context, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    CTImageStorage,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from hounsfield.archive.app.importing import dicomweb
from hounsfield.archive.app.importing.arriving import Arriving
from hounsfield.archive.app.importing.dicomweb import DicomWeb
from hounsfield.archive.app.importing.entity import Entity
from hounsfield.archive.app.importing.entity_ways import EntityOptions
from hounsfield.archive.app.importing.fates import Fate, Tally
from hounsfield.archive.app.importing.run import ImportOptions, run_import
from hounsfield.archive.app.importing.web_client import WebOptions
from hounsfield.archive.app.importing.work import Source
from hounsfield.archive.net.remote import RemoteEntity, ScuLimits
from hounsfield.archive.net.tls import client_context, server_context
from support.archives import ct_slice
from support.imports import Archive, part10
from support.pki import Authority

BOUNDARY = b"the-boundary"
Instance = tuple[str, bytes]


@dataclass
class Answer:
    """What the server says; ``cut``: of the body only so much, then it hangs up."""

    status: int = 200
    body: bytes = b""
    kind: str = "application/dicom+json"
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    hang: bool = False


@dataclass
class Theirs:
    """A DICOMweb server. ``twist`` may change any answer: it is given the path and the honest one."""

    studies: dict[str, dict[str, list[Instance]]] = field(default_factory=dict)
    twist: Callable[[str, Answer], Answer] = lambda _, answer: answer
    page: int = 1000
    heeds_offset: bool = True
    dates: dict[str, str] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""
    ended: threading.Event = field(default_factory=threading.Event)

    def add(self, series: int = 1, instances: int = 3, day: str = "20260102") -> str:
        study = str(generate_uid())
        self.studies[study] = {}
        self.dates[study] = day
        for _ in range(series):
            uid = str(generate_uid())
            self.studies[study][uid] = []
            for number in range(instances):
                sop = str(generate_uid())
                data = ct_slice(sop_uid=sop, study_uid=study, series_uid=uid, number=number)
                self.studies[study][uid].append((sop, part10(data, sop)))
        return study

    @property
    def uids(self) -> list[str]:
        return sorted(sop for one in self.studies.values() for every in one.values() for sop, _ in every)

    def answer(self, path: str, query: dict[str, list[str]]) -> Answer:
        words = path.strip("/").split("/")[1:]  # behind dicom-web
        offset = int(query.get("offset", ["0"])[0]) if self.heeds_offset else 0
        limit = min(int(query.get("limit", ["1000"])[0]), self.page)
        if words == ["studies"]:
            rows = [
                {
                    "00080020": {"vr": "DA", "Value": [self.dates.get(study, "20260102")]},
                    "0020000D": {"vr": "UI", "Value": [study]},
                    "00201208": {"vr": "IS", "Value": [count(one)]},
                }
                for study, one in self.studies.items()
                if within(query.get("StudyDate", [""])[0], self.dates.get(study, "20260102"))
            ]
            return listed(rows[offset : offset + limit])
        every = self.studies.get(words[1])
        if every is None:
            return Answer(404)
        if words[2:] == ["series"]:
            rows = [
                {"0020000E": {"vr": "UI", "Value": [uid]}, "00201209": {"vr": "IS", "Value": [len(one)]}}
                for uid, one in every.items()
            ]
            return listed(rows[offset : offset + limit])
        chosen = [one for uid, all_ in every.items() if len(words) < 4 or uid == words[3] for one in all_]
        if words[-1] == "instances":
            return listed([{"00080018": {"vr": "UI", "Value": [sop]}} for sop, _ in chosen][offset:][:limit])
        if len(words) == 6:
            chosen = [one for one in chosen if one[0] == words[5]]
        return Answer(200, multipart([data for _, data in chosen]), related())


def related() -> str:
    return f'multipart/related; type="application/dicom"; boundary={BOUNDARY.decode()}'


def multipart(parts: list[bytes]) -> bytes:
    return (
        b"".join(
            b"\r\n--%b\r\nContent-Type: application/dicom\r\n\r\n%b" % (BOUNDARY, part) for part in parts
        )
        + b"\r\n--%b--\r\n" % BOUNDARY
    )


def listed(rows: list[Any]) -> Answer:
    return Answer(200, json.dumps(rows).encode()) if rows else Answer(204)


def within(asked: str, value: str) -> bool:
    """Whether a date or time matches a range, or itself; none matches only nothing."""
    first, dash, last = str(asked).partition("-")
    return not asked or (bool(value) and first <= value <= (last or "9" * 8 if dash else first))


def count(study: dict[str, list[Instance]]) -> int:
    return sum(len(one) for one in study.values())


@contextmanager
def serving(theirs: Theirs, tls: ssl.SSLContext | None = None) -> Iterator[Theirs]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            theirs.asked[parts.path] += 1
            theirs.headers.append({name.lower(): text for name, text in self.headers.items()})
            answer = theirs.twist(parts.path, theirs.answer(parts.path, parse_qs(parts.query)))
            if answer.hang:
                theirs.ended.wait(20)
            self.send_response(answer.status)
            for name, text in {"Content-Type": answer.kind, **answer.headers}.items():
                self.send_header(name, text)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body[: answer.cut])
            if answer.cut is not None:
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    theirs.url = f"http://127.0.0.1:{server.server_address[1]}/dicom-web"
    try:
        yield theirs
    finally:
        theirs.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def theirs() -> Iterator[Theirs]:
    with serving(Theirs()) as one:
        yield one


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive.make(tmp_path / "ours")


def web(theirs: Theirs, **options: Any) -> DicomWeb:
    return DicomWeb(theirs.url, (), WebOptions(**{"pauses_s": (0.0, 0.0), **options}))


def once(path_ends: str, bad: Answer, times: int = 1) -> Callable[[str, Answer], Answer]:
    """The first answers at that path are bad ones."""
    left = [times]

    def twist(path: str, honest: Answer) -> Answer:
        if path.endswith(path_ends) and left[0]:
            left[0] -= 1
            return bad
        return honest

    return twist


def test_pages_of_any_size_are_followed_to_the_end(theirs: Theirs, archive: Archive) -> None:
    for _ in range(7):
        theirs.add(series=2, instances=1)
    theirs.page = 3
    assert archive.bring(web(theirs)) == {"imported": 14}
    assert archive.stored() == theirs.uids
    assert archive.bring(web(theirs)) == {"before": 7}


def test_a_server_that_repeats_itself_is_not_believed(theirs: Theirs, archive: Archive) -> None:
    """It knows no offset, and sends what it has twice."""
    theirs.add(instances=2)

    def twist(path: str, honest: Answer) -> Answer:
        if path.endswith("/studies"):
            return theirs.answer("/dicom-web/studies", {})
        if b"--" + BOUNDARY in honest.body:
            parts = [data for one in theirs.studies.values() for all_ in one.values() for _, data in all_]
            return Answer(200, multipart(parts * 2), related())
        return honest

    theirs.twist = twist
    assert archive.bring(web(theirs)) == {"imported": 2}
    assert theirs.asked["/dicom-web/studies"] == 2


def test_a_server_that_heeds_no_offset_is_asked_for_stretches_of_time(
    theirs: Theirs, archive: Archive
) -> None:
    """It gives 4 rows at most, whichever page is asked for, and loops if one lets it."""
    for number in range(13):
        theirs.add(instances=0, day=f"202601{1 + number:02}")
    theirs.page, theirs.heeds_offset = 11, False
    assert listed_by(archive, web(theirs)) == sorted(theirs.studies)
    assert archive.tally.complaints == []
    assert "stretches of time" in archive.tally.remarks[0]
    assert theirs.asked["/dicom-web/studies"] < 20
    wanted = DicomWeb(theirs.url, [("StudyDate", "20260102-")], WebOptions(pauses_s=(0.0,)))
    assert len(listed_by(archive, wanted)) == 12
    theirs.dates = dict.fromkeys(theirs.dates, "20260101")  # no stretch of time has fewer
    assert len(listed_by(archive, web(theirs))) == 11


@pytest.mark.parametrize("sign", [Answer(413), Answer(200, headers={"Warning": "299 them: more"})])
def test_a_server_that_says_that_there_is_more_is_believed(
    theirs: Theirs, archive: Archive, sign: Answer
) -> None:
    for number in range(13):
        theirs.add(instances=0, day=f"202601{1 + number:02}")

    def twist(path: str, honest: Answer) -> Answer:
        rows = json.loads(honest.body or b"[]")
        if not path.endswith("/studies") or len(rows) <= 10:
            return honest
        return sign if sign.status == 413 else replace(sign, body=json.dumps(rows[:10]).encode())

    theirs.twist = twist
    if sign.status == 200:
        theirs.heeds_offset = False
    assert listed_by(archive, web(theirs)) == sorted(theirs.studies)


def test_a_list_of_series_that_is_cut_short_is_not_all(theirs: Theirs, archive: Archive) -> None:
    study = theirs.add(series=3, instances=1)
    theirs.page, theirs.heeds_offset = 2, False
    assert archive.bring(web(theirs)) == {"imported": 2, "unreadable": 1}
    assert archive.reasons() == {study: "its list of series is cut short"}
    theirs.page = 100
    assert archive.bring(web(theirs)) == {"imported": 1, "before": 2}


@pytest.mark.parametrize("cut", [0, 100, 3000, -300, -1])
def test_half_a_multipart_answer_costs_only_what_did_not_come(
    theirs: Theirs, archive: Archive, cut: int
) -> None:
    study = theirs.add(instances=4)
    (series,) = theirs.studies[study]
    whole = theirs.answer(f"/dicom-web/studies/{study}/series/{series}", {})
    whole.cut = cut % len(whole.body) if cut else 0
    theirs.twist = once(f"/series/{series}", whole)
    assert archive.bring(web(theirs)) == {"imported": 4}
    assert archive.stored() == theirs.uids
    singly = [path for path in theirs.asked if "/instances/" in path]
    assert len(singly) < 4, "what had come was asked for again"
    assert archive.bring(web(theirs)) == {"before": 1}


BUSY, BROKEN = Answer(503, headers={"Retry-After": "0"}), Answer(200, b"--wrong", related())


@pytest.mark.parametrize(
    ("bad", "where"),
    [(bad, where) for bad in (Answer(500), BUSY) for where in ("/studies", "/series", "")] + [(BROKEN, "")],
)
def test_what_passes_is_waited_for(theirs: Theirs, archive: Archive, bad: Answer, where: str) -> None:
    study = theirs.add()
    theirs.twist = once(where or next(iter(theirs.studies[study])), bad, times=2)
    assert archive.bring(web(theirs)) == {"imported": 3}


def test_what_fails_for_good_is_said_and_the_rest_comes(theirs: Theirs, archive: Archive) -> None:
    bad = [theirs.add() for _ in range(5)]
    good = theirs.add()
    page = b"<html>please log in</html>"
    torn = multipart([b"no DICOM", *(data for one in theirs.studies[bad[4]].values() for _, data in one[1:])])

    def twist(path: str, honest: Answer) -> Answer:
        if bad[0] in path and "series/" in path:
            return Answer(500)
        if bad[1] in path:
            return Answer(404)
        if bad[2] in path and "series/" in path:
            return Answer(200, page, "text/html")
        if bad[3] in path and path.endswith("/series"):
            return Answer(200, b'{"not": "a list"}')
        if bad[4] in path and path.count("/") == 5 and "instances" not in path:
            return Answer(200, torn, related())
        if bad[4] in path and path.endswith(never):
            return Answer(200, b"no DICOM", "application/dicom")
        return honest

    never = next(iter(theirs.studies[bad[4]].values()))[0][0]
    theirs.twist = twist
    counts = archive.bring(web(theirs))
    assert counts == {"imported": 5, "rejected": 1, "unreadable": 4}
    reasons = {
        one.place.partition("/studies/")[2].partition("/")[0]: one.reason for one in archive.tally.noted
    }
    assert reasons[bad[0]] == "it answers 500"
    assert reasons[bad[1]] == "it answers 404"
    assert "text/html" in reasons[bad[2]]
    assert "no list" in reasons[bad[3]]
    assert "not a DICOM file" in reasons[bad[4]]
    assert good not in reasons
    theirs.twist = lambda _, honest: honest
    again = archive.bring(web(theirs))
    assert again == {"imported": 13, "already there": 2, "before": 1}
    assert archive.stored() == theirs.uids
    assert archive.bring(web(theirs)) == {"before": 6}


@pytest.mark.parametrize("status", [401, 403])
def test_who_is_not_let_in_hears_so_once(theirs: Theirs, archive: Archive, status: int) -> None:
    theirs.add()
    theirs.twist = lambda *_: Answer(status)
    assert archive.bring(web(theirs)) == {}
    (complaint,) = archive.tally.complaints
    assert f"does not let us in ({status})" in complaint
    assert sum(theirs.asked.values()) == 1


def test_tokens_and_passwords_are_shown(theirs: Theirs, archive: Archive) -> None:
    theirs.add()
    archive.bring(web(theirs, user="import", password="pass"))
    expected = "Basic " + base64.b64encode(b"import:pass").decode()
    assert {one["authorization"] for one in theirs.headers} == {expected}
    theirs.headers.clear()
    archive.bring(web(theirs, bearer="token"), afresh=True)
    assert {one["authorization"] for one in theirs.headers} == {"Bearer token"}


def test_a_server_that_is_silent_is_given_up(theirs: Theirs, archive: Archive) -> None:
    study = theirs.add()
    other = theirs.add()
    theirs.twist = lambda path, honest: Answer(hang=True) if study in path and "/series/" in path else honest
    counts = archive.bring(web(theirs, timeout_s=2, pauses_s=()))
    assert counts == {"imported": 3, "unreadable": 1}
    assert list(archive.reasons().values()) == ["no answer within 2 s"]
    assert sorted(sop for one in theirs.studies[other].values() for sop, _ in one) == archive.stored()


def test_old_servers_that_convert_or_list_no_series(theirs: Theirs, archive: Archive) -> None:
    study = theirs.add(series=2)

    def twist(path: str, honest: Answer) -> Answer:
        if path.endswith("/series"):
            return Answer(501)
        if honest.kind.startswith("multipart") and "transfer-syntax=*" in theirs.headers[-1]["accept"]:
            return Answer(406)
        return honest

    theirs.twist = twist
    assert archive.bring(web(theirs), jobs=1) == {"imported": 6}
    assert f"/dicom-web/studies/{study}" in theirs.asked


def test_lies_about_numbers_and_names(theirs: Theirs, archive: Archive) -> None:
    """A series that is said to have more, a study whose UID leads elsewhere, one with nothing in it."""
    study = theirs.add()
    empty = theirs.add(series=0)

    def twist(path: str, honest: Answer) -> Answer:
        if path.endswith(f"{study}/series"):
            rows = json.loads(honest.body or b"[]")
            for row in rows:
                row["00201209"]["Value"] = [99]
            return listed([*rows, {"0020000E": {"vr": "UI", "Value": ["../x"]}}, {}])
        if path.endswith("/studies") and honest.body:
            trap = {"0020000D": {"vr": "UI", "Value": ["../../admin"]}}
            return listed([trap, {"0020000D": "nonsense"}, *json.loads(honest.body)])
        return honest

    theirs.twist = twist
    assert archive.bring(web(theirs)) == {"imported": 3, "unreadable": 6}
    reasons = [one.reason for one in archive.tally.noted]
    assert "96 of its 99 instances did not come" in reasons
    assert "listed, and without a series" in reasons
    assert reasons.count("the server lists something whose UID is none") == 4
    assert not any("admin" in path for path in theirs.asked)
    assert empty in theirs.studies


def test_a_server_that_fails_at_everything_is_left_alone(
    theirs: Theirs, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicomweb, "FAILURES_MAX", 5)
    for _ in range(30):
        theirs.add(instances=1)
    theirs.twist = lambda path, honest: Answer(500) if path.count("/") > 2 else honest
    counts = archive.bring(web(theirs, pauses_s=()), jobs=1)
    assert counts == {"unreadable": 5}
    (complaint,) = archive.tally.complaints
    assert "5 failures in a row" in complaint


def test_whose_certificate_is_not_trusted_gets_no_password(archive: Archive, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki")
    shown = authority.sign("127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(shown.pem, shown.key)
    with serving(Theirs(), context) as theirs:
        theirs.add()
        theirs.url = theirs.url.replace("http:", "https:")
        assert archive.bring(web(theirs, user="import", password="pass")) == {}
        (complaint,) = archive.tally.complaints
        assert "its certificate is not trusted" in complaint
        assert not archive.tally.unreachable
        assert not theirs.headers
        trusting = ssl.create_default_context(cafile=authority.pem)
        trusting.check_hostname = False
        assert archive.bring(web(theirs, tls=trusting)) == {"imported": 3}


def test_an_object_is_not_gathered_before_it_is_handed_on(
    theirs: Theirs, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, series, uid = (str(generate_uid()) for _ in range(3))
    data = ct_slice(sop_uid=uid, study_uid=study, series_uid=series, pixels=bytes(40 << 20))
    theirs.studies[study] = {series: [(uid, part10(data, uid))]}
    pieces: list[int] = []
    plain = Arriving.write

    async def write(self: Arriving, piece: Any) -> None:
        pieces.append(len(piece))
        await plain(self, piece)

    monkeypatch.setattr(Arriving, "write", write)
    assert archive.bring(web(theirs)) == {"imported": 1}
    assert sum(pieces) > 40 << 20
    assert max(pieces) <= 1 << 20


# ---------------------------------------------------------------- AEs


@dataclass
class TheirAe:
    """An AE with studies of 3 slices each. ``get``: what it does at each C-GET, by number: steps."""

    studies: dict[str, list[Dataset]] = field(default_factory=dict)
    port: int = 0
    gets: int = 0
    find_status: int = 0x0000
    break_off: int = 0
    """How many C-GETs are aborted after their first object."""
    failing: set[str] = field(default_factory=set)
    provides_get: bool = True
    more_than_there_are: int = 0
    finds: int = 0
    at_most: int = 0
    """Answers to one C-FIND, the newest studies; 0: all."""
    says_so: int = 0x0000
    """The status when there are more."""
    heeds_ranges: bool = True
    tls: ssl.SSLContext | None = None
    moves_to: int = 0
    moves_with: tuple[ssl.SSLContext, str | None] | None = None
    dates: dict[str, tuple[str, str]] = field(default_factory=dict)
    server: Any = None

    def add(self, day: str = "", time: str = "", slices: int = 3) -> str:
        study, series = str(generate_uid()), generate_uid()
        self.studies[study] = []
        self.dates[study] = day, time
        for number in range(slices):
            uid = str(generate_uid())
            raw = part10(ct_slice(sop_uid=uid, study_uid=study, series_uid=series, number=number), uid)
            self.studies[study].append(dcmread(DicomBytesIO(raw)))
        return study

    def start(self) -> None:
        ae = AE("THEIRS")
        ae.require_called_aet = True
        ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
        if self.provides_get:
            ae.add_supported_context(StudyRootQueryRetrieveInformationModelGet)
        ae.add_supported_context(StudyRootQueryRetrieveInformationModelMove)
        ae.add_supported_context(CTImageStorage, scu_role=True, scp_role=True)
        ae.maximum_associations = 20

        def found(event: Any) -> Any:
            if self.find_status:
                yield self.find_status, None
                return
            self.finds += 1
            wanted = [
                one
                for one in sorted(self.dates, key=self.dates.__getitem__, reverse=True)
                if not self.heeds_ranges or self._matches(event.identifier, *self.dates[one])
            ]
            for study in wanted[: self.at_most or None]:
                slices = self.studies[study]
                row = Dataset()
                row.QueryRetrieveLevel = "STUDY"
                row.StudyDate, row.StudyTime = self.dates[study]
                row.StudyInstanceUID = study
                row.NumberOfStudyRelatedInstances = len(slices) + self.more_than_there_are
                yield 0xFF00, row
            if self.at_most and len(wanted) > self.at_most:
                yield self.says_so, None

        def get(event: Any) -> Any:
            self.gets += 1
            slices = self.studies[str(event.identifier.StudyInstanceUID)]
            yield len(slices)
            for one in slices:
                if str(one.SOPInstanceUID) in self.failing:
                    broken = Dataset()
                    broken.SOPClassUID, broken.SOPInstanceUID = "1.2.3.4", one.SOPInstanceUID
                    yield 0xFF00, broken
                    continue
                yield 0xFF00, one
                if self.break_off:
                    self.break_off -= 1
                    event.assoc.abort()
                    return

        def move(event: Any) -> Any:
            slices = self.studies[str(event.identifier.StudyInstanceUID)]
            contexts = [build_context(CTImageStorage)]
            yield "127.0.0.1", self.moves_to, {"tls_args": self.moves_with, "contexts": contexts}
            yield len(slices)
            for one in slices:
                yield 0xFF00, one

        handlers = [(evt.EVT_C_FIND, found), (evt.EVT_C_GET, get), (evt.EVT_C_MOVE, move)]
        self.server = ae.start_server(
            ("127.0.0.1", 0), block=False, evt_handlers=handlers, ssl_context=self.tls
        )
        self.port = self.server.server_address[1]

    def _matches(self, asked: Dataset, day: str, time: str) -> bool:
        return within(asked.StudyDate or "", day) and within(asked.StudyTime or "", time)

    @property
    def uids(self) -> list[str]:
        return sorted(str(one.SOPInstanceUID) for every in self.studies.values() for one in every)

    def source(self, called: str = "THEIRS", **keys: str) -> Entity:
        remote = RemoteEntity("127.0.0.1", self.port, called_ae=called, calling_ae="OURS")
        limits = ScuLimits(associate_s=20, response_s=20)
        wanted = {f"{tag_for_keyword(key):08X}": {"vr": "DA", "Value": [text]} for key, text in keys.items()}
        return Entity(remote, wanted, EntityOptions(limits=limits, pauses_s=(0.0, 0.0)))


@pytest.fixture
def ae() -> Iterator[TheirAe]:
    one = TheirAe()
    one.add()
    one.add()
    yield one
    if one.server is not None:
        one.server.shutdown()


def test_an_ae_that_breaks_off_is_asked_again(ae: TheirAe, archive: Archive) -> None:
    ae.break_off = 2
    ae.start()
    assert archive.bring(ae.source(), jobs=2) == {"imported": 6}
    assert archive.stored() == ae.uids
    assert archive.bring(ae.source()) == {"before": 2}


def test_an_ae_that_cannot_send_all_is_said_and_asked_again_next_time(ae: TheirAe, archive: Archive) -> None:
    study = ae.add()
    ae.failing = {str(ae.studies[study][1].SOPInstanceUID)}
    ae.start()
    assert archive.bring(ae.source(), jobs=1) == {"imported": 8, "unreadable": 1}
    ((place, reason),) = archive.reasons(Fate.UNREADABLE).items()
    assert place == study
    assert "1 objects were not sent" in reason
    ae.failing.clear()
    assert archive.bring(ae.source()) == {"imported": 1, "already there": 2, "before": 2}


def test_an_ae_that_sends_fewer_than_it_says_is_not_done_with(ae: TheirAe, archive: Archive) -> None:
    ae.more_than_there_are = 2
    ae.start()
    assert archive.bring(ae.source(), jobs=1) == {"imported": 6, "unreadable": 2}
    assert set(archive.reasons().values()) == {"2 of its 5 instances did not come"}
    ae.more_than_there_are = 0
    assert archive.bring(ae.source(), jobs=1) == {"already there": 6}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"find_status": 0xA700}, "A700"),
        ({"find_status": 0xC001}, "C001"),
        ({"provides_get": False}, "--listen"),
    ],
)
def test_an_ae_that_refuses_says_why(
    ae: TheirAe, archive: Archive, change: dict[str, Any], word: str
) -> None:
    for name, text in change.items():
        setattr(ae, name, text)
    ae.start()
    assert archive.bring(ae.source()) == {}
    (complaint,) = archive.tally.complaints
    assert word in complaint
    assert not archive.tally.unreachable


def test_an_ae_that_does_not_know_the_title_is_no_silence(
    ae: TheirAe, archive: Archive, tmp_path: Path
) -> None:
    ae.start()
    assert archive.bring(ae.source("OTHER")) == {}
    (complaint,) = archive.tally.complaints
    assert "another AE title" in complaint
    assert not archive.tally.unreachable


@pytest.fixture
def busy() -> Iterator[TheirAe]:
    """60 studies, which are only listed: most of one week, twenty of one day, one without a date."""
    one = TheirAe()
    for number in range(39):
        one.add(f"202611{1 + number % 7:02}", f"1{number % 10}0000", slices=0)
    for number in range(20):
        one.add("20251224", f"0800{number:02}", slices=0)
    one.add(slices=0)
    yield one
    if one.server is not None:
        one.server.shutdown()


def listed_by(archive: Archive, source: Source) -> list[str]:
    """The UIDs of the studies that an import would fetch, as often as it would."""
    archive.tally = Tally()
    found: list[str] = []

    async def run() -> None:
        await run_import(
            archive.config,
            [source],
            archive.tally,
            ImportOptions(),
            listing=lambda place, _: found.append(place.rpartition("/")[2]),
        )

    trio.run(run)
    return sorted(found)


@pytest.mark.parametrize("says_so", [0x0000, 0xB000, 0xA700])
def test_an_ae_that_answers_with_some_only_is_asked_for_stretches_of_time(
    busy: TheirAe, archive: Archive, says_so: int
) -> None:
    """Also one that says nothing of it. Each study is listed once."""
    busy.at_most, busy.says_so = 11, says_so
    del busy.dates[next(one for one, day in busy.dates.items() if not day[0])]
    busy.start()
    assert listed_by(archive, busy.source()) == sorted(busy.dates)
    assert archive.tally.complaints == []
    (said,) = archive.tally.remarks
    assert "stretches of time" in said


def test_only_stretches_of_what_is_asked_for(busy: TheirAe, archive: Archive) -> None:
    busy.at_most = 10
    busy.start()
    source = busy.source(StudyDate="20251201-20261102")
    wanted = [one for one, (day, _) in busy.dates.items() if "20251201" <= day <= "20261102"]
    assert len(wanted) == 32
    assert listed_by(archive, source) == sorted(wanted)


def test_an_ae_that_gives_all_is_asked_three_times(busy: TheirAe, archive: Archive) -> None:
    busy.start()
    assert listed_by(archive, busy.source()) == sorted(busy.dates)
    assert busy.finds == 3
    busy.heeds_ranges = False  # 60 is no number that people choose
    assert listed_by(archive, busy.source()) == sorted(busy.dates)
    assert archive.tally.complaints == archive.tally.remarks == []


def test_what_an_ae_cannot_be_asked_for_is_said(busy: TheirAe, archive: Archive) -> None:
    """Too many at one moment; or it heeds no ranges of dates, and gives a number that is a limit."""
    for study, (day, _) in busy.dates.items():
        busy.dates[study] = day, "080000"
    busy.at_most = 12
    busy.start()
    assert len(listed_by(archive, busy.source())) == 60 - 8 - 1
    (complaint,) = archive.tally.complaints
    assert "it gave 12 studies of 20251224 and has more" in complaint
    busy.heeds_ranges, busy.at_most = False, 50
    assert len(listed_by(archive, busy.source())) == 50
    (complaint,) = archive.tally.complaints
    assert "it gave 50 studies and may have more" in complaint


def test_what_is_moved_to_us_comes_with_tls(ae: TheirAe, archive: Archive, tmp_path: Path) -> None:
    """It calls us as we call it; who shows no certificate of the authority is not let in."""
    authority = Authority(tmp_path / "pki")
    us, them = authority.sign("us"), authority.sign("them")
    ae.tls = server_context(them.pem, them.key, client_ca=authority.pem)
    ours = client_context(ca=authority.pem, certificate=us.pem, key=us.key)
    ae.start()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ae.moves_to = listening.getsockname()[1]
        options = EntityOptions(
            limits=ScuLimits(associate_s=20, response_s=20),
            listen=listening,
            listen_tls=server_context(us.pem, us.key, client_ca=authority.pem),
            title="OURS",
            pauses_s=(),
        )
        remote = RemoteEntity("127.0.0.1", ae.port, called_ae="THEIRS", calling_ae="OURS", tls=ours)
        for shown in (None, client_context(ca=authority.pem)):
            ae.moves_with = None if shown is None else (shown, "127.0.0.1")
            assert set(archive.bring(Entity(remote, {}, options), jobs=1)) == {"unreadable"}
        ae.moves_with = client_context(ca=authority.pem, certificate=them.pem, key=them.key), "127.0.0.1"
        assert archive.bring(Entity(remote, {}, options), jobs=1) == {"imported": 6}
