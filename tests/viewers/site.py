"""A viewer's static build on an origin of its own; OHIF's, configured for one archive."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from viewers.npm_packages import OHIF

_DAY = "max-age=86400"
# What would lie over pictures. A player opens with the first ultrasound, which may be what the viewer begins
# with, and stays open over whatever is shown next; the bar of frames that were read grows while they are.
_QUIET = {
    "ohif.tours": [],
    "autoCineModalities": [],
    "viewportScrollbar.showLoadedFill": False,
    "viewportScrollbar.showLoadingPattern": False,
}


@dataclass
class Site:
    """A running web server with the viewer; ``configuration`` is what its ``app-config.js`` says."""

    origin: str
    configuration: dict[str, Any]


def configuration(dicomweb: str, **also: Any) -> dict[str, Any]:
    """``window.config`` as docs/viewers.md has it, for a DICOMweb root; ``also`` for the data source."""
    source = {
        "friendlyName": "Hounsfield",
        "name": "hounsfield",
        "qidoRoot": dicomweb,
        "wadoRoot": dicomweb,
        "wadoUriRoot": dicomweb.removesuffix("/dicom-web") + "/wado",
        "qidoSupportsIncludeField": True,
        "supportsFuzzyMatching": True,
        "supportsWildcard": True,
        "enableStudyLazyLoad": True,
        "imageRendering": "wadors",
        "thumbnailRendering": "wadors",
        "bulkDataURI": {"enabled": True},
        **also,
    }
    namespace = "@ohif/extension-default.dataSourcesModule.dicomweb"
    return {
        "routerBasename": "/",
        "extensions": [],
        "modes": [],
        "customizationService": [{name: {"$set": wanted} for name, wanted in _QUIET.items()}],
        "showStudyList": True,
        "maxNumberOfWebWorkers": 2,
        "showWarningMessageForCrossOrigin": False,
        "showCPUFallbackMessage": False,
        "investigationalUseDialog": {"option": "never"},
        "defaultDataSourceName": "dicomweb",
        "dataSources": [{"namespace": namespace, "sourceName": "dicomweb", "configuration": source}],
    }


@contextlib.contextmanager
def viewer_site(build: Path = OHIF.directory / "dist") -> Iterator[Site]:
    """The viewer's web server on a free loopback port; configure OHIF before a page is opened."""
    site = Site("", {})

    class Files(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(build))

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/app-config.js":
                body = f"window.config = {json.dumps(site.configuration)};".encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/javascript")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                return
            if not (build / path.lstrip("/")).is_file():
                self.path = "/index.html"  # the viewer's own routes
            super().do_GET()

        def end_headers(self) -> None:
            self.send_header("Cache-Control", "no-store" if self.path == "/app-config.js" else _DAY)
            super().end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing is said of single requests."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        site.origin = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, name="viewer site", daemon=True)
        thread.start()
        try:
            yield site
        finally:
            server.shutdown()
            thread.join()
