"""WADO-URI (PS3.18 9): one object as a file or as a picture, named by query parameters.

What it asks for is what WADO-RS gives by other names: it is translated, and answered there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlencode

from hounsfield.archive.dicom.cuts import Layout
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.types import Instance
from hounsfield.archive.rendering.request import FILMS, JPEG, STILL, VIEWPORT_MAX
from hounsfield.archive.web import accept
from hounsfield.archive.web.documents import PDF, is_pdf
from hounsfield.archive.web.http import AsgiApp, Scope
from hounsfield.archive.web.instances import Instances
from hounsfield.archive.web.problems import WebError
from hounsfield.archive.web.rendered import RenderedPictures, UriWishes
from hounsfield.archive.web.urls import parameters
from hounsfield.codecs.registry import lookup

PATH: Final = "/wado"

_RENDERED_ONLY: Final = (
    "frameNumber", "rows", "columns", "region", "windowCenter", "windowWidth", "imageQuality", "annotation",
    "presentationUID", "presentationSeriesUID",
)  # fmt: skip


class WadoUri:
    """Answers requests for single objects."""

    def __init__(self, engine: Engine, instances: Instances, pictures: RenderedPictures) -> None:
        self._engine = engine
        self._instances = instances
        self._pictures = pictures

    async def retrieve(self, scope: Scope) -> AsgiApp:
        """One object. ``WebError`` (400) when the parameters are wrong, 406 when it cannot be had so."""
        given = dict(reversed(parameters(scope)))
        if given.get("requestType") != "WADO":
            raise WebError(400, "requestType must be WADO")
        names = ("studyUID", "seriesUID", "objectUID")
        missing = [name for name in names if not given.get(name)]
        if missing:
            raise WebError(400, f"missing: {', '.join(missing)}")
        if given.get("anonymize", "no") != "no":
            raise WebError(
                400, "objects are not anonymized here: leave anonymize out, or do it where they go"
            )
        where = (given["studyUID"], given["seriesUID"], given["objectUID"])
        (one,) = await self._engine.instances(*where)
        media_type = _media_type(given.get("contentType", ""), one)
        if media_type == accept.DICOM:
            wrong = [name for name in _RENDERED_ONLY if name in given]
            if wrong:
                raise WebError(400, f"{', '.join(wrong)}: for pictures only, not for {accept.DICOM}")
            syntax = given.get("transferSyntax", "*")
            if not syntax.replace(".", "").isdigit() and syntax != "*":
                raise WebError(400, "transferSyntax must be a UID")
            wanted = f"{accept.DICOM}; transfer-syntax={syntax}"
            return await self._instances.retrieve(_asking(scope, wanted, {}), *where)
        if "transferSyntax" in given:
            raise WebError(400, f"transferSyntax: for {accept.DICOM} only, not for pictures")
        if not given.get("frameNumber", "1").isdigit():
            raise WebError(400, "frameNumber must be one number, from 1")
        wishes = UriWishes(_presentation(given), _region(given["region"]) if "region" in given else None)
        asked = _asking(scope, media_type, _rendering(given))
        return await self._pictures.retrieve(asked, *where, given.get("frameNumber"), wishes=wishes)


def _media_type(wanted: str, one: Instance) -> str:
    """What is to be given: of images of one frame pictures, else files, unless contentType says otherwise."""
    layout = Layout(one.row.layout)
    single = layout is not Layout.HEADER_ONLY and one.row.location.frames <= 1
    syntax = lookup(one.row.transfer_syntax_uid)
    video: tuple[str, ...] = (syntax.media_type.lower(),) if syntax.is_video else ()
    documents: tuple[str, ...] = (PDF,) if is_pdf(one) else ()
    default = JPEG if single else accept.DICOM
    if not wanted.strip():
        return default
    for one_range in accept.parse(wanted):
        for offered in (default, JPEG, *STILL, *FILMS, *video, *documents, accept.DICOM):
            if accept.covers(one_range.media_type, offered):
                return offered
    raise WebError(406, f"contentType may be {', '.join((accept.DICOM, *STILL, *FILMS, *documents))}")


def _presentation(given: Mapping[str, str]) -> tuple[str, str] | None:
    """Series and SOP instance UID of the presentation state that is asked for (PS3.18 9.5.1.2)."""
    series_uid, sop_uid = given.get("presentationSeriesUID"), given.get("presentationUID")
    if series_uid is None and sop_uid is None:
        return None
    if not series_uid or not sop_uid:
        raise WebError(400, "presentationSeriesUID and presentationUID come together")
    if "windowCenter" in given:
        raise WebError(400, "windowCenter: not beside presentationUID, which says what to show")
    return series_uid, sop_uid


def _rendering(given: Mapping[str, str]) -> dict[str, str]:
    """The parameters of PS3.18 9.5.1.2 by the names that 8.3.5 has for them."""
    asked: dict[str, str] = {}
    center, width = given.get("windowCenter"), given.get("windowWidth")
    if (center is None) != (width is None):
        raise WebError(400, "windowCenter and windowWidth come together")
    if center is not None:
        asked["window"] = f"{center},{width},linear"
    if "columns" in given or "rows" in given:
        # The side that is not named does not bind.
        asked["viewport"] = ",".join(given.get(side, str(VIEWPORT_MAX)) for side in ("columns", "rows"))
    if "imageQuality" in given:
        asked["quality"] = given["imageQuality"]
    if "annotation" in given:
        asked["annotation"] = given["annotation"]
    return asked


def _region(text: str) -> tuple[float, float, float, float]:
    """Left, top, width and height of corners that are fractions of the image."""
    try:
        left, top, right, bottom = map(float, text.split(","))
    except ValueError:
        left, top, right, bottom = (math.nan,) * 4
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise WebError(400, "region must be xmin,ymin,xmax,ymax, fractions from 0 to 1")
    return left, top, right - left, bottom - top


def _asking(scope: Scope, media_type: str, query: Mapping[str, str]) -> Scope:
    """The request, asking for one media type, by other parameters."""
    others = [line for line in scope["headers"] if line[0] != b"accept"]
    return {
        **scope,
        "headers": [*others, (b"accept", media_type.encode("latin-1"))],
        "query_string": urlencode(query).encode("ascii"),
    }
