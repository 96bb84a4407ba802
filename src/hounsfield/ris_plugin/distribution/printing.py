"""A version of a report as a PDF that a person reads.

Text of any script is shaped and ordered (HarfBuzz; UAX #9) and printed in the first font that has its
characters: those of ``report_fonts``, else DejaVu Sans Condensed, which comes with us (Latin, Greek,
Cyrillic, Hebrew, Arabic, Armenian, Georgian), and Noto fonts where the system has them. All are embedded. A
character that no font has is printed as an empty box, and the report says so. The same version printed again
with the same words gives the same bytes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo

from fpdf import FPDF

from hounsfield.ris_plugin.distribution.said import Said
from hounsfield.ris_plugin.records.base import NS
from hounsfield.ris_plugin.settings import RisSettings

__all__ = ["HEADINGS", "pdf"]

HEADINGS: Final = {
    "indication": "Indication",
    "technique": "Technique",
    "comparison": "Comparison",
    "findings": "Findings",
    "impression": "Impression",
    "recommendation": "Recommendation",
}
OWN: Final = Path(__file__).with_name("fonts")
SYSTEM: Final = tuple(
    Path(one)
    for one in (
        "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
        "/usr/share/fonts/truetype/noto/NotoSansDevanagari-Regular.ttf",
        "/usr/share/fonts/truetype/noto/NotoSansThai-Regular.ttf",
    )
)
"""Debian's fonts-noto-cjk and fonts-noto-core: what ours has not."""
MARGIN_MM: Final = 20
BOTTOM_MM: Final = 24
LABEL_MM: Final = 30
GREY: Final = 95
INK: Final = 25
BLUE: Final = (28, 66, 104)
RED: Final = (160, 28, 28)
REPLACED: Final = "\u25a1"


class _Page(FPDF):
    """A4 with a foot on each page; a head, of whom it is, on all but the first."""

    def __init__(self, fonts: Sequence[Path]) -> None:
        super().__init__("P", "mm", "A4")
        regular, *others = fonts
        self.add_font("text", "", regular)
        self.add_font("text", "B", _bold(regular))
        names = []
        for number, one in enumerate(others):
            self.add_font(f"more{number}", "", one)
            names.append(f"more{number}")
        self.set_fallback_fonts(names, exact_match=False)
        self.set_text_shaping(True)
        self.set_margins(MARGIN_MM, 16, MARGIN_MM)
        self.set_auto_page_break(True, BOTTOM_MM)
        self.running = ""
        self.foot = ""
        self.mark = ""
        self.has = frozenset(point for one in fonts for point in _points(one))
        self.lacking = False

    def header(self) -> None:
        if self.page_no() > 1:
            self.look(8.5, grey=True)
            self.cell(0, 5, self.printable(self.running), new_x="LMARGIN", new_y="NEXT")
            self.rule()
            self.ln(3)

    def footer(self) -> None:
        self.set_y(-17)
        self.rule()
        self.ln(1.5)
        self.look(8, grey=True)
        self.cell(130, 4, self.printable(self.foot))
        self.cell(0, 4, f"Page {self.page_no()}", align="R", new_x="LMARGIN", new_y="NEXT")
        if self.mark:
            self.set_text_color(*RED)
            self.cell(0, 4, self.printable(self.mark))

    def look(self, size: float, *, bold: bool = False, grey: bool = False) -> None:
        self.set_font("text", "B" if bold else "", size)
        self.set_text_color(GREY if grey else INK)

    def rule(self) -> None:
        self.set_draw_color(190)
        self.set_line_width(0.2)
        self.line(self.l_margin, self.get_y(), self.w - self.r_margin, self.get_y())

    def printable(self, text: str) -> str:
        """``text`` with boxes for what no font has, and without what cannot be seen."""
        shown = []
        for one in unicodedata.normalize("NFC", text.replace("\t", "    ")):
            if one == "\n" or unicodedata.category(one) == "Cf" or ord(one) in self.has:
                shown.append(one)
            elif unicodedata.category(one) not in ("Cc", "Cs"):
                shown.append(REPLACED)
                self.lacking = True
        return "".join(shown)

    def paragraph(self, text: str, height: float = 5.2, width: float = 0) -> None:
        """Text in paragraphs, each aligned to the side where its script begins."""
        for one in self.printable(text).split("\n"):
            if one.strip():
                align = "R" if _right_to_left(one) else "L"
                self.multi_cell(width, height, one, align=align, new_x="LMARGIN", new_y="NEXT")
            else:
                self.ln(height / 2)


def pdf(said: Said, settings: RisSettings, zone: ZoneInfo) -> bytes:
    """The version as a PDF 1.x file. ``zone``: of the moments in it."""
    version = said.version
    page = _Page(_fonts(settings))
    moment = datetime.fromtimestamp((version.signed_ns or version.at_ns) / NS, UTC)
    title = said.orders[0].procedure.meaning if said.orders else ""
    title = title or "Diagnostic imaging report"
    name = person(said.patient.name)
    page.set_title(f"Report {said.report.number}")
    page.set_creator("Hounsfield")
    page.set_creation_date(moment)
    number = said.patient.identifiers[0].value if said.patient.identifiers else ""
    page.running = f"{name}   ·   {_day(said.patient.birth_day)}   ·   {number}   ·   {title}"
    page.foot = f"Report {said.report.number}, version {version.number}   ·   {_moment(moment, zone)}"
    page.mark = _mark(said)
    page.add_page()
    _letterhead(page, settings)
    page.look(16, bold=True)
    page.set_text_color(*BLUE)
    page.multi_cell(0, 7.5, page.printable(title), new_x="LMARGIN", new_y="NEXT")
    if page.mark:
        page.look(10, bold=True)
        page.set_text_color(*RED)
        page.multi_cell(0, 5.5, page.printable(page.mark), new_x="LMARGIN", new_y="NEXT")
    page.ln(2)
    _table(page, list(_facts(said, zone, name)))
    for section in version.sections:
        if section.text.strip() or section.fields:
            _section(page, section.name, section.text, section.fields)
    _signature(page, said, _moment(moment, zone))
    if page.lacking:
        page.look(8, grey=True)
        page.ln(3)
        page.paragraph(
            f"{REPLACED} stands for a character that no font here has; the structured report has it.", 4
        )
    return bytes(page.output())


def _letterhead(page: _Page, settings: RisSettings) -> None:
    page.look(13, bold=True)
    page.cell(
        0, 6, page.printable(settings.institution or settings.department), new_x="LMARGIN", new_y="NEXT"
    )
    page.look(9, grey=True)
    for line in (settings.department if settings.institution else "", settings.address):
        if line:
            page.paragraph(line, 4.5)
    page.ln(2)
    page.set_draw_color(*BLUE)
    page.set_line_width(0.7)
    page.line(page.l_margin, page.get_y(), page.w - page.r_margin, page.get_y())
    page.ln(7)


def _facts(said: Said, zone: ZoneInfo, name: str) -> Iterator[tuple[str, str]]:
    patient, orders = said.patient, said.orders
    sex = {"M": "male", "F": "female", "O": "other"}.get(patient.sex, "")
    yield "Patient", name
    yield "Born", "   ".join(filter(None, (_day(patient.birth_day), sex)))
    yield (
        "Patient ID",
        ", ".join(
            f"{one.value} ({one.issuer})" if one.issuer else one.value for one in patient.identifiers[:2]
        ),
    )
    yield "Accession", said.report.accession
    yield "Order", ", ".join(dict.fromkeys(one.placer_number for one in orders if one.placer_number))
    if orders and orders[0].placed_ns:
        yield "Ordered", _moment(datetime.fromtimestamp(orders[0].placed_ns / NS, UTC), zone)
    yield "Referred by", ", ".join(dict.fromkeys(person(one.referring or one.requester) for one in orders))
    yield "Modality", said.report.modality
    if len(orders) > 1:
        yield "Procedures", ", ".join(one.procedure.meaning or one.procedure.value for one in orders)


def _table(page: _Page, facts: list[tuple[str, str]]) -> None:
    for label, value in facts:
        if value.strip():
            page.look(9, grey=True)
            page.cell(LABEL_MM, 5.2, label)
            page.look(10, bold=label == "Patient")
            page.multi_cell(0, 5.2, page.printable(value), align="L", new_x="LMARGIN", new_y="NEXT")
    page.ln(2)
    page.rule()
    page.ln(3)


def _section(page: _Page, name: str, text: str, fields: Sequence[tuple[str, str]]) -> None:
    if page.will_page_break(18):  # a heading is not left alone at the foot
        page.add_page()
    page.ln(2)
    page.look(11, bold=True)
    page.set_text_color(*BLUE)
    page.paragraph(HEADINGS.get(name, name), 6)
    page.look(10.5, bold=name == "impression")
    page.paragraph(text if text.strip() else "\n".join(f"{key}: {value}" for key, value in fields))


def _signature(page: _Page, said: Said, moment: str) -> None:
    if page.will_page_break(24):
        page.add_page()
    page.ln(8)
    version = said.version
    if version.reason and version.kind in ("correction", "addendum"):
        page.look(9, grey=True)
        page.paragraph(f"Reason of the {version.kind}: {version.reason}", 4.6)
        page.ln(2)
    page.look(10.5, bold=True)
    if version.signer:
        page.paragraph(f"Signed electronically by {person(said.signer)}")
        page.look(9, grey=True)
        page.paragraph(moment, 4.6)
        if version.author != version.signer:
            page.paragraph(f"Written by {person(said.author)}", 4.6)
    else:
        page.paragraph(f"Written by {person(said.author)}, not signed")
        page.look(9, grey=True)
        page.paragraph(moment, 4.6)


def _mark(said: Said) -> str:
    kind, number = said.version.kind, said.version.number
    if kind == "preliminary":
        return "PRELIMINARY: not signed, may change"
    if kind in ("correction", "addendum"):
        signed = [one for one in said.report.versions if one.signed_ns and one.number < number]
        first = f" of {said.report.number}" + (f", follows version {signed[-1].number}" if signed else "")
        return f"{'CORRECTED' if kind == 'correction' else 'ADDENDUM'}: version {number}{first}"
    return ""


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


def _day(day: str) -> str:
    return f"{day[:4]}-{day[4:6]}-{day[6:]}" if len(day) == 8 else day


def _moment(moment: datetime, zone: ZoneInfo) -> str:
    local = moment.astimezone(zone)
    return f"{local:%Y-%m-%d %H:%M} {local.tzname() or ''}".strip()


def _right_to_left(text: str) -> bool:
    """By the first strong character (UAX #9 P2, P3)."""
    for one in text:
        kind = unicodedata.bidirectional(one)
        if kind in ("L", "R", "AL"):
            return kind != "L"
    return False


def _fonts(settings: RisSettings) -> list[Path]:
    given = [Path(one) for one in settings.report_fonts]
    return [*given, OWN / "DejaVuSansCondensed.ttf", *(one for one in SYSTEM if one.is_file())]


def _bold(regular: Path) -> Path:
    bold = regular.with_name(f"{regular.stem.removesuffix('-Regular')}-Bold{regular.suffix}")
    return bold if bold.is_file() else regular


@cache
def _points(font: Path) -> frozenset[int]:
    from fontTools.ttLib import TTFont

    with TTFont(font, fontNumber=0, lazy=True) as opened:
        return frozenset(opened.getBestCmap())
