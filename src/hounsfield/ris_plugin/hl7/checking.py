"""What is wrong with the settings of interfaces, before anything runs."""

from __future__ import annotations

from typing import Final

from hounsfield.archive.errors import ConfigError
from hounsfield.ris_plugin.hl7.encoding import codec_of
from hounsfield.ris_plugin.hl7.mapping import Place, load
from hounsfield.ris_plugin.settings import RisSettings

__all__ = ["check"]

SENDS: Final = frozenset({"ORU", "ORM", "OMG", "SIU"})
PROCESSING: Final = frozenset({"P", "T", "D"})
"""Table 0103."""


def check(settings: RisSettings) -> None:
    """Raises ConfigError for what cannot be."""
    for one in settings.hl7_listeners:
        if one.character_set and codec_of(one.character_set) is None:
            raise ConfigError(f"hl7_listeners {one.name!r}: character_set is none of HL7's table 0211")
        if set(one.processing) - PROCESSING or not one.processing:
            raise ConfigError(f"hl7_listeners {one.name!r}: processing has one or more of P, T, D")
        if one.accession_in:
            try:
                Place.parse(one.accession_in)
            except ValueError as error:
                raise ConfigError(f"hl7_listeners {one.name!r}: accession_in: {error}") from error
        load(one.mapping)
    for to in settings.hl7_destinations:
        if codec_of(to.character_set) is None:
            raise ConfigError(f"hl7_destinations {to.name!r}: character_set is none of HL7's table 0211")
        if unknown := sorted(set(to.sends) - SENDS):
            raise ConfigError(
                f"hl7_destinations {to.name!r}: {unknown[0]!r} is not sent, but {', '.join(sorted(SENDS))}"
            )
