"""What a template requires is signed without, a macro never ends, or somebody's own is changed by another."""

from __future__ import annotations

import tracemalloc

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from hounsfield.archive.plugins import TakenError
from hounsfield.ris_plugin.errors import ForbiddenError, InvalidError, UnknownError
from hounsfield.ris_plugin.reading import templates
from hounsfield.ris_plugin.reading.reporting import (
    REPORT_CHARACTERS_MAX,
    addend,
    assign,
    correct,
    draft,
    get,
    put_forward,
    ready,
    sign,
)
from hounsfield.ris_plugin.reading.templates import (
    complete,
    delete_macro,
    delete_template,
    expand,
    filled,
    fitting,
    macros,
    put_macro,
    put_sheet,
    put_template,
    read,
    sections,
    write,
)
from hounsfield.ris_plugin.records.base import folded
from hounsfield.ris_plugin.records.reports import Field, Macro, Report, Section, Template, TemplateSection
from ris.conftest import ADMINISTRATOR, CLERK, INTERFACE, RADIOLOGIST, TRAINEE, Desk

SIDE = Field(name="side", label="Side", choices=("left", "right"), required=True)
SIZE = Field(name="size", label="Size", unit="mm")
SEEN = Field(name="seen", choices=("effusion", "nodule", "nothing"), several=True, default="nothing")
CHEST = Template(
    name="Chest",
    sections=(
        TemplateSection(
            name="findings",
            text="On the {side}: {seen}, {size}. {other}",
            fields=(SIDE, SIZE, SEEN, Field(name="other")),
        ),
        TemplateSection(name="impression", required=True),
    ),
)
REPORT = Report(
    number="R1", patient="0", orders=(), study_uid="1.2", state="assigned", modality="CT", body_part="HEAD"
)


def written(
    text: str = "On the {side}: {seen}, {size}.", impression: str = "Normal.", **fields: str
) -> tuple[Section, ...]:
    return (
        Section(name="findings", text=text, fields=tuple(fields.items())),
        Section(name="impression", text=impression),
    )


def test_what_is_required_is_there_before_it_is_signed() -> None:
    whole = complete(CHEST, written(side="left", seen="nodule, effusion", size="12 x 9"))
    assert whole[0].text == "On the left: nodule, effusion, 12 x 9 mm."
    assert dict(whole[0].fields)["size"] == "12 x 9"  # what was chosen stays beside the words
    for wrong, what in (
        (written(seen="nodule", size="1"), "Side"),
        (written(side="left", seen="nodule"), "Size"),  # not required, and spoken of
        (written(side="left", seen="nodule", size="1", impression=" "), "impression"),
        (written(side="both", seen="nodule", size="1"), "left, right"),
        (written(side="left", seen="nodule,cyst", size="1"), "one of"),
        (written(side="left", seen="nodule", size="big"), "number"),
        ((written(side="left")[1],), "Side"),
    ):
        with pytest.raises(InvalidError, match=what):
            complete(CHEST, wrong)
    assert complete(CHEST, written("Nothing on the {side}.", side="left"))[0].text == "Nothing on the left."
    assert filled(CHEST, written())[0].text == "On the ____: ____, ____."
    assert complete(None, written()) == written()


def test_what_the_text_has_no_place_for_is_said_below_it() -> None:
    left = {"side": "left", "seen": "nodule", "size": "12 x 9"}
    (said, _) = complete(CHEST, written("On the {side}: a nodule.", **left))
    assert said.text == "On the left: a nodule.\nSize: 12 x 9 mm"
    # A correction begins with those words.
    assert complete(CHEST, (said, written()[1])) == (said, written()[1])
    changed = structs.replace(said, text="On the right: nodules.\nSize: 12 x 9 mm")
    assert complete(CHEST, (changed, written()[1]))[0].text.endswith("9 mm\nSide: left\nseen: nodule")
    only = filled(None, (Section(name="dose", text=" ", fields=(("CTDI", "3"), ("DLP", ""))),))
    assert [one.text for one in only] == ["CTDI: 3"]


@pytest.fixture
def report(desk: Desk) -> str:
    desk.procedure()
    report = desk.do(ready, INTERFACE, [desk.order(desk.patient())])
    desk.do(assign, RADIOLOGIST, desk.settings, report)
    return report


def test_a_version_is_in_the_language_that_it_was_written_in(desk: Desk, report: str) -> None:
    text = (Section(name="findings", text="Unauffällig."),)
    for wrong in ("German", "DE", "de_AT", "x"):
        with pytest.raises(InvalidError, match="RFC 5646"):
            desk.do(put_template, RADIOLOGIST, structs.replace(CHEST, language=wrong))
        with pytest.raises(InvalidError, match="RFC 5646"):
            desk.do(draft, RADIOLOGIST, desk.settings, report, text, language=wrong)
    german = Template(name="D", language="de-AT", sections=(TemplateSection(name="findings"),))
    chosen = desk.do(put_template, RADIOLOGIST, german)
    desk.do(draft, RADIOLOGIST, desk.settings, report, text, template=chosen)
    desk.do(put_forward, RADIOLOGIST, report)
    desk.do(assign, RADIOLOGIST, desk.settings, report)
    desk.do(draft, RADIOLOGIST, desk.settings, report, text, language="zh-Hant-TW")
    desk.do(sign, RADIOLOGIST, report)
    desk.do(correct, RADIOLOGIST, report, text, reason="x")
    assert [one.language for one in desk.look(get, report).versions] == ["de-AT", "zh-Hant-TW", "zh-Hant-TW"]


def test_a_report_is_no_book(desk: Desk, report: str) -> None:
    parts = [Section(name=f"part{n}", text="x" * (REPORT_CHARACTERS_MAX // 3)) for n in range(3)]
    desk.do(draft, RADIOLOGIST, desk.settings, report, parts)
    with pytest.raises(InvalidError, match="characters"):
        desk.do(draft, RADIOLOGIST, desk.settings, report, [*parts, Section(name="more", text="xx")])


def test_signing_asks_for_it_and_keeps_the_words(desk: Desk, report: str) -> None:
    chosen = desk.do(put_template, RADIOLOGIST, CHEST)
    with pytest.raises(UnknownError):
        desk.do(draft, RADIOLOGIST, desk.settings, report, (), template="0" * 32)
    desk.do(draft, RADIOLOGIST, desk.settings, report, sections(CHEST), template=chosen)
    with pytest.raises(InvalidError, match=r"Side, Size, other, impression"):
        desk.do(sign, RADIOLOGIST, report)
    early = desk.do(put_forward, RADIOLOGIST, report).versions[-1]  # who waits sees that it is not said yet
    assert early.sections[0].text == "On the ____: nothing, ____. ____"
    desk.do(assign, RADIOLOGIST, desk.settings, report)
    desk.do(draft, RADIOLOGIST, desk.settings, report, written(side="left", seen="nothing", size="0"))
    assert desk.do(sign, RADIOLOGIST, report).versions[-1].sections[0].text == "On the left: nothing, 0 mm."
    with pytest.raises(InvalidError):
        desk.do(correct, RADIOLOGIST, report, written(), reason="side")
    desk.do(correct, RADIOLOGIST, report, written(side="right", seen="nothing", size="0"), reason="side")
    desk.do(addend, RADIOLOGIST, report, (Section(name="findings", text="Compared."),))
    desk.do(delete_template, RADIOLOGIST, chosen)
    final = desk.look(get, report)
    assert [one.sections[0].text for one in final.versions[1:]] == [
        "On the left: nothing, 0 mm.",
        "On the right: nothing, 0 mm.",
        "Compared.",
    ]


def test_the_template_that_fits_best_comes_first(desk: Desk) -> None:
    body = CHEST.sections
    for name, more in {
        "for all": {},
        "of CT": {"modality": "CT"},
        "of MR": {"modality": "MR"},
        "of heads": {"body_part": "head"},
        "of CT heads": {"modality": "CT", "body_part": "HEAD"},
        "of this": {"procedures": ("CTHEAD", "CTSINUS")},
        "of another": {"procedures": ("CTCHEST",)},
    }.items():
        desk.do(put_template, RADIOLOGIST, Template(name=name, sections=body, **more))  # type: ignore[arg-type]
    desk.do(put_template, TRAINEE, Template(name="mine", sections=body, modality="CT", owner="trainee"))
    found = desk.look(fitting, REPORT, ["CTHEAD"], "trainee")
    assert [one.name for _, one in found] == [
        "of this", "of CT heads", "of heads", "mine", "of CT", "for all",
    ]  # fmt: skip
    assert next(one.name for _, one in desk.look(fitting, REPORT, [], "other")) == "of CT heads"


def test_one_changes_ones_own_and_some_everybodys(desk: Desk) -> None:
    own = Template(name="Chest", sections=CHEST.sections, owner="trainee")
    with pytest.raises(ForbiddenError):
        desk.do(put_template, TRAINEE, CHEST)
    with pytest.raises(ForbiddenError):
        desk.do(put_template, RADIOLOGIST, own)
    with pytest.raises(ForbiddenError):
        desk.do(put_macro, CLERK, Macro(name="a", text="b", owner="clerk"))
    mine = desk.do(put_template, TRAINEE, own)
    assert desk.do(put_template, TRAINEE, own) == mine
    everybodys = desk.do(put_template, ADMINISTRATOR, CHEST)
    with pytest.raises(ForbiddenError):
        desk.do(put_template, TRAINEE, own, everybodys)  # nobody takes for himself what is everybody's
    with pytest.raises(UnknownError):
        desk.do(delete_template, RADIOLOGIST, mine)  # nor knows what others keep for themselves
    with pytest.raises(UnknownError):
        desk.do(put_template, RADIOLOGIST, CHEST, mine)
    desk.do(put_template, ADMINISTRATOR, Template(name="Other", sections=CHEST.sections))
    with pytest.raises(TakenError):
        desk.do(put_template, ADMINISTRATOR, Template(name="Other", sections=CHEST.sections), everybodys)
    macro = desk.do(put_macro, RADIOLOGIST, Macro(name="Clear", text="The lungs are clear."))
    desk.do(put_macro, TRAINEE, Macro(name="clear", text="Clear.", owner="trainee"))
    assert desk.look(macros, "trainee") == {"clear": "Clear."}
    assert desk.look(macros) == {"clear": "The lungs are clear."}
    desk.do(delete_macro, RADIOLOGIST, macro)
    with pytest.raises(UnknownError):
        desk.do(delete_macro, RADIOLOGIST, macro)


def test_macros_that_grow_by_powers_are_refused_before_they_have_grown() -> None:
    words = {f"m{number}": f".m{number + 1} " * 60 for number in range(4)} | {"m4": "x" * 60}
    tracemalloc.start()
    try:
        with pytest.raises(InvalidError, match="at most"):
            expand(".m0", words)  # 780 million characters
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_macros_stand_for_texts_and_end() -> None:
    words = {
        "clear": "The lungs are .quiet",
        "quiet": "clear.",
        "grosse": "x",
        "loop": "a .loop",
        "in": "out",
    }
    for text, expected in {
        ".clear Heart .QUIET": "The lungs are clear. Heart clear.",
        "at 3 .5 mm; a.clear .unknown .Größe": "at 3 .5 mm; a.clear .unknown x",
        "(.clear) .in-house .in.de .in, .in": "(.clear) .in-house .in.de out, out",
    }.items():
        assert expand(text, words) == expected
    with pytest.raises(InvalidError, match="itself"):
        expand("see .loop", words)
    bomb = {f"m{n}": f".m{n + 1} " * 50 for n in range(7)} | {"m7": "x" * 100}
    with pytest.raises(InvalidError, match="characters"):
        expand(".m0", bomb)


@given(st.text(max_size=200), st.dictionaries(st.sampled_from("abc"), st.text(max_size=20), max_size=3))
def test_any_text_with_any_macros_ends(text: str, words: dict[str, str]) -> None:
    try:
        grown = expand(text, words)
    except InvalidError:
        return
    assert grown == text or any(f".{word}" in folded(text) for word in words)


@pytest.mark.parametrize(
    "wrong",
    [
        Template(name=" ", sections=CHEST.sections),
        Template(name="x", sections=()),
        Template(name="x", sections=(TemplateSection(name="a"), TemplateSection(name="a"))),
        Template(name="x", sections=(TemplateSection(name="a", text="{b}"),)),
        Template(name="x", sections=(TemplateSection(name="a", fields=(Field(name="two words"),)),)),
        Template(name="x", sections=(TemplateSection(name="a", fields=(Field(name="b", several=True),)),)),
        Template(
            name="x",
            sections=(TemplateSection(name="a", fields=(Field(name="b", unit="mm", default="big"),)),),
        ),
    ],
)
def test_a_template_that_cannot_be_filled_in_is_not_kept(desk: Desk, wrong: Template) -> None:
    with pytest.raises(InvalidError):
        desk.do(put_template, RADIOLOGIST, wrong)


def test_a_file_of_them_goes_in_and_out(desk: Desk) -> None:
    sheet = read(
        yaml.safe_load("""
        templates:
          - name: Chest
            modality: CT
            procedures: [CTCHEST]
            sections:
              - name: findings
                text: "Nodule of {size} on the {side}."
                fields:
                  - {name: size, unit: mm, required: true, code: {value: "246120007", scheme: SCT}}
                  - {name: side, choices: [left, right]}
        macros:
          - {name: clear, text: The lungs are clear.}
        """)
    )
    assert desk.do(put_sheet, RADIOLOGIST, sheet) == 2
    again = read(yaml.safe_load(yaml.safe_dump(desk.look(write))))
    assert again == sheet
    assert type(again.templates[0]) is Template
    for wrong in (
        [],
        {"template": []},
        {"templates": [{"name": "x"}]},
        {"templates": [{"name": "x", "sections": [{"name": "a", "feilds": []}]}]},
        {"macros": [{"name": 3, "text": "x"}]},
    ):
        with pytest.raises(InvalidError):
            read(wrong)
    assert read(None) == templates.Sheet()
