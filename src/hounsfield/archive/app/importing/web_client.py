"""Another archive over DICOMweb: pages of QIDO-RS, objects of WADO-RS as they stream (PS3.18 10.4, 10.6)."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.message import Message
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import trio

from hounsfield.archive.app.importing.arriving import Arriving
from hounsfield.archive.app.importing.doors import PROTOCOL
from hounsfield.archive.app.importing.stretches import is_round
from hounsfield.archive.app.importing.work import Work
from hounsfield.archive.dicom.part10 import Part10Error
from hounsfield.archive.engine.errors import EngineError
from hounsfield.archive.engine.types import Source, StoreResult
from hounsfield.archive.errors import HounsfieldError
from hounsfield.archive.web.multipart import MultipartError, MultipartReader, PartBegin, PartData

PAGE: Final = 200
"""Rows that are asked for at once; servers that give fewer are asked for the rest."""
PAGE_BYTES_MAX: Final = 64 << 20
PAUSES_S: Final = (0.5, 2.0, 8.0)
"""Before a request is made again that failed in a way that may pass."""
RETRY_AFTER_S_MAX: Final = 60.0
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_REFUSED: Final = frozenset({401, 403, 407})
_AS_STORED: Final = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_AS_IT_LIKES: Final = 'multipart/related; type="application/dicom"'
_UID: Final = re.compile(r"[0-9](?:[0-9.]{0,62}[0-9])?", re.ASCII)


class WebError(HounsfieldError):
    """The server did not give what it was asked for."""

    retry = False


class PassingError(WebError):
    """It may give it if it is asked again."""

    retry = True

    def __init__(self, message: str, after_s: float = 0.0) -> None:
        super().__init__(message)
        self.after_s = after_s


class AwayError(PassingError):
    """Nobody answers there."""


class RefusedError(WebError):
    """It does not let us."""


class NotThereError(WebError):
    """It has no such thing, or no such service."""


class TooManyError(WebError):
    """It does not answer a search with so much (413)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebOptions:
    """How a server is asked. ``tls``: None trusts the system's authorities."""

    user: str = ""
    password: str = ""
    bearer: str = ""
    tls: ssl.SSLContext | None = None
    timeout_s: float = 60.0
    """Without a byte of an answer."""
    pauses_s: tuple[float, ...] = PAUSES_S


def is_uid(text: str) -> bool:
    """Whether it may stand in a URL as one."""
    return _UID.fullmatch(text) is not None


@dataclass
class SearchEnd:
    """How a search ended. ``is_doubtful``: there may be more than the server gave."""

    is_doubtful: bool = False


@dataclass
class Given:
    """What came of one request for objects, also when it broke off."""

    results: list[tuple[StoreResult, int]] = field(default_factory=list)
    """Durable, with the bytes of their data sets."""
    refused: list[str] = field(default_factory=list)
    """Of those that the archive did not take, or that were no objects, why."""


class WebClient:
    """One server; any number of requests at once. Use as ``async with WebClient.open(...)``."""

    def __init__(self, url: str, client: httpx.AsyncClient, options: WebOptions) -> None:
        self.url = url
        self._client = client
        self._options = options
        self._accept = _AS_STORED
        self._answered = False

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, options: WebOptions, connections: int) -> AsyncIterator[WebClient]:
        """``url`` is the base of its DICOMweb services."""
        headers = {"Accept-Encoding": "identity", "User-Agent": "hounsfield"}
        if options.bearer:
            headers["Authorization"] = f"Bearer {options.bearer}"
        auth = httpx.BasicAuth(options.user, options.password) if options.user else None
        async with httpx.AsyncClient(
            auth=auth,
            headers=headers,
            verify=options.tls or ssl.create_default_context(),
            timeout=httpx.Timeout(options.timeout_s, connect=min(options.timeout_s, 15.0), pool=None),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            follow_redirects=True,
        ) as client:
            yield cls(url.rstrip("/"), client, options)

    # ------------------------------------------------------------ searching

    async def search(
        self, path: str, parameters: Sequence[tuple[str, str]], key: str, end: SearchEnd | None = None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Every row at ``path``, each value of its attribute ``key`` once, however the server pages.

        ``end`` is told how it ended.
        """
        end = end or SearchEnd()
        seen: set[str] = set()
        offset = 0
        while True:
            page = [*parameters, ("limit", str(PAGE)), ("offset", str(offset))]
            rows = await self.patiently(lambda page=page: self._page(path, page, end))
            fresh = 0
            for row in rows:
                name = value(row, key)
                if name not in seen:
                    seen.add(name)
                    fresh += 1
                    yield row
            if not fresh:
                # Pages without end, or always the same: one that heeds no offset gives all at once, or not.
                end.is_doubtful |= (bool(rows) and len(seen) <= PAGE) or is_round(len(seen))
                return
            offset += len(rows)

    async def _page(
        self, path: str, parameters: Sequence[tuple[str, str]], end: SearchEnd
    ) -> list[dict[str, Any]]:
        accept = {"Accept": "application/dicom+json"}
        async with self._asked(path, accept, parameters) as answer:
            if answer.status_code == 204:
                return []
            end.is_doubtful |= answer.headers.get("warning", "").lstrip().startswith("299")
            body = bytearray()
            async for piece in answer.aiter_bytes():
                body += piece
                if len(body) > PAGE_BYTES_MAX:
                    raise WebError(f"a page of more than {PAGE_BYTES_MAX} bytes")
        try:
            rows = json.loads(body or b"[]")
        except ValueError:
            raise WebError("what it answers to a search is no JSON: is the URL that of DICOMweb?") from None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise WebError("what it answers to a search is no list: is the URL that of DICOMweb?")
        return rows

    # ------------------------------------------------------------ retrieving

    async def retrieve(self, path: str, work: Work, given: Given) -> None:
        """Bring the objects at ``path`` in, one after the other as they come; ``given`` has those that came.

        Raises WebError when not all came, EngineError for the archive's own trouble.
        """
        async with self._asked(path, {"Accept": self._accept}) as answer:
            mail = Message()
            mail["content-type"] = answer.headers.get("content-type", "")
            kind = mail.get_content_type()
            source = Source(PROTOCOL, address=_address(answer))
            if kind == "multipart/related":
                await self._parts(answer, str(mail.get_param("boundary", "") or ""), source, work, given)
            elif kind == "application/dicom":
                await self._single(answer, source, work, given)
            else:
                raise WebError(f"it answers with {kind} where objects were asked for")

    async def _parts(
        self, answer: httpx.Response, boundary: str, source: Source, work: Work, given: Given
    ) -> None:
        one: Arriving | None = None
        skipping = ""
        try:
            reader = MultipartReader(boundary)
            async for piece in answer.aiter_bytes():
                for event in reader.feed(piece):
                    if isinstance(event, PartBegin):
                        one, skipping = Arriving(work, source), ""
                    elif isinstance(event, PartData):
                        assert one is not None
                        if not skipping:
                            try:
                                await one.write(event.data)
                            except (Part10Error, EngineError) as error:
                                skipping = _for_good(error)
                    else:
                        assert one is not None
                        if skipping:
                            given.refused.append(skipping)
                        else:
                            await _commit(one, given)
                        one = None
            reader.finish()
        except MultipartError as error:
            raise PassingError(f"its answer is not whole: {error}") from error
        finally:
            if one is not None:
                one.abandon()

    async def _single(self, answer: httpx.Response, source: Source, work: Work, given: Given) -> None:
        one = Arriving(work, source)
        try:
            async for piece in answer.aiter_bytes():
                await one.write(piece)
            await _commit(one, given)
        except (Part10Error, EngineError) as error:
            given.refused.append(_for_good(error))
        finally:
            one.abandon()

    # ------------------------------------------------------------ asking

    async def patiently(self, attempt: Any) -> Any:
        """Do ``attempt``; again when it raises what may pass. Raises WebError."""
        for pause in (*self._options.pauses_s, None):
            try:
                return await attempt()
            except PassingError as error:
                if pause is None or (isinstance(error, AwayError) and not self._answered):
                    raise
                await trio.sleep(max(pause, min(error.after_s, RETRY_AFTER_S_MAX)))
        raise AssertionError("the last one returns or raises")

    @asynccontextmanager
    async def _asked(
        self, path: str, headers: dict[str, str], parameters: Sequence[tuple[str, str]] = ()
    ) -> AsyncIterator[httpx.Response]:
        """A response with 200 or 204. Raises WebError, also for what goes wrong while its body is read."""
        url = f"{self.url}{path}"
        try:
            async with self._client.stream("GET", url, headers=headers, params=list(parameters)) as answer:
                self._judge(answer)
                yield answer
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            if (why := _why_no_tls(error)) is not None:
                raise WebError(f"no TLS with {_server(url)}: {why}") from error
            raise AwayError(f"nobody answers at {_server(url)}: {_why(error)}") from error
        except httpx.TimeoutException as error:
            raise PassingError(f"no answer within {self._options.timeout_s:g} s") from error
        except httpx.TransportError as error:
            raise PassingError(f"the connection broke off: {_why(error)}") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise WebError(f"it cannot be asked: {_why(error)}") from error

    def _judge(self, answer: httpx.Response) -> None:
        self._answered = True
        status = answer.status_code
        if status in (200, 204, 206):
            return
        if status in _REFUSED:
            raise RefusedError(f"it does not let us in ({status}): check --user and --passcode, or --bearer")
        if status == 406 and self._accept == _AS_STORED and answer.request.headers["accept"] == _AS_STORED:
            self._accept = _AS_IT_LIKES  # an old one; it converts then
            raise PassingError("it does not give objects as they are stored (406)")
        if status == 413:
            raise TooManyError("it answers 413: that is more than it gives at once")
        if status in (400, 404, 405, 410, 501):
            raise NotThereError(f"it answers {status}")
        if status in _PASSING:
            after = answer.headers.get("retry-after", "")
            raise PassingError(f"it answers {status}", float(after) if after.isdigit() else 0.0)
        raise WebError(f"it answers {status}")


def value(row: dict[str, Any], key: str) -> str:
    """The first value of an attribute of DICOM JSON as text, "" without one. Never raises on what came."""
    element = row.get(key)
    values = element.get("Value") if isinstance(element, dict) else None
    first = values[0] if isinstance(values, list) and values else ""
    return str(first).strip() if isinstance(first, str | int | float) else ""


async def _commit(one: Arriving, given: Given) -> None:
    try:
        given.results.append((await one.commit(), one.size))
    except (Part10Error, EngineError) as error:
        given.refused.append(_for_good(error))


def _for_good(error: Part10Error | EngineError) -> str:
    """Why an object is not taken; raises what may pass."""
    if error.retry:
        raise error
    return str(error)


def _address(answer: httpx.Response) -> str:
    """Of the server, for rules about sources."""
    stream = answer.extensions.get("network_stream")
    found = stream.get_extra_info("server_addr") if stream is not None else None
    return str(found[0]) if found else ""


def _server(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


def _why_no_tls(error: BaseException) -> str | None:
    """In OpenSSL's words; None when it was not for that."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return None
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({cause.verify_message}); --tls-ca names its authority"
    return cause.reason or str(cause)


def _why(error: Exception) -> str:
    if isinstance(error, httpx.RemoteProtocolError):
        return "the server breaks HTTP"  # the text may quote what it sent
    return str(error) or type(error).__name__
