"""Danger: docs/ris.md shows commands, endpoints and roles that there are not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import pytest

from hounsfield.ris_plugin.actors import PEOPLES_ROLES
from hounsfield.ris_plugin.api.live import TOPICS
from hounsfield.ris_plugin.api.table import ENDPOINTS
from hounsfield.ris_plugin.cli import command
from hounsfield.ris_plugin.settings import RisSettings


@pytest.fixture(scope="module")
def text(root_directory: Path) -> str:
    return (root_directory / "docs" / "ris.md").read_text(encoding="utf-8")


class Line:
    """What a command is made with, to look at what it takes."""

    def options(self, function: Any) -> Any:
        for name in ("--data", "--json"):
            function = click.option(name)(function)
        return function


def test_every_command_that_is_shown_is_one(text: str) -> None:
    whole: Any = command(Line())  # type: ignore[arg-type]
    shown = re.findall(r"hounsfield ris ((?:[a-z0-9-]+ ?)+)", text)
    assert len(shown) > 10
    for words in shown:
        one: Any = whole
        for word in words.split():
            if not isinstance(one, click.Group):
                break
            assert word in one.commands, words
            one = one.commands[word]
        assert not isinstance(one, click.Group), words


def test_every_endpoint_that_is_shown_is_one(text: str) -> None:
    shown = re.findall(r'^\$ curl (.*?) ?"?\$R(/[^\s"?]*)', text, flags=re.MULTILINE)
    assert len(shown) > 8
    known = {(one.method, re.sub(r"{\w+}", "ID", one.path)) for one in ENDPOINTS}
    for words, path in shown:
        method = "PUT" if "-X PUT" in words else "POST" if "--json" in words else "GET"
        assert (method, re.sub(r"/[A-Z]{4,}", "/ID", path)) in known, path


def test_roles_topics_and_settings_that_are_told_are_there(text: str) -> None:
    for role in PEOPLES_ROLES:
        assert f"| {role} |" in text
    for topic in TOPICS:
        assert f"`{topic}`" in text
    for key in (
        "worklist_own_only",
        "mpps_forward_to",
        "images_late_seconds",
        "unread_late_seconds",
        "time_zone",
    ):
        assert f"`{key}`" in text
        assert key in RisSettings.__struct_fields__
