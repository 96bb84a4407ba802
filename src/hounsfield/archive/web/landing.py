"""The page at ``/``: what this is and where its services are. No scripts, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Final

_PAGE: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Hounsfield</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:42rem;margin:3rem auto;padding:0 1rem}}
code{{background:#8882;padding:.1em .3em;border-radius:.2em}}</style>
<h1>Hounsfield</h1>
<p>A DICOM archive. DICOMweb clients use <code>{base}</code>.</p>
<ul>
<li><a href="/dicom-web/studies?limit=25">Newest studies</a> (DICOM JSON)</li>
<li><a href="/openapi.json">OpenAPI document</a> of every route</li>
<li><a href="/healthz">Health</a> and <a href="/metrics">metrics</a></li>
{plugins}</ul>
</html>
"""


def landing_page(base: str, plugins: Iterable[str] = ()) -> bytes:
    """The page for an archive whose DICOMweb root is ``base``, with ``plugins`` that have routes."""
    more = "".join(f'<li><a href="/{name}">{name}</a>, a plugin</li>\n' for name in map(escape, plugins))
    return _PAGE.format(base=escape(base), plugins=more).encode()
