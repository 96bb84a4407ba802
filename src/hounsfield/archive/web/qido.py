"""QIDO-RS (PS3.18 10.6): search for studies, series and instances.

No match is 200 with an empty list: clients that parse every answer's body stumble over 204. In XML it is 204,
since nothing cannot be written in parts.

What is asked for and not in the index is read from the stored headers: for instances anything, for series
and studies what all of their instances have alike (PS3.18 10.6.3.3). A page of such answers ends where its
limits do, and a Warning says that there are more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import msgspec

from hounsfield.archive.dicom.attributes import INSTANCE_LEVEL, SERIES_LEVEL, STUDY_LEVEL
from hounsfield.archive.dicom.json_model import Model, attributes_to_model
from hounsfield.archive.dicom.levels import (
    COMPUTED_INSTANCE,
    COMPUTED_SERIES,
    COMPUTED_STUDY,
    Level,
    from_headers,
)
from hounsfield.archive.dicom.query import Path, Query, parse_qido
from hounsfield.archive.dicom.xml import model_to_xml
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.errors import DamagedError
from hounsfield.archive.engine.headers import HeaderAttributes
from hounsfield.archive.engine.search import ANSWERS_DEFAULT
from hounsfield.archive.engine.types import FoundRow, SearchPage
from hounsfield.archive.index.rows import Attributes
from hounsfield.archive.web.described import form_of, xml_response
from hounsfield.archive.web.http import Scope
from hounsfield.archive.web.limits import WebSettings
from hounsfield.archive.web.problems import Header
from hounsfield.archive.web.responses import BuffersResponse, json_response
from hounsfield.archive.web.urls import base_url, instance_url, parameters, series_url, study_url

_STUDY_UID, _SERIES_UID, _SOP_UID = 0x0020000D, 0x0020000E, 0x00080018
_RETRIEVE_URL: Final = 0x00081190
_CHARACTER_SET: Final = 0x00080005
_ANSWERS_INLINE_MAX: Final = 32
"""Answers written on the event loop; longer lists go to a thread, which costs 140 µs."""

#: What answers carry without being asked (PS3.18 Tables 10.6.3-3, -4, -5), empty when not known.
_STUDY_ALWAYS: Final = frozenset({
    0x00080020, 0x00080030, 0x00080050, 0x00080056, 0x00080061, 0x00080090, 0x00081030, 0x00100010,
    0x00100020, 0x00100030, 0x00100040, _STUDY_UID, 0x00200010, 0x00201206, 0x00201208,
})  # fmt: skip
_SERIES_ALWAYS: Final = frozenset({0x00080060, 0x0008103E, _SERIES_UID, 0x00200011, 0x00201209})
_INSTANCE_ALWAYS: Final = frozenset({0x00080016, _SOP_UID, 0x00080056, 0x00083002, 0x00200013})
#: Said when the object has them.
_STUDY_IF_THERE: Final = frozenset({0x00080201})
_SERIES_IF_THERE: Final = frozenset({0x00400244, 0x00400245, 0x00080021, 0x00080031, 0x00180015})
_INSTANCE_IF_THERE: Final = frozenset({0x00280008, 0x00280010, 0x00280011, 0x00280100})

_STUDY_VRS: Final = STUDY_LEVEL | COMPUTED_STUDY | {_CHARACTER_SET: "CS"}
_SERIES_VRS: Final = SERIES_LEVEL | COMPUTED_SERIES
_INSTANCE_VRS: Final = INSTANCE_LEVEL | COMPUTED_INSTANCE
_REQUEST_ATTRIBUTES_KEY: Final = "00400275"
_STEP_ID, _PROCEDURE_ID = 0x00400009, 0x00401001
_MORE: Final = "there are additional results that can be requested with limit and offset"


class Qido:
    """Answers search requests."""

    def __init__(self, engine: Engine, settings: WebSettings) -> None:
        self._engine = engine
        self._settings = settings

    async def search(
        self, scope: Scope, level: Level, *, study_uid: str | None = None, series_uid: str | None = None
    ) -> BuffersResponse:
        """One search. Raises ``QueryError`` and what :mod:`.problems` maps."""
        form = form_of(scope)
        query = parse_qido(level, parameters(scope), study_uid=study_uid, series_uid=series_uid)
        paths = _from_headers(query)
        if paths:
            limit = ANSWERS_DEFAULT if query.limit is None else query.limit
            query = replace(query, limit=min(limit, self._settings.limits.search_headers_max))
        page = await self._engine.search(query)
        links = base_url(scope, self._settings.base_url)
        above = (study_uid is None, series_uid is None)

        def answers() -> _Answers:
            found = self._answers(query, page, links, above, paths)
            encode = model_to_xml if form.is_xml else msgspec.json.encode
            found.encoded = [encode(model) for model in found.models]
            return found

        # Fifty microseconds an answer: a long list would keep every other request waiting.
        inline = len(page.rows) <= _ANSWERS_INLINE_MAX and not paths and not form.is_xml
        found = answers() if inline else await self._engine.read(answers)
        headers = [_warning(text) for text in query.warnings]
        if found.unread:
            headers.append(_warning(f"the headers of {found.unread} answers could not be read"))
        if page.more or len(found.models) < len(page.rows):
            headers.append(_warning(_MORE))
        if form.is_xml:
            return xml_response(found.encoded, form, headers=headers)
        return json_response(b"[" + b",".join(found.encoded) + b"]", form.media_type, headers=headers)

    def _answers(
        self, query: Query, page: SearchPage, links: str, above: tuple[bool, bool], paths: frozenset[Path]
    ) -> _Answers:
        """A page's answers, with what their headers say; the page is cut where their bytes are too many."""
        found = _Answers([], [])
        stores = self._engine.stores
        stored = HeaderAttributes(stores.store, stores.catalog, self._engine.header_blocking)
        left = self._settings.limits.search_header_bytes_max
        for row in page.rows:
            model = _answer(query, row, links, above)
            if paths:
                if left <= 0:
                    break
                try:
                    more, read = stored.of(row, paths, links)
                except DamagedError:
                    more, read = {}, 0
                    found.unread += 1
                left -= read
                model = dict(sorted((model | more).items()))
            found.models.append(model)
        return found


@dataclass(slots=True)
class _Answers:
    models: list[Model]
    encoded: list[bytes]
    unread: int = 0


def _from_headers(query: Query) -> frozenset[Path]:
    """What is asked for that only stored headers can tell."""
    asked = query.include_paths | {(tag,) for tag in query.includes}
    return frozenset(path for path in asked if from_headers(query.level, path[0]))


def _warning(text: str) -> Header:
    """A Warning header as PS3.18 8.3.4 wants it: code 299 and who says so."""
    plain = text.encode("ascii", "replace").replace(b"\\", b"").replace(b'"', b"'")
    return b"warning", b'299 hounsfield "%b"' % plain


def _answer(query: Query, row: FoundRow, base: str, above: tuple[bool, bool]) -> Model:
    """One answer. ``above``: whether study and series are told in full too, the path not naming them."""
    wanted = query.includes
    everything = query.include_all
    study_uid = row.study.get(_STUDY_UID, "")
    url = study_url(base, study_uid)
    series, instance = row.series, row.instance
    own_study = query.level is Level.STUDY or above[0]
    study = _chosen(
        row.study,
        _STUDY_ALWAYS if own_study else {_STUDY_UID},
        _STUDY_IF_THERE if own_study else frozenset(),
        wanted,
        everything,
    )
    study[_CHARACTER_SET] = "ISO_IR 192"
    levels = [(study, _STUDY_VRS)]
    if series is not None:
        always = _SERIES_ALWAYS if query.level is Level.SERIES or above[1] else frozenset({_SERIES_UID})
        levels.append((_chosen(series, always, _SERIES_IF_THERE, wanted, everything), _SERIES_VRS))
        url = series_url(base, study_uid, series.get(_SERIES_UID, ""))
        if instance is not None:
            chosen = _chosen(instance, _INSTANCE_ALWAYS, _INSTANCE_IF_THERE, wanted, everything)
            chosen.pop(_CHARACTER_SET, None)
            levels.append((chosen, _INSTANCE_VRS))
            url = instance_url(base, study_uid, series.get(_SERIES_UID, ""), instance.get(_SOP_UID, ""))
    levels[-1][0][_RETRIEVE_URL] = url
    model = attributes_to_model(*levels)
    matched = _STEP_ID in query.matches or _PROCEDURE_ID in query.matches
    if series is not None and (query.level is Level.SERIES or above[1] or everything or matched):
        _request_attributes(model, series)
    return model


def _request_attributes(model: Model, series: Attributes) -> None:
    """Put Request Attributes Sequence into an answer (PS3.18 Table 10.6.3-4).

    The index has the values of all items together. Where they do not tell which belong together, the
    sequence comes only when it is asked for, from the header, as all that is asked for of it.
    """
    steps, procedures = (series.get(tag, "").split("\\") for tag in (_STEP_ID, _PROCEDURE_ID))
    if len(steps) > 1 < len(procedures) or not any((*steps, *procedures)):
        return
    model[_REQUEST_ATTRIBUTES_KEY] = {
        "vr": "SQ",
        "Value": [
            attributes_to_model(({_STEP_ID: step, _PROCEDURE_ID: procedure}, SERIES_LEVEL))
            for step in steps
            for procedure in procedures
        ],
    }


def _chosen(
    attributes: dict[int, str],
    always: frozenset[int] | set[int],
    if_there: frozenset[int],
    wanted: frozenset[int],
    everything: bool,
) -> dict[int, str]:
    if everything:
        return {**dict.fromkeys(always, ""), **attributes}
    chosen = {tag: attributes.get(tag, "") for tag in always}
    asked = {tag: text for tag, text in attributes.items() if tag in wanted or (tag in if_there and text)}
    return chosen | asked
