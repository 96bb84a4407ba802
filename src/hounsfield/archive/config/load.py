"""From config.toml and ``--set`` to a :class:`Config`, or one clear error that names the place."""

from __future__ import annotations

import difflib
import re
import tomllib
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from hounsfield.archive.config.sections import Config
from hounsfield.archive.errors import ConfigError

KeyPath = tuple[str, ...]
Struct = TypeVar("Struct", bound=msgspec.Struct)
_BARE_KEY = re.compile(r"^\s*([A-Za-z0-9_-]+)\s*=")
_TITLE = "expected an AE title: 1 to 16 characters, no backslash, not only spaces"
# What a pattern wants, in words, by the key.
_NAMES = {
    **dict.fromkeys(
        ("title", "ae_title", "to", "called_titles", "calling_titles", "availability_to"), _TITLE
    ),
    "services": 'expected names of services, such as "store"',
    "name": "expected a name: small letters, digits and hyphens, of which the first is a letter",
}
_TABLE = re.compile(r"^\s*\[\[?\s*([A-Za-z0-9_.-]+)\s*\]\]?\s*(?:#.*)?$")


SettingsOf = Callable[[str], type[msgspec.Struct]]


def load_config(
    path: Path | None = None, overrides: Sequence[str] = (), settings_of: SettingsOf | None = None
) -> Config:
    """The configuration in ``path`` (None: defaults) with each ``section.key=value`` of ``overrides`` on top.

    ``settings_of`` says by the name of a plugin what its table may hold, and raises ConfigError when there is
    no such plugin; without it, those tables are taken as they are.

    Raises ConfigError for a file that cannot be read, bad TOML, an unknown key, or a value of the wrong
    type or size. Rules between keys are :func:`check_safety`'s.
    """
    text = ""
    if path is not None:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    try:
        tree: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error

    def place(where: KeyPath, index: int = 0) -> str:
        if any(option.split("=", 1)[0].strip() == ".".join(where) for option in overrides):
            return f"--set {'.'.join(where)}"
        return _place(path, text, where, index)

    _refuse_unknown(tree, Config, (), place)
    for override in overrides:
        _apply(tree, override)
    plugins = tree.get("plugins", {})
    for name, table in plugins.items() if isinstance(plugins, dict) else ():
        if not isinstance(table, dict):
            where = ("plugins", name)
            raise ConfigError(f"{place(where)}: plugins.{name} is no table; write [plugins.{name}]")
    config = _converted(tree, Config, (), place)
    if settings_of is not None:
        for name, table in config.plugins.items():
            at = ("plugins", name)
            try:
                struct = settings_of(name)
            except ConfigError as error:
                raise ConfigError(f"{place(at)}: {error}") from error
            _refuse_unknown(table, struct, at, place)
            _converted(table, struct, at, place)
    return config


def _converted(tree: dict[str, Any], struct: type[Struct], at: KeyPath, place: Callable[..., str]) -> Struct:
    """``tree``, which stands at ``at``, as ``struct``. Raises ConfigError naming the key and its place."""
    try:
        return msgspec.convert(tree, struct)
    except msgspec.ValidationError as error:
        message, _, json_path = str(error).partition(" - at `$")
        where = (*at, *re.findall(r"[A-Za-z_][A-Za-z0-9_]*", json_path))
        if "matching regex" in message:
            message = _NAMES.get(where[-1], message) if where else message
        index = next((int(found) for found in re.findall(r"\[(\d+)\]", json_path)), 0)
        shown = ".".join((*at, *filter(None, [json_path.strip("`").removeprefix(".")])))
        found = f"{place(where, index)}: {shown or 'the file'}: {message[0].lower()}{message[1:]}"
        raise ConfigError(found) from error


def known_keys() -> list[str]:
    """Every key that config.toml may hold, dotted; inside an array of tables as ``aes[].title``."""
    return list(_keys_of(Config, ()))


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set one ``section.key=value`` in ``tree``; the value is TOML, or else a plain string."""
    name, equals, raw = override.partition("=")
    parts = tuple(part.strip() for part in name.split("."))
    if not equals or not all(parts):
        raise ConfigError(f"--set {override!r}: write it as section.key=value, for example archive.workers=2")
    value = _value(raw.strip())
    nested: Any = value
    for part in reversed(parts):
        nested = {part: nested}
    _refuse_unknown(nested, Config, (), lambda where: f"--set {'.'.join(where)}")
    target = tree
    for part in parts[:-1]:
        step = target.setdefault(part, {})
        if not isinstance(step, dict):
            raise ConfigError(
                f"--set {'.'.join(parts)}: {part} is a list of tables; set it whole, for example "
                f'{parts[0]}.{part}=[{{host="127.0.0.1", port=0}}]'
            )
        target = step
    target[parts[-1]] = value


def _value(raw: str) -> Any:
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except (tomllib.TOMLDecodeError, KeyError):
        return raw  # a path or a title, which nobody wants to quote twice in a shell


def _refuse_unknown(
    tree: dict[str, Any], struct: type[msgspec.Struct], at: KeyPath, place: Callable[..., str]
) -> None:
    for where, choices in _unknown(tree, struct, at):
        dotted = ".".join(where)
        elsewhere = [] if at else [key for key in known_keys() if key.rsplit(".", 1)[-1] == where[-1]]
        near = difflib.get_close_matches(where[-1], choices, n=1, cutoff=0.5)
        if elsewhere and "[]" not in elsewhere[0]:
            hint = f"there is {elsewhere[0]}"
        elif near:
            hint = f"the nearest is {'.'.join((*where[:-1], near[0]))}"
        else:
            hint = f"known here: {', '.join(sorted(choices)) or 'nothing'}"
        raise ConfigError(f"{place(where)}: unknown key {dotted}; {hint}")


def _unknown(
    tree: dict[str, Any], struct: type[msgspec.Struct], at: KeyPath
) -> Iterator[tuple[KeyPath, list[str]]]:
    hints = get_type_hints(struct, include_extras=True)
    for key, value in tree.items():
        if key not in hints:
            yield (*at, key), list(hints)
            continue
        inner = _section_in(hints[key])
        if inner is None:
            continue
        tables = value if isinstance(value, list) else [value]
        for table in tables:
            if isinstance(table, dict):
                yield from _unknown(table, inner, (*at, key))


def _keys_of(struct: type[msgspec.Struct], at: KeyPath) -> Iterator[str]:
    for key, hint in get_type_hints(struct, include_extras=True).items():
        inner = _section_in(hint)
        if inner is None:
            yield ".".join((*at, key))
        else:
            many = "[]" if get_origin(hint) is tuple else ""
            yield from _keys_of(inner, (*at, key + many))


def _section_in(hint: Any) -> type[msgspec.Struct] | None:
    """The struct that a field holds one or several of, or None for a plain value."""
    origin = get_origin(hint)
    if origin in (Annotated, tuple, Union, types.UnionType):
        return next((found for arg in get_args(hint) if (found := _section_in(arg))), None)
    return hint if isinstance(hint, type) and issubclass(hint, msgspec.Struct) else None


def _place(path: Path | None, text: str, where: KeyPath, index: int = 0) -> str:
    """``file:line`` of the key at ``where`` (in table ``index`` of its array), or the file alone."""
    name = str(path) if path is not None else "configuration"
    table: KeyPath = ()
    seen: dict[KeyPath, int] = {}
    best = 0
    for number, line in enumerate(text.splitlines(), 1):
        if header := _TABLE.match(line):
            table = tuple(header[1].split("."))
            seen[table] = seen.get(table, -1) + 1
        elif key := _BARE_KEY.match(line):
            here = (*table, key[1])
            if here == where and seen.get(table, 0) == index:
                return f"{name}:{number}"
            if here == where[: len(here)]:
                best = number
            continue
        if table == where[: len(table)] and seen.get(table, 0) == index and table:
            best = best if header is None else number
    return f"{name}:{best}" if best else name
