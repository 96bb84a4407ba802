"""What the DICOMweb services are told, and every limit they keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hounsfield.archive.engine.tier_rules import TierRule


@dataclass(frozen=True, slots=True, kw_only=True)
class WebLimits:
    """How much one request may ask for. The HTTP server's own limits are :class:`..http.HttpLimits`."""

    frames_max: int = 4096
    """Frame numbers in one request: a long cine loop. Answers are streamed: this bounds time, not memory."""
    part_header_bytes_max: int = 8192
    """The header of one part of a STOW-RS body: real ones have under 200 bytes."""
    parts_max: int = 100_000
    """Parts of one STOW-RS request: more than the largest study has instances."""
    preamble_bytes_max: int = 65_536
    """Bytes before a multipart body's first boundary; RFC 2046 lets mail programs put a sentence there."""
    commits_pending_max: int = 16
    """Objects of one STOW-RS request that wait for their group's commit while the next ones arrive."""
    uploads_max: int = 64
    """Store requests open at once, over all workers. Each holds an object that comes in and up to
    ``commits_pending_max`` that are being committed; more at once than this is a loop, not a department."""
    feeds_max: int = 64
    """Change feeds that wait at once, over all workers: a worklist and an AI pipeline are two; each looks at
    the journal up to ten times a second while much is being stored."""
    upload_wait_s: float = 20.0
    """How long one more waits for its turn, unread, before it is told to come back (503)."""
    search_headers_max: int = 1000
    """Answers in one page of a search that asks for what only stored headers say: a read each."""
    search_header_bytes_max: int = 64 << 20
    """Of headers read for one such page, which ends behind the one that goes past; a CT slice has 4 KiB."""
    metadata_bytes_max: int = 64 << 20
    """Metadata of one STOW-RS request whose bulk data is apart: 5,000 slices have 32 MiB. It is gathered."""
    bulk_bytes_max: int = 64 << 20
    """Bulk data that one request may have gathered at a time. Uncompressed pixel data is not, nor is a frame
    whose part says its Content-Length and transfer syntax; an overlay or a document of some pages is."""
    study_search_bytes_max: int = 16 << 20
    """How far into an object its Study Instance UID is looked for when the path names a study."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSettings:
    """How the services present themselves.

    ``base_url`` is where clients reach the archive (``https://pacs.example/``); empty: what the request's
    Host header says. ``cors_origins``: origins whose scripts may read answers, ``("*",)`` for all.
    ``trusted_proxies``: addresses and networks whose ``Forwarded`` and X-Forwarded-* headers are believed.
    ``deletion_by``: names of the bearer tokens whose holders may delete; none: nobody. ``tiering_by``: those
    whose holders see and move what lies in tiers. ``tier_rules``: makes rules of ``[[tier_rules]]`` as JSON
    has them, or raises ``ConfigError``; None: no rules can be tried.
    """

    base_url: str = ""
    trusted_proxies: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    deletion_by: tuple[str, ...] = ()
    tiering_by: tuple[str, ...] = ()
    tier_rules: Callable[[Sequence[Any]], Sequence[TierRule]] | None = None
    limits: WebLimits = field(default_factory=WebLimits)
