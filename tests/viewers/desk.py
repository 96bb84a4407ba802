"""A radiologist's desk: a browser window with the viewer in it, and what it complains about."""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from playwright.sync_api import Browser, Error, Locator, Page, Request, sync_playwright

from viewers.pictures import Grey, screen

PATIENCE_S = 60.0
_POLL_MS = 50
_NOTCH = 100  # pixels that a wheel gives for a notch
_BLANK = 5.0  # standard deviation of brightness: text on black stays below it
_ARGUMENTS = ("--disable-background-networking", "--enable-unsafe-swiftshader", "--use-angle=swiftshader")
_BASE64 = """
const base64 = bytes => {
    let text = "";
    for (let at = 0; at < bytes.length; at += 32768)
        text += String.fromCharCode(...bytes.subarray(at, at + 32768));
    return btoa(text);
};
"""
_PIXELS = f"""
async ([imageId, patience]) => {{
    {_BASE64}
    const late = new Promise((_, fail) => setTimeout(() => fail(new Error("no image in time")), patience));
    const image = await Promise.race([cornerstone.imageLoader.loadAndCacheImage(imageId), late]);
    const values = image.getPixelData();
    const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
    return [values.constructor.name, base64(bytes)];
}}
"""
_FILE = f"""
async image => {{
    {_BASE64}
    return base64(new Uint8Array(await (await fetch(image.src)).arrayBuffer()));
}}
"""
_PLACES = """
() => [...document.querySelectorAll("canvas.cornerstone-canvas")]
    .map(canvas => canvas.getBoundingClientRect())
    .map(place => [place.top, place.bottom, place.left, place.right])
"""
# Corners of each viewport in the patient, in mm: top left, top right, bottom left.
_PLANES = """
() => cornerstone.getEnabledElements().map(({viewport}) => {
    const {clientWidth: width, clientHeight: height} = viewport.canvas;
    return [[0, 0], [width, 0], [0, height]].map(corner => [...viewport.canvasToWorld(corner)]);
})
"""
# Until its first picture is drawn, a viewport's zoom is nonsense; OHIF keeps it for whoever clicks too early.
_DRAWN = """
() => cornerstone.getEnabledElements().filter(({viewport}) => viewport.canvas.isConnected)
    .every(({viewport}) => viewport.viewportStatus === "rendered")
"""
# For whoever reads of a failure; the page may be one without a viewer.
_STATE = """
() => (window.cornerstone?.getEnabledElements() ?? []).filter(({viewport}) => viewport.canvas.isConnected)
    .map(({viewport}) => [
        viewport.viewportStatus,
        viewport.getCurrentImageId?.(),
        viewport.getProperties().voiRange,
        `zoom ${viewport.getZoom?.()} pan ${viewport.getPan?.()}`,
        viewport.canvas.closest("[data-viewportid]")?.parentElement.innerText,
    ])
"""
_DISPLAY_SET = """
study => window.services?.displaySetService.getActiveDisplaySets()
    .find(each => each.StudyInstanceUID === study)?.displaySetInstanceUID
"""
_ARRAYS = {
    "Int8Array": np.int8,
    "Uint8Array": np.uint8,
    "Uint8ClampedArray": np.uint8,
    "Int16Array": np.int16,
    "Uint16Array": np.uint16,
    "Float32Array": np.float32,
}


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium without a window; it draws in software."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=_ARGUMENTS, chromium_sandbox=False
        )
        try:
            yield browser
        finally:
            browser.close()


class Desk:
    """One page. Everything that waits ends after ``PATIENCE_S``."""

    def __init__(self, browser: Browser, viewer: str, dicomweb: str, screenshots: Path) -> None:
        self._viewer = viewer
        self._screenshots = screenshots
        self._dicomweb = dicomweb
        self._complaints: list[str] = []
        self._open: tuple[str, ...] = ()
        self.page: Page = browser.new_page(viewport={"width": 1000, "height": 640})
        self.page.set_default_timeout(PATIENCE_S * 1000)
        page, said = self.page, self._complaints.append
        page.on("console", lambda got: said(f"console: {got.text}") if got.type == "error" else None)
        page.on("pageerror", lambda error: said(f"uncaught: {error}"))
        page.on("requestfailed", self._note_failure)
        page.on("response", lambda got: said(f"{got.status}: {got.url}") if got.status >= 400 else None)

    def complaints(self) -> list[str]:
        """What went wrong in the browser since this was asked last."""
        found = self._complaints[:]
        self._complaints.clear()
        return found

    def _note_failure(self, request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # what the page itself gave up, by moving on
            self._complaints.append(f"failed: {request.url} {request.failure}")

    # ------------------------------------------------------------------ pages

    def open_list(self) -> None:
        """The study list."""
        self._open = ()
        self.page.goto(f"{self._viewer}/")
        self.page.get_by_text("Study List").wait_for()

    def open_viewer(self, *study_uids: str, token: str = "") -> None:
        """The viewer with these studies, until it shows the first. Stays where it is if it has them open."""
        if self._open == study_uids:
            return
        access = f"&token={token}" if token else ""
        self.page.goto(f"{self._viewer}/viewer?StudyInstanceUIDs={','.join(study_uids)}{access}")
        self.seen(lambda: float(self.viewport().std()), _BLANK, "something on the screen")
        self.until(lambda: self.page.evaluate(_DRAWN), "a picture drawn")
        self._open = study_uids

    def thumbnail(self, study_uid: str) -> Locator:
        """In the study browser: of a study that has one series."""
        self.until(lambda: self.page.evaluate(_DISPLAY_SET, study_uid), "the series of a study")
        return self.page.locator(f"#thumbnail-{self.page.evaluate(_DISPLAY_SET, study_uid)}")

    # ------------------------------------------------------------------ looks

    def thumbnail_picture(self, study_uid: str) -> Grey:
        """What the thumbnail shows, without what the study browser writes over it."""
        picture = self.thumbnail(study_uid).locator("img")
        return screen(base64.b64decode(picture.evaluate(_FILE)))

    def scroll(self, steps: int) -> None:
        """Turn the wheel over the viewport."""
        self.page.locator("canvas.cornerstone-canvas").hover()
        for _ in range(steps):
            self.page.mouse.wheel(0, _NOTCH)

    def viewports(self, count: int) -> list[Grey]:
        """What a person sees in them: each viewport's brightness, once there are so many."""
        places: list[list[float]] = []

        def arranged() -> bool:
            places[:] = self.page.evaluate(_PLACES)
            return len(places) == count

        self.until(arranged, f"{count} viewports")
        window = screen(self.page.screenshot())
        return [
            window[round(top) : round(bottom), round(left) : round(right)]
            for top, bottom, left, right in places
        ]

    def planes(self) -> list[list[list[float]]]:
        """Where each viewport lies in the patient: its corners top left, top right and bottom left, in mm."""
        corners: list[list[list[float]]] = self.page.evaluate(_PLANES)
        return corners

    def viewport(self) -> Grey:
        """What a person sees in the only one."""
        return self.viewports(1)[0]

    def until(self, condition: Callable[[], object], what: str, best: Callable[[], str] = str) -> None:
        """Return when it is true; the browser goes on meanwhile. ``best`` says how near it came."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not after {PATIENCE_S:.0f} s: {what}; {best()}{self._evidence()}")
            self.page.wait_for_timeout(_POLL_MS)

    def seen(self, score: Callable[[], float], enough: float, what: str) -> None:
        """Return when ``score`` is as high as ``enough``."""
        scores = [-1.0]

        def high() -> bool:
            scores.append(score())
            return scores[-1] >= enough

        def best() -> str:
            return f"the best look was {max(scores):.3f} of {enough}, the last {scores[-1]:.3f}; "

        self.until(high, what, best)

    def _evidence(self) -> str:
        """What there is to see, kept in a file; what the viewports are showing; what the browser said."""
        path = self._screenshots / f"{time.monotonic_ns()}.png"
        try:
            self.page.screenshot(path=path)
            shown = self.page.evaluate(_STATE)
        except Error as hung:
            return f"the page does not answer: {hung.message}; complaints {self._complaints}"
        return f"screenshot {path}; viewports {shown}; complaints {self._complaints}"

    def pixels(self, study: str, series: str, sop: str, number: int) -> NDArray[Any]:
        """The values of one frame as Cornerstone3D's image loader reads them, in the viewer that is open."""
        url = f"{self._dicomweb}/studies/{study}/series/{series}/instances/{sop}/frames/{number}"
        return self.image(f"wadors:{url}")

    def image(self, image_id: str) -> NDArray[Any]:
        """The values of an image by the loader's own name for it, in the page that is open."""
        try:
            kind, text = self.page.evaluate(_PIXELS, [image_id, PATIENCE_S * 1000])
        except Error as failed:  # the loader may tell the console why, and nobody else
            raise AssertionError(f"{failed.message}; complaints {self.complaints()}") from None
        return np.frombuffer(base64.b64decode(text), _ARRAYS[kind])
