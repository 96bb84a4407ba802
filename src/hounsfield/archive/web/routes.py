"""Every route but frames (:mod:`.frames`), as one table: path, methods, and what answers it."""

# ruff: noqa: ARG001 - every answer has the same shape, whether it looks at all of it or not

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import trio

from hounsfield.archive.dicom.levels import Level
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.web.all_bulkdata import AllBulkdata
from hounsfield.archive.web.bulkdata import Bulkdata
from hounsfield.archive.web.capabilities import capabilities_response
from hounsfield.archive.web.changes import ChangeFeed
from hounsfield.archive.web.deletion import Deletion
from hounsfield.archive.web.http import AsgiApp, Receive, Scope
from hounsfield.archive.web.instances import Instances
from hounsfield.archive.web.landing import landing_page
from hounsfield.archive.web.limits import WebSettings
from hounsfield.archive.web.metadata import Metadata
from hounsfield.archive.web.openapi import document
from hounsfield.archive.web.problems import WebError
from hounsfield.archive.web.qido import Qido
from hounsfield.archive.web.rendered import RenderedPictures
from hounsfield.archive.web.responses import BuffersResponse, json_response
from hounsfield.archive.web.stow import Stow
from hounsfield.archive.web.tiers import TIERS, TierRequests
from hounsfield.archive.web.uploads import SharedCount
from hounsfield.archive.web.urls import DICOM_WEB, base_url
from hounsfield.archive.web.wado_uri import PATH as WADO_URI
from hounsfield.archive.web.wado_uri import WadoUri

Answer = Callable[[Scope, Receive, Mapping[str, str]], Awaitable[AsgiApp]]
Health = Callable[[], Mapping[str, bool]]
"""Named checks, all true when requests may be sent here: what ``/healthz/ready`` says."""

_STUDY: Final = f"{DICOM_WEB}/studies/{{study}}"
_SERIES: Final = f"{_STUDY}/series/{{series}}"
_INSTANCE: Final = f"{_SERIES}/instances/{{instance}}"


@dataclass(frozen=True, slots=True)
class RouteRow:
    """One path and method. ``path`` is Starlette's pattern."""

    method: str
    path: str
    answer: Answer


def routes(
    engine: Engine,
    settings: WebSettings,
    *,
    metrics: Callable[[], bytes] | None,
    health: Health | None,
    uploads_open: SharedCount | None = None,
    feeds_open: SharedCount | None = None,
    closing: trio.Event | None = None,
    plugins: Sequence[str] = (),
) -> tuple[RouteRow, ...]:
    """The table, over one engine."""
    qido, instances = Qido(engine, settings), Instances(engine, settings)
    metadata, stow = Metadata(engine, settings), Stow(engine, settings, uploads_open)
    pictures = RenderedPictures(engine, settings)
    bulkdata, deletion = Bulkdata(engine, settings), Deletion(engine, settings)
    everything = AllBulkdata(engine, settings, bulkdata)

    tiers = TierRequests(engine, settings)
    changes = ChangeFeed(engine, settings, feeds_open=feeds_open, closing=closing)

    wado_uri = WadoUri(engine, instances, pictures)

    def search(level: Level) -> Answer:
        async def answer(scope: Scope, receive: Receive, path: Mapping[str, str]) -> AsgiApp:
            return await qido.search(scope, level, study_uid=path.get("study"), series_uid=path.get("series"))

        return answer

    async def retrieve(scope: Scope, receive: Receive, path: Mapping[str, str]) -> AsgiApp:
        return await instances.retrieve(scope, path["study"], path.get("series"), path.get("instance"))

    async def describe(scope: Scope, receive: Receive, path: Mapping[str, str]) -> AsgiApp:
        return await metadata.retrieve(scope, path["study"], path.get("series"), path.get("instance"))

    async def bulk(scope: Scope, receive: Receive, path: Mapping[str, str]) -> AsgiApp:
        return await bulkdata.element(scope, path["study"], path["series"], path["instance"], path["path"])

    async def all_bulk(scope: Scope, receive: Receive, path: Mapping[str, str]) -> AsgiApp:
        return await everything.retrieve(scope, path["study"], path.get("series"), path.get("instance"))

    async def pixels(scope: Scope, receive: Receive, path: Mapping[str, str]) -> AsgiApp:
        return await bulkdata.pixels(scope, path["study"], path.get("series"), path.get("instance"))

    async def render(scope: Scope, receive: Receive, path: Mapping[str, str]) -> AsgiApp:
        return await pictures.retrieve(
            scope, path["study"], path.get("series"), path.get("instance"), path.get("frames")
        )

    async def thumbnail(scope: Scope, receive: Receive, path: Mapping[str, str]) -> AsgiApp:
        return await pictures.thumbnail(
            scope, path["study"], path.get("series"), path.get("instance"), path.get("frames")
        )

    async def store(scope: Scope, receive: Receive, path: Mapping[str, str]) -> AsgiApp:
        return await stow.store(scope, receive, path.get("study"))

    async def delete(scope: Scope, receive: Receive, path: Mapping[str, str]) -> AsgiApp:
        return await deletion.delete(scope, path["study"], path.get("series"), path.get("instance"))

    async def follow(scope: Scope, receive: Receive, path: Mapping[str, str]) -> AsgiApp:
        return await changes.answer(scope, receive)

    async def tier_status(scope: Scope, receive: Receive, path: Mapping[str, str]) -> AsgiApp:
        return await tiers.status(scope)

    async def tier_plan(scope: Scope, receive: Receive, path: Mapping[str, str]) -> AsgiApp:
        return await tiers.plan(scope)

    async def tier_trial(scope: Scope, receive: Receive, path: Mapping[str, str]) -> AsgiApp:
        return await tiers.try_rules(scope, receive)

    async def tier_apply(scope: Scope, receive: Receive, path: Mapping[str, str]) -> AsgiApp:
        return await tiers.apply(scope)

    async def tier_history(scope: Scope, receive: Receive, path: Mapping[str, str]) -> AsgiApp:
        return await tiers.history(scope)

    async def tier_pins(scope: Scope, receive: Receive, path: Mapping[str, str]) -> AsgiApp:
        return await tiers.pins(scope)

    async def recall(scope: Scope, receive: Receive, path: Mapping[str, str]) -> AsgiApp:
        return await tiers.recall(scope, path["study"], path.get("series", ""))

    async def pin(scope: Scope, receive: Receive, path: Mapping[str, str]) -> AsgiApp:
        return await tiers.pin(scope, path["study"])

    async def unpin(scope: Scope, receive: Receive, path: Mapping[str, str]) -> AsgiApp:
        return await tiers.unpin(scope, path["study"])

    async def live(scope: Scope, receive: Receive, path: Mapping[str, str]) -> AsgiApp:
        return json_response(b'{"status":"ok"}', "application/json", headers=_FRESH)

    async def ready(scope: Scope, receive: Receive, path: Mapping[str, str]) -> AsgiApp:
        checks = dict(health()) if health is not None else {}
        good = all(checks.values())
        body = msgspec.json.encode({"status": "ready" if good else "not ready", "checks": checks})
        return json_response(body, "application/json", headers=_FRESH, status=200 if good else 503)

    async def figures(scope: Scope, receive: Receive, path: Mapping[str, str]) -> AsgiApp:
        if metrics is None:
            raise WebError(404, "metrics are turned off")
        kind = b"text/plain; version=0.0.4; charset=utf-8"
        return BuffersResponse(200, [(b"content-type", kind), *_FRESH], (metrics(),))

    async def openapi(scope: Scope, receive: Receive, path: Mapping[str, str]) -> AsgiApp:
        return json_response(msgspec.json.encode(document()), "application/json")

    async def capabilities(scope: Scope, receive: Receive, path: Mapping[str, str]) -> AsgiApp:
        return capabilities_response(scope, base_url(scope, settings.base_url))

    async def landing(scope: Scope, receive: Receive, path: Mapping[str, str]) -> AsgiApp:
        page = landing_page(base_url(scope, settings.base_url), plugins)
        return BuffersResponse(200, [(b"content-type", b"text/html; charset=utf-8"), *_PAGE], (page,))

    async def uri(scope: Scope, receive: Receive, path: Mapping[str, str]) -> AsgiApp:
        return await wado_uri.retrieve(scope)

    rows = (
        ("GET", "/", landing),
        ("GET", "/healthz", live),
        ("GET", "/healthz/live", live),
        ("GET", "/healthz/ready", ready),
        ("GET", "/metrics", figures),
        ("GET", "/openapi.json", openapi),
        ("GET", "/changes", follow),
        ("GET", TIERS, tier_status),
        ("GET", f"{TIERS}/plan", tier_plan),
        ("POST", f"{TIERS}/plan", tier_trial),
        ("POST", f"{TIERS}/apply", tier_apply),
        ("GET", f"{TIERS}/history", tier_history),
        ("GET", f"{TIERS}/pins", tier_pins),
        ("POST", f"{TIERS}/studies/{{study}}/recall", recall),
        ("POST", f"{TIERS}/studies/{{study}}/series/{{series}}/recall", recall),
        ("PUT", f"{TIERS}/studies/{{study}}/pin", pin),
        ("DELETE", f"{TIERS}/studies/{{study}}/pin", unpin),
        ("OPTIONS", DICOM_WEB, capabilities),
        ("OPTIONS", f"{DICOM_WEB}/", capabilities),
        ("GET", f"{DICOM_WEB}/studies", search(Level.STUDY)),
        ("GET", f"{DICOM_WEB}/series", search(Level.SERIES)),
        ("GET", f"{DICOM_WEB}/instances", search(Level.INSTANCE)),
        ("GET", f"{_STUDY}/series", search(Level.SERIES)),
        ("GET", f"{_STUDY}/instances", search(Level.INSTANCE)),
        ("GET", f"{_SERIES}/instances", search(Level.INSTANCE)),
        ("GET", _STUDY, retrieve),
        ("GET", _SERIES, retrieve),
        ("GET", _INSTANCE, retrieve),
        ("GET", f"{_STUDY}/metadata", describe),
        ("GET", f"{_SERIES}/metadata", describe),
        ("GET", f"{_INSTANCE}/metadata", describe),
        ("GET", f"{_STUDY}/bulkdata", all_bulk),
        ("GET", f"{_SERIES}/bulkdata", all_bulk),
        ("GET", f"{_INSTANCE}/bulkdata", all_bulk),
        ("GET", f"{_INSTANCE}/bulkdata/{{path:path}}", bulk),
        ("GET", f"{_STUDY}/pixeldata", pixels),
        ("GET", f"{_SERIES}/pixeldata", pixels),
        ("GET", f"{_INSTANCE}/pixeldata", pixels),
        ("GET", f"{_STUDY}/rendered", render),
        ("GET", f"{_SERIES}/rendered", render),
        ("GET", f"{_INSTANCE}/rendered", render),
        ("GET", f"{_INSTANCE}/frames/{{frames}}/rendered", render),
        ("GET", f"{_STUDY}/thumbnail", thumbnail),
        ("GET", f"{_SERIES}/thumbnail", thumbnail),
        ("GET", f"{_INSTANCE}/thumbnail", thumbnail),
        ("GET", f"{_INSTANCE}/frames/{{frames}}/thumbnail", thumbnail),
        ("GET", WADO_URI, uri),
        ("POST", f"{DICOM_WEB}/studies", store),
        ("POST", _STUDY, store),
        ("DELETE", _STUDY, delete),
        ("DELETE", _SERIES, delete),
        ("DELETE", _INSTANCE, delete),
    )
    return tuple(RouteRow(*row) for row in rows)


_FRESH: Final = ((b"cache-control", b"no-store"),)
_PAGE: Final = (
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'"),
    (b"x-content-type-options", b"nosniff"),
)
