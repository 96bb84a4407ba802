"""A4 pages that are kept for decades: PDF/A-2b (ISO 19005-2), whose it is on each, how many there are.

All fonts are embedded, colours are sRGB's, nothing is transparent, and who reads the file without opening it
learns the report's number and no name. fpdf2 marks no structure, so it is no tagged PDF (ISO 14289): what
reads aloud finds the text in its order, and the language.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, Final
from xml.sax.saxutils import escape

from fpdf import FPDF
from fpdf.enums import DocumentCompliance

from hounsfield.ris_plugin.distribution.typefaces import Typeface, bold_of, points

__all__ = ["BLUE", "INK", "RED", "REPLACED", "Page"]

MARGIN_MM: Final = 20
BOTTOM_MM: Final = 26
FOOT_MM: Final = 19
LINE_MM: Final = 5.2
ITEM_MM: Final = 4.5
COLUMNS_MAX: Final = 8
MARKS_MAX: Final = 8
"""Combining marks on one character: more would be printed over the lines above it."""
GREY: Final = 95
PALE: Final = 233
INK: Final = 25
BLUE: Final = (28, 66, 104)
RED: Final = (160, 28, 28)
REPLACED: Final = "\u25a1"
PAGES: Final = "\ufdd0\ufdd1"
"""Stands for the number of pages until it is known: noncharacters, which no text is printed with."""
UNSEEN: Final = frozenset("\u200c\u200d\u200e\u200f\u061c\xad")
"""Joiners, marks of direction and the soft hyphen. Others that nobody sees turn text around, numbers too, or
take the place of spaces for who searches or listens."""
_ITEM: Final = re.compile(r"(\s{0,8})([-*\u2022\u2013]|\d{1,2}[.)])\s+(?=\S)")

_UNSHAPED: Final = re.compile(
    "[\\x20-\\u02ff\\u0370-\\u0482\\u048a-\\u052f\\u1e00-\\u1fff\\u2010-\\u2027\\u2030-\\u205e\\u20a0-\\u20bf\\u2100-\\u2bff"
    "\\u2e80-\\u3029\\u3030-\\u3098\\u309b-\\ua4cf\\uac00-\\ud7a3\\uf900-\\ufaff\\uff00-\\uffef]*"
)
"""Latin, Greek, Cyrillic, Chinese, Japanese and Korean without combining marks: a character is a glyph, from
left to right. Shaping long texts costs several times what printing them does."""

_XMP: Final = """<x:xmpmeta xmlns:x="adobe:ns:meta/">
  <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
    <rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/"
        xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:pdf="http://ns.adobe.com/pdf/1.3/"
        xmlns:pdfaid="http://www.aiim.org/pdfa/ns/id/">
      <pdfaid:part>2</pdfaid:part>
      <pdfaid:conformance>B</pdfaid:conformance>
      <dc:title><rdf:Alt><rdf:li xml:lang="x-default">{title}</rdf:li></rdf:Alt></dc:title>{language}
      <xmp:CreatorTool>{creator}</xmp:CreatorTool>
      <xmp:CreateDate>{moment}</xmp:CreateDate>
      <pdf:Producer>{producer}</pdf:Producer>
    </rdf:Description>
  </rdf:RDF>
</x:xmpmeta>"""


class Page(FPDF):
    """A document of such pages. ``running``: whose it is, at the head of all pages but the first, which says
    more; ``foot``, ``mark`` and ``note``: at the foot of each; ``across``: written across each."""

    def __init__(self, faces: Sequence[Typeface]) -> None:
        super().__init__("P", "mm", "A4", enforce_compliance=DocumentCompliance.PDFA_2B)
        main, *others = faces
        bold = bold_of(main)
        self.add_font("text", "", main.path, collection_font_number=main.number)
        self.add_font("text", "B", bold.path, collection_font_number=bold.number)
        names = [f"more{number}" for number in range(len(others))]
        for name, one in zip(names, others, strict=True):
            self.add_font(name, "", one.path, collection_font_number=one.number)
        self.set_fallback_fonts(names, exact_match=False)
        self.set_text_shaping(True)
        self.set_margins(MARGIN_MM, 16, MARGIN_MM)
        self.set_auto_page_break(True, BOTTOM_MM)
        self.alias_nb_pages(PAGES)
        self.running = self.foot = self.mark = self.note = self.across = ""
        self.pages_said = ""
        self.has = frozenset(point for one in faces for point in points(one))
        self.lacking = False

    def describe(self, title: str, moment: datetime, language: str) -> None:
        """What the file says of itself, twice the same (ISO 19005-2 6.6.3)."""
        creator, producer = "Hounsfield", "fpdf2"
        self.set_title(title)
        self.set_creator(creator)
        self.set_producer(producer)
        self.set_creation_date(moment.astimezone(UTC))
        self.set_lang(language)
        said = f"\n      <dc:language><rdf:Bag><rdf:li>{language}</rdf:li></rdf:Bag></dc:language>"
        self.set_xmp_metadata(
            _XMP.format(
                title=escape(title),
                language=said if language else "",
                creator=creator,
                moment=f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
                producer=producer,
            )
        )

    def add_page(self, *args: Any, **kwargs: Any) -> None:
        """fpdf2 (2.8.9) takes a font that it set for a part of a line for the page's: lines after one that
        began in another font were printed with wrong glyphs. So a page has its font before any line."""
        super().add_page(*args, **kwargs)
        self._settle()

    def set_font(self, *args: Any, **kwargs: Any) -> None:
        super().set_font(*args, **kwargs)
        self._settle()

    def _settle(self) -> None:
        if self.page and self.is_ttf_font and not self.current_font_is_set_on_page:
            assert self.current_font is not None
            self._out(self._set_font_for_page(self.current_font, self.font_size_pt))

    def header(self) -> None:
        if self.across:
            self.look(64, bold=True)
            self.set_text_color(PALE)
            with self.rotation(52, self.w / 2, self.h / 2):
                width = self.get_string_width(self.across)
                self.set_xy((self.w - width) / 2, self.h / 2 - 12)
                self.cell(width, 24, self.across, align="C")
            self.set_xy(self.l_margin, self.t_margin)
        if self.page_no() > 1:
            self.look(8.5, grey=True)
            self.multi_cell(0, 4.2, self.printable(self.running), align="L", new_x="LMARGIN", new_y="NEXT")
            self.ln(0.8)
            self.rule()
            self.ln(3)

    def footer(self) -> None:
        self.set_y(-FOOT_MM)
        self.rule()
        self.ln(1.5)
        self.look(8, grey=True)
        self.cell(125, 4, self.printable(self.foot))
        said = self.printable(self.pages_said).format(page=self.page_no(), pages=PAGES)
        self.cell(0, 4, said, align="R", new_x="LMARGIN", new_y="NEXT")
        for text, colour in ((self.mark, RED), (self.note, (GREY, GREY, GREY))):
            if text:
                self.set_text_color(*colour)
                self.cell(0, 4, self.printable(text), new_x="LMARGIN", new_y="NEXT")

    def look(self, size: float, *, bold: bool = False, grey: bool = False) -> None:
        self.set_font("text", "B" if bold else "", size)
        self.set_text_color(GREY if grey else INK)

    def rule(self) -> None:
        self.set_draw_color(190)
        self.set_line_width(0.2)
        self.line(self.l_margin, self.get_y(), self.w - self.r_margin, self.get_y())

    def printable(self, text: str) -> str:
        """``text`` with boxes for what no font has, without what cannot be seen or turns text around."""
        shown: list[str] = []
        marks = 0
        for one in unicodedata.normalize("NFC", text):
            kind = unicodedata.category(one)
            marks = marks + 1 if kind in ("Mn", "Me") else 0
            if marks > MARKS_MAX:
                if marks == MARKS_MAX + 1:
                    shown.append(REPLACED)
                    self.lacking = True
            elif one in "\n\t":
                shown.append(one)
            elif kind == "Cf":
                if one in UNSEEN and ord(one) in self.has:
                    shown.append(one)
            elif ord(one) in self.has:
                shown.append(one)
            elif kind in ("Zs", "Zl", "Zp"):
                shown.append(" ")
            elif kind not in ("Cc", "Cs"):
                shown.append(REPLACED)
                self.lacking = True
        return "".join(shown)

    def paragraph(self, text: str, height: float = LINE_MM) -> None:
        """Text in paragraphs, each aligned to the side where its script begins; items of lists stand in, and
        lines with tabs are a table."""
        lines = re.split(r"\r\n|[\n\r\f\v\x85\u2028\u2029]", text)
        for columns, group in groupby(lines, key=lambda one: one.strip().count("\t")):
            rows = [self.printable(one) for one in group]
            if 0 < columns < COLUMNS_MAX and len(rows) > 1:
                self._table([[cell.strip() for cell in one.strip().split("\t")] for one in rows], height)
                continue
            for one in rows:
                self._line_of_text(one.replace("\t", "    "), height)

    def _line_of_text(self, text: str, height: float) -> None:
        if not text.strip():
            self.ln(height / 2)
            return
        self.set_text_shaping(not _UNSHAPED.fullmatch(text))
        self._set_line(text, height)
        self.set_text_shaping(True)

    def _set_line(self, text: str, height: float) -> None:
        if right_to_left(text):
            self.multi_cell(0, height, text, align="R", new_x="LMARGIN", new_y="NEXT")
            return
        item = _ITEM.match(text)
        if item is not None:
            indent = len(item[1]) * 1.2
            if self.will_page_break(height):
                self.add_page()
            self.set_x(self.l_margin + indent)
            self.cell(ITEM_MM + (2 if item[2][0].isdigit() else 0), height, item[2])
            text = text[item.end() :]
        begin, self.l_margin = self.l_margin, self.x
        self.multi_cell(0, height, text, align="L", new_x="LMARGIN", new_y="NEXT")
        self.l_margin = begin
        self.set_x(begin)

    def _table(self, rows: Sequence[Sequence[str]], height: float) -> None:
        self.ln(1)
        with self.table(
            rows, borders_layout="HORIZONTAL_LINES", first_row_as_headings=False, line_height=height,
            text_align="LEFT",
        ):  # fmt: skip
            pass
        self.ln(1)


def right_to_left(text: str) -> bool:
    """By the first strong character (UAX #9 P2, P3)."""
    for one in text:
        kind = unicodedata.bidirectional(one)
        if kind in ("L", "R", "AL"):
            return kind != "L"
    return False
