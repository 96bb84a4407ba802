"""A version of a report as a PDF that a person reads: letterhead, patient, text, signature.

Text of any script is shaped and ordered (HarfBuzz; UAX #9) and printed in the first font that has its
characters (:mod:`~hounsfield.ris_plugin.distribution.typefaces`), all of them embedded. A character that no
font has is printed as an empty box, and the report says so. The same version printed again with the same
words gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo

import msgspec
from fontTools.ttLib import TTLibError
from PIL import Image

from hounsfield.ris_plugin.distribution.page import BLUE, LINE_MM, RED, REPLACED, Page
from hounsfield.ris_plugin.distribution.said import Said
from hounsfield.ris_plugin.distribution.typefaces import Typeface, chosen, points
from hounsfield.ris_plugin.distribution.words import words
from hounsfield.ris_plugin.records.base import NS
from hounsfield.ris_plugin.records.reports import Version
from hounsfield.ris_plugin.settings import RisSettings

__all__ = ["is_font", "is_logo", "pdf", "person"]

LABEL_MM: Final = 32
LOGO_MM: Final = (60, 22)
LOGO_DOTS_MAX: Final = 1200
SEXES: Final = {"M": "male", "F": "female", "O": "other"}


class _Letter:
    """One version being printed."""

    def __init__(self, said: Said, settings: RisSettings, zone: ZoneInfo) -> None:
        self.said, self.settings, self.zone = said, settings, zone
        self.words = words(said.language, settings.report_words)
        moment = datetime.fromtimestamp(_moment_ns(said.version) / NS, UTC)
        self.moment = _moment(_moment_ns(said.version), zone)
        self.title = " · ".join(
            dict.fromkeys(one.procedure.meaning or one.procedure.value for one in said.orders)
        )
        self.title = self.title or self.words["title"]
        self.page = page = Page(chosen(self._all(), settings.report_fonts, said.language))
        # No name and no number of a patient: a file's properties are shown where it is not opened.
        report = self._name_of(said.version)
        page.describe(report, moment, said.language)
        patient = said.patient
        identifier = patient.identifiers[0].value if patient.identifiers else ""
        about = (person(patient.name), _day(patient.birth_day), identifier, self.title)
        page.running = "   ·   ".join(one for one in about if one)
        page.foot = f"{report}   ·   {self.moment}"
        page.mark = self._mark()
        confidential = self.words["confidential"] if patient.confidential else ""
        page.note = "   ·   ".join(one for one in (confidential, settings.report_foot) if one)
        page.pages_said = self.words["page"]
        if said.version.kind == "preliminary":
            page.across = page.printable(self.words["across"])

    def _all(self) -> str:
        """Every character that may be printed."""
        said, settings = self.said, self.settings
        written = (said.valid, said.patient, said.orders, said.report.number, said.report.accession)
        around = (said.author, said.signer, dict(said.names), settings.institution, settings.department)
        more = (settings.address, settings.report_foot, dict(self.words), REPLACED, "·…0123456789")
        text = msgspec.json.encode((written, around, more)).decode()
        return text + text.upper()  # sections of other names begin with a capital

    def printed(self) -> bytes:
        page, said = self.page, self.said
        page.add_page()
        self._letterhead()
        page.look(16, bold=True)
        page.set_text_color(*BLUE)
        page.multi_cell(0, 7.5, page.printable(self.title), align="L", new_x="LMARGIN", new_y="NEXT")
        for text in (page.mark, self._reason(said.version)):
            if text:
                page.look(10, bold=True)
                page.set_text_color(*RED)
                page.multi_cell(0, 5.5, page.printable(text), align="L", new_x="LMARGIN", new_y="NEXT")
        page.ln(2)
        self._facts()
        *base, last = said.valid
        if last.kind == "addendum":  # what is new stands first
            self._version(last, latest=True)
            for one in reversed(base[1:]):
                self._version(one)
            first = base[0]
            page.rule()
            page.ln(2)
            page.look(9, grey=True)
            page.paragraph(self._name_of(first), 4.6)
            self._version(first)
        else:
            self._version(last, latest=True)
        if page.lacking:
            page.look(8, grey=True)
            page.ln(3)
            page.paragraph(self.words["lacking"].format(box=REPLACED), 4)
        return bytes(page.output())

    def _letterhead(self) -> None:
        page, settings = self.page, self.settings
        top = page.get_y()
        bottom = top
        if settings.report_logo:
            logo, width, height = _logo(settings.report_logo)
            page.image(logo, page.w - page.r_margin - width, top, width, height)
            bottom = top + height
        page.look(13, bold=True)
        name = page.printable(settings.institution or settings.department)
        width = page.epw - LOGO_MM[0] if settings.report_logo else 0
        page.multi_cell(width, 6, name, align="L", new_x="LMARGIN", new_y="NEXT")
        page.look(9, grey=True)
        for text in (settings.department if settings.institution else "", *settings.address.splitlines()):
            if text.strip():
                line = page.printable(text.strip())
                page.multi_cell(width, 4.5, line, align="L", new_x="LMARGIN", new_y="NEXT")
        page.set_y(max(page.get_y(), bottom) + 2)
        page.set_draw_color(*BLUE)
        page.set_line_width(0.7)
        page.line(page.l_margin, page.get_y(), page.w - page.r_margin, page.get_y())
        page.ln(7)

    def _facts(self) -> None:
        page = self.page
        for name, value in self._each_fact():
            if value.strip():
                page.look(9, grey=True)
                page.cell(LABEL_MM, LINE_MM, page.printable(self.words[name]))
                page.look(10, bold=name == "patient")
                page.multi_cell(0, LINE_MM, page.printable(value), align="L", new_x="LMARGIN", new_y="NEXT")
        page.ln(2)
        page.rule()
        page.ln(3)

    def _each_fact(self) -> Iterator[tuple[str, str]]:
        said = self.said
        patient, orders = said.patient, said.orders
        sex = self.words.get(SEXES.get(patient.sex, ""), "")
        yield "patient", person(patient.name)
        yield "born", "   ".join(filter(None, (_day(patient.birth_day), sex)))
        yield (
            "patient-id",
            ", ".join(
                f"{one.value} ({one.issuer})" if one.issuer else one.value for one in patient.identifiers[:2]
            ),
        )
        yield "examined", _study_moment(said.study)
        yield "modality", said.report.modality
        yield "accession", said.report.accession
        yield (
            "referred-by",
            ", ".join(dict.fromkeys(person(one.referring or one.requester) for one in orders)),
        )
        placed = orders[0].placed_ns if orders else 0
        numbers = ", ".join(dict.fromkeys(one.placer_number for one in orders if one.placer_number))
        yield "order", numbers
        yield "ordered", _moment(placed, self.zone) if placed else ""

    def _version(self, version: Version, *, latest: bool = False) -> None:
        """The text of a version and its signature."""
        page = self.page
        if version.kind == "addendum":
            heading = f"{self.words['addendum']}   {_moment(_moment_ns(version), self.zone)}"
            self._heading(heading)
            named = [one for one in version.sections if one.text.strip()]
            for one in named:
                if len(named) > 1 or one.name != "findings":
                    page.look(10.5, bold=True)
                    page.paragraph(self._section_name(one.name))
                page.look(10.5)
                page.paragraph(one.text)
            if not latest:
                page.look(9, grey=True)
                page.paragraph(self._reason(version), 4.6)
        else:
            for one in version.sections:
                if one.text.strip():
                    self._heading(self._section_name(one.name))
                    page.look(10.5, bold=one.name == "impression")
                    page.paragraph(one.text)
        self._signature(version, latest=latest)

    def _name_of(self, version: Version) -> str:
        return self.words["report"].format(number=self.said.report.number, version=version.number)

    def _section_name(self, name: str) -> str:
        return self.words.get(name, "") or name[:1].upper() + name[1:]

    def _heading(self, text: str) -> None:
        page = self.page
        if page.will_page_break(18):  # a heading is not left alone at the foot
            page.add_page()
        page.ln(2)
        page.look(11, bold=True)
        page.set_text_color(*BLUE)
        page.paragraph(text, 6)

    def _signature(self, version: Version, *, latest: bool) -> None:
        page, said = self.page, self.said
        if page.will_page_break(24):
            page.add_page()
        page.ln(6)
        names = {**said.names, said.version.author: said.author, said.version.signer: said.signer}
        author, signer = (person(names.get(one, one)) for one in (version.author, version.signer))
        page.look(10.5, bold=True)
        page.paragraph(
            (self.words["signed"] if signer else self.words["unsigned"]).format(name=signer or author)
        )
        page.look(9, grey=True)
        page.paragraph(_moment(_moment_ns(version), self.zone), 4.6)
        if signer and author != signer:
            page.paragraph(self.words["written"].format(name=author), 4.6)
        before = said.earlier[-1] if said.earlier else None
        if latest and version.kind == "final" and before is not None:
            values = {"before": before.number, "moment": _moment(_moment_ns(before), self.zone)}
            page.paragraph(self.words["replaces"].format(**values), 4.6)
        page.ln(4)

    def _mark(self) -> str:
        """What who reads it has to know first."""
        version, earlier = self.said.version, self.said.earlier
        said = []
        if version.critical:
            said.append(self.words["critical"])
        if version.kind == "preliminary":
            said.append(self.words["preliminary"])
        elif version.kind in ("correction", "addendum") and earlier:
            before = earlier[-1]
            said.append(
                self.words["corrected" if version.kind == "correction" else "added"].format(
                    version=version.number,
                    before=before.number,
                    moment=_moment(_moment_ns(before), self.zone),
                )
            )
        return "   ·   ".join(said)

    def _reason(self, version: Version) -> str:
        if (
            not version.reason
            or version.kind not in ("correction", "addendum")
            or version.reason == version.kind
        ):
            return ""
        return self.words["reason"].format(reason=version.reason)


def pdf(said: Said, settings: RisSettings, zone: ZoneInfo) -> bytes:
    """The version as PDF/A-2b. ``zone``: of the moments in it."""
    return _Letter(said, settings, zone).printed()


def is_font(path: str) -> bool:
    """Whether a file is a font that reports can be printed in."""
    try:
        return bool(points(Typeface(Path(path))))
    except (TTLibError, OSError, ValueError, KeyError, AssertionError):
        return False


def is_logo(path: str) -> bool:
    """Whether a file is a picture that can stand in the letterhead."""
    try:
        _logo(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
    return True


def _logo(path: str) -> tuple[BytesIO, float, float]:
    """The logo without transparency, which PDF/A has its own rules for, and its size in mm."""
    with Image.open(Path(path)) as opened:
        opened.thumbnail((LOGO_DOTS_MAX, LOGO_DOTS_MAX))
        drawn = opened.convert("RGBA")
    paper = Image.new("RGBA", drawn.size, "white")
    paper.alpha_composite(drawn)
    data = BytesIO()
    paper.convert("RGB").save(data, "PNG")
    scale = min(LOGO_MM[0] / drawn.width, LOGO_MM[1] / drawn.height)
    return data, drawn.width * scale, drawn.height * scale


def person(name: str) -> str:
    """A person name as it is read: ``DOE^JANE^^DR`` is Dr Jane Doe's ``DR JANE DOE``; groups beside each
    other."""
    groups = []
    for group in name.split("="):
        family, given, middle, prefix, suffix = (*group.split("^"), "", "", "", "", "")[:5]
        ideographic = any("\u2e80" <= one <= "\ud7ff" for one in group)
        order = (prefix, family, given, middle) if ideographic else (prefix, given, middle, family)
        words = " ".join(one.strip() for one in order if one.strip())
        groups.append(f"{words}, {suffix.strip()}" if suffix.strip() else words)
    return " · ".join(one for one in groups if one)


def _moment_ns(version: Version) -> int:
    return version.signed_ns or version.at_ns


def _day(day: str) -> str:
    return f"{day[:4]}-{day[4:6]}-{day[6:]}" if len(day) == 8 else day


def _study_moment(study: Mapping[str, str]) -> str:
    """Date and time of the study as the device has said them, without a zone."""
    day, time = study.get("StudyDate", ""), study.get("StudyTime", "")
    return f"{_day(day)} {time[:2]}:{time[2:4]}" if day and time[:4].isdecimal() else _day(day)


def _moment(moment_ns: int, zone: ZoneInfo) -> str:
    local = datetime.fromtimestamp(moment_ns / NS, UTC).astimezone(zone)
    return f"{local:%Y-%m-%d %H:%M} {local.tzname() or ''}".strip()
