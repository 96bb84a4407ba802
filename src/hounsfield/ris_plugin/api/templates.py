"""Report templates and macros over the API: everybody's, and one's own."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from hounsfield.archive.plugins import Change, View
from hounsfield.ris_plugin.api.endpoints import Ask, Endpoint, Nothing, page_of
from hounsfield.ris_plugin.api.models import item, model, row_of
from hounsfield.ris_plugin.api.sight import DEPARTMENT
from hounsfield.ris_plugin.reading import templates
from hounsfield.ris_plugin.records.reports import MACRO, TEMPLATE, Macro, Template

__all__ = ["ENDPOINTS"]

TAG: Final = "Templates"
TemplateItem: Final[Any] = item(Template)
MacroItem: Final[Any] = item(Macro)


class Macros(msgspec.Struct, frozen=True, kw_only=True):
    """Texts by the word that stands for them; one's own before everybody's."""

    macros: dict[str, str]


class Fitting(Nothing, frozen=True, kw_only=True):
    """``report``: those that fit it, the best first."""

    report: str = ""


def listed(view: View, ask: Ask) -> Any:
    """Everybody's templates and one's own."""
    if ask.query.report:
        from hounsfield.ris_plugin.api import sight
        from hounsfield.ris_plugin.orders import get

        report = sight.report(view, ask.actor, ask.query.report)
        codes = [get(view, one).procedure.value for one in report.orders]
        found = templates.fitting(view, report, codes, ask.actor.person)
    else:
        found = templates.templates(view, ask.actor.person)
    return page_of(TemplateItem)(items=tuple(ask.item(view, TEMPLATE, *each) for each in found))


def put(change: Change, ask: Ask) -> Any:
    """Add a template."""
    key = templates.put_template(change, ask.actor, row_of(ask.body, ask.ris.zone))
    return _template(change, ask, key)


def change_template(change: Change, ask: Ask) -> Any:
    """Change a template."""
    key = ask.path["template"]
    templates.put_template(change, ask.actor, row_of(ask.body, ask.ris.zone), key)
    return _template(change, ask, key)


def _template(view: View, ask: Ask, key: str) -> Any:
    return ask.item(view, TEMPLATE, key, templates.template(view, key))


def delete(change: Change, ask: Ask) -> None:
    """Remove a template."""
    templates.delete_template(change, ask.actor, ask.path["template"])


def macros(view: View, ask: Ask) -> Macros:
    """What one's macros stand for."""
    return Macros(macros=templates.macros(view, ask.actor.person))


def put_macro(change: Change, ask: Ask) -> Any:
    """Add a macro."""
    key = templates.put_macro(change, ask.actor, row_of(ask.body, ask.ris.zone))
    held = change.get(MACRO, key)
    assert held is not None
    return ask.item(change, MACRO, key, held)


def delete_macro(change: Change, ask: Ask) -> None:
    """Remove a macro."""
    templates.delete_macro(change, ask.actor, ask.path["macro"])


ENDPOINTS: Final = (
    Endpoint(
        "ListTemplates", "GET", "/templates", TAG, "Report templates: everybody's, and one's own",
        listed, page_of(TemplateItem), Fitting,
    ),
    Endpoint(
        "AddTemplate", "POST", "/templates", TAG, "Add a template",
        put, TemplateItem, body=model(Template), status=201,
    ),
    Endpoint(
        "ChangeTemplate", "PUT", "/templates/{template}", TAG, "Change a template",
        change_template, TemplateItem, body=model(Template), kind=TEMPLATE, must_match=True,
    ),
    Endpoint(
        "DeleteTemplate", "DELETE", "/templates/{template}", TAG,
        "Remove a template",
        delete, kind=TEMPLATE,
    ),
    Endpoint("GetMacros", "GET", "/macros", TAG, "What macros stand for", macros, Macros, roles=DEPARTMENT),
    Endpoint(
        "AddMacro", "POST", "/macros", TAG,
        "Add a macro",
        put_macro, MacroItem, body=model(Macro), status=201,
    ),
    Endpoint("DeleteMacro", "DELETE", "/macros/{macro}", TAG, "Remove a macro", delete_macro, kind=MACRO),
)  # fmt: skip
