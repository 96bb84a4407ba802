"""QIDO-RS (PS3.18 10.6): search for studies, series and instances.

No match is 200 with an empty list: clients that parse every answer's body stumble over 204.
"""

from __future__ import annotations

from typing import Final

import msgspec

from hounsfield.archive.dicom.attributes import INSTANCE_LEVEL, SERIES_LEVEL, STUDY_LEVEL
from hounsfield.archive.dicom.json import Model, attributes_to_model
from hounsfield.archive.dicom.levels import COMPUTED_INSTANCE, COMPUTED_SERIES, COMPUTED_STUDY, Level
from hounsfield.archive.dicom.query import Query, parse_qido
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.types import FoundRow
from hounsfield.archive.web import accept
from hounsfield.archive.web.accept import ranges_of
from hounsfield.archive.web.frames import accepted
from hounsfield.archive.web.http import Scope
from hounsfield.archive.web.limits import WebSettings
from hounsfield.archive.web.problems import Header, WebError
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
_SERIES_IF_THERE: Final = frozenset({0x00400244, 0x00400245, 0x00080021, 0x00080031, 0x00180015})
_INSTANCE_IF_THERE: Final = frozenset({0x00280008, 0x00280010, 0x00280011, 0x00280100})

_STUDY_VRS: Final = STUDY_LEVEL | COMPUTED_STUDY | {_CHARACTER_SET: "CS"}
_SERIES_VRS: Final = SERIES_LEVEL | COMPUTED_SERIES
_INSTANCE_VRS: Final = INSTANCE_LEVEL | COMPUTED_INSTANCE


class Qido:
    """Answers search requests."""

    def __init__(self, engine: Engine, settings: WebSettings) -> None:
        self._engine = engine
        self._settings = settings

    async def search(
        self, scope: Scope, level: Level, *, study_uid: str | None = None, series_uid: str | None = None
    ) -> BuffersResponse:
        """One search. Raises ``QueryError`` and what :mod:`.problems` maps."""
        media_type = json_type(scope)
        query = parse_qido(level, parameters(scope), study_uid=study_uid, series_uid=series_uid)
        page = await self._engine.search(query)
        base = base_url(scope, self._settings.base_url)
        above = (study_uid is None, series_uid is None)

        def body() -> bytes:
            return msgspec.json.encode([_answer(query, row, base, above) for row in page.rows])

        # Fifty microseconds an answer: a long list would keep every other request waiting.
        encoded = body() if len(page.rows) <= _ANSWERS_INLINE_MAX else await self._engine.read(body)
        headers = [_warning(text) for text in query.warnings]
        if page.more and query.limit is None:
            headers.append(
                _warning("there are additional results that can be requested with limit and offset")
            )
        return json_response(encoded, media_type, headers=headers)


def json_type(scope: Scope) -> str:
    """Which JSON media type the request takes; ``WebError`` (406) when none."""
    media_type = accept.for_json(ranges_of(*accepted(scope)))
    if media_type is None:
        raise WebError(406, "this is answered as application/dicom+json, which the request does not accept")
    return media_type


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
    study = _chosen(row.study, _STUDY_ALWAYS if own_study else {_STUDY_UID}, frozenset(), wanted, everything)
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
    return attributes_to_model(*levels)


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
