"""The RIS as a plugin of the archive: what it offers, and what its parts are in one worker."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from hounsfield.archive.dicom.text import character_set
from hounsfield.archive.errors import ConfigError
from hounsfield.archive.plugins import Archive, CommandLine, Listen, Parts, Plugin
from hounsfield.ris_plugin.context import Ris
from hounsfield.ris_plugin.languages import is_tag
from hounsfield.ris_plugin.settings import RisSettings

if TYPE_CHECKING:
    import click
    from prometheus_client.metrics_core import Metric

__all__ = ["parts_of", "plugin"]

NEEDS: Final = {"hl7": "hl7", "yaml": "PyYAML", "fpdf": "fpdf2", "uharfbuzz": "uharfbuzz"}
"""What the extra `ris` installs, by module. Some are imported at the first message or report only: who has
not installed them is told so before anything runs."""
if missing := [package for module, package in NEEDS.items() if find_spec(module) is None]:
    raise ImportError(f"it needs {', '.join(missing)}")

ACCESSION_CHARACTERS_MAX: Final = 16  # VR SH (PS3.5 6.2)
UID_ROOT_CHARACTERS_MAX: Final = 24
"""So that a random number of 128 bits after it makes at most 64 characters (PS3.5 9.1)."""


def parts_of(ris: Ris) -> list[Parts]:
    """The parts of each concern that speaks to the world."""
    # Here: a command that only asks a server imports none of it, and starts in half the time.
    from hounsfield.ris_plugin import api, distribution, importing, reacting
    from hounsfield.ris_plugin import hl7 as messages
    from hounsfield.ris_plugin.modalities import mpps, worklist

    concerns = (worklist, mpps, reacting, api, importing, messages, distribution)
    return [one.parts(ris) for one in concerns]


async def start(archive: Archive, settings: RisSettings) -> Parts:
    """The parts of the RIS in one worker."""
    ris = Ris(archive, settings)
    return merged(parts_of(ris))


def merged(parts: Sequence[Parts]) -> Parts:
    """All of them as one. ValueError when two have a stream, leading part or operation of one name."""
    whole = Parts(metrics=partial(_every, [one.metrics for one in parts]))
    for one in parts:
        for name, of, more in (
            ("streams", whole.streams, one.streams),
            ("leading", whole.leading, one.leading),
            ("operations", whole.operations, one.operations),
        ):
            twice = of.keys() & more.keys()
            if twice:
                raise ValueError(f"{name} of the RIS are there twice: {', '.join(sorted(twice))}")
        whole.services = [*whole.services, *one.services]
        whole.routes = [*whole.routes, *one.routes]
        whole.background = [*whole.background, *one.background]
        whole.streams = {**whole.streams, **one.streams}
        whole.leading = {**whole.leading, **one.leading}
        whole.operations = {**whole.operations, **one.operations}
    return whole


def _every(metrics: Iterable[Callable[[], Iterable[Metric]]]) -> Iterator[Metric]:
    for of in metrics:
        yield from of()


def listens(settings: RisSettings) -> list[Listen]:
    """Where HL7 messages come in."""
    return [
        Listen(
            name=one.name,
            host=one.host,
            port=one.port,
            tls_certificate=one.tls_certificate,
            tls_key=one.tls_key,
            tls_client_ca=one.tls_client_ca,
            plain=one.plain,
            sources=one.sources,
        )
        for one in settings.hl7_listeners
    ]


def check(settings: RisSettings) -> list[str]:
    """What must be announced of the settings. Raises ConfigError for those that cannot be."""
    from hounsfield.ris_plugin.hl7.checking import check as check_hl7

    try:
        ZoneInfo(settings.time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigError(
            f"time_zone: there is no zone {settings.time_zone!r}; such as Europe/Vienna"
        ) from None
    _check_accession_format(settings.accession_format)
    root = settings.uid_root
    if root != "2.25" and (
        len(root) > UID_ROOT_CHARACTERS_MAX
        or not all(part.isdecimal() and str(int(part)) == part for part in root.split("."))
    ):
        raise ConfigError(
            f"uid_root: {root!r} is no root of UIDs of at most {UID_ROOT_CHARACTERS_MAX} characters"
        )
    for key, names in (
        ("hl7_listeners", [one.name for one in settings.hl7_listeners]),
        ("hl7_destinations", [one.name for one in settings.hl7_destinations]),
    ):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice or not all(name.strip() for name in names):
            raise ConfigError(f"{key}: each needs a name of its own{''.join(f'; {one!r}' for one in twice)}")
    if not character_set(settings.worklist_character_set.encode("ascii", "replace")).known:
        raise ConfigError("worklist_character_set: no Specific Character Set (PS3.3 C.12.1.1.2)")
    _check_reports(settings)
    files = []
    files += [("hl7_listeners.mapping", one.mapping) for one in settings.hl7_listeners if one.mapping]
    for one in settings.hl7_destinations:
        files += [
            (f"hl7_destinations {one.name!r}", path)
            for path in (one.tls_ca, one.tls_certificate, one.tls_key)
            if path
        ]
        if bool(one.tls_certificate) != bool(one.tls_key):
            raise ConfigError(f"hl7_destinations {one.name!r}: tls_certificate and tls_key are set together")
    for key, path in files:
        if not Path(path).is_file():
            raise ConfigError(f"{key}: no such file: {path}")
    check_hl7(settings)
    if settings.without_token:
        return [f"the RIS takes whoever asks over HTTP without a token for {settings.without_token!r}"]
    return []


def _check_reports(settings: RisSettings) -> None:
    """Raise ConfigError for what every report would fail at."""
    for tag in filter(None, (settings.report_language, *settings.report_words)):
        if not is_tag(tag):
            raise ConfigError(
                f"report_language, report_words: {tag!r} is no tag of RFC 5646, such as de or pt-BR"
            )
    if settings.report_words:
        from hounsfield.ris_plugin.distribution.words import faults

        for tag, words in settings.report_words.items():
            if wrong := faults(words):
                raise ConfigError(f"report_words.{tag}: {wrong[0]}")
    if settings.report_fonts or settings.report_logo:
        from hounsfield.ris_plugin.distribution import printing

        for key, path, is_one in (
            *(("report_fonts", font, printing.is_font) for font in settings.report_fonts),
            ("report_logo", settings.report_logo, printing.is_logo),
        ):
            if path and not Path(path).is_file():
                raise ConfigError(f"{key}: no such file: {path}")
            if path and not is_one(path):
                raise ConfigError(
                    f"{key}: cannot be read as {'a font' if key == 'report_fonts' else 'a picture'}: {path}"
                )


def _check_accession_format(form: str) -> None:
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(form) if name is not None}
        first, later = (form.format(year=2026, year2=26, number=number) for number in (1, 999_999))
    except (ValueError, KeyError, IndexError, AttributeError):
        fields, first, later = set(), "", ""
    if "number" not in fields or not first or len(later) > ACCESSION_CHARACTERS_MAX or "\\" in later:
        raise ConfigError(
            f"accession_format: {form!r} is no format of at most {ACCESSION_CHARACTERS_MAX} characters with "
            "{number}, and {year} or {year2} where wanted"
        )


def command(cli: CommandLine) -> click.Command:
    """``hounsfield ris``."""
    from hounsfield.ris_plugin.cli import command as made

    return made(cli)


plugin: Final = Plugin(
    name="ris",
    summary="The radiology information system: orders, schedule, worklist, reports, HL7.",
    start=start,
    settings=RisSettings,
    services=("worklist", "mpps"),
    listens=listens,
    check=check,
    command=command,
)
