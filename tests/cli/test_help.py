"""``--help`` teaches: every command says what it does, with an example that starts with its own name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
import pytest

from hounsfield.archive.cli.main import COMMANDS, hounsfield


def _every(group: click.Group, at: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*at, name)
        if isinstance(command, click.Group):
            yield from _every(command, (*at, name))


ALL = list(_every(hounsfield, ()))
GROUPS = {path[:-1] for path in ALL if len(path) > 1}


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_has_a_help_text(cli: Any, path: tuple[str, ...]) -> None:
    result = cli(*path, "--help")
    assert result.code == 0
    assert f"Usage: hounsfield {' '.join(path)}" in result.out
    if path not in GROUPS and path != ("version",):
        assert f"hounsfield {' '.join(path)}" in result.out.partition("Example")[2], "an example of itself"
    assert all(len(line) <= 120 for line in result.out.splitlines())


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_no_option_means_two_things(path: tuple[str, ...]) -> None:
    command: click.Command = hounsfield
    for name in path:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), name)
        assert found is not None
        command = found
    options = [option for one in command.params for option in (*one.opts, *one.secondary_opts)]
    assert len(options) == len(set(options))


@pytest.mark.parametrize("path", [path for path in ALL if path not in {*GROUPS, ("serve",)}])
def test_what_shows_something_shows_it_as_json_too(cli: Any, path: tuple[str, ...]) -> None:
    if path == ("ae", "remove"):
        return
    assert "--json" in cli(*path, "--help").out


def test_the_list_of_commands_is_shown_without_loading_them(cli: Any) -> None:
    result = cli("--help")
    assert result.code == 0
    for name, (_, text) in COMMANDS.items():
        assert name in result.out
        assert text in result.out


@pytest.mark.parametrize(
    ("typed", "hint"),
    [("sevre", "did you mean serve?"), ("xyzzy", "lists the commands"), ("confg", "config")],
)
def test_a_mistyped_command_is_a_usage_error_with_a_hint(cli: Any, typed: str, hint: str) -> None:
    result = cli(typed)
    assert result.code == 2
    assert hint in result.err


def test_version(cli: Any) -> None:
    from hounsfield import __version__

    assert __version__ in cli("version").out
    assert cli("version", "--json").json()["hounsfield"] == __version__
    assert cli("--version").out == f"hounsfield, version {__version__}\n"
