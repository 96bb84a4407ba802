"""The root key in every tier, brought there at once when another key opens it (docs/decisions/0025-tiers.md).

Whoever has lost the data directory needs a tier and the master key of today. What is away now gets it from
the server, which looks once a minute.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hounsfield.archive.app.keys import data_path
from hounsfield.archive.app.tier_options import tiering_options
from hounsfield.archive.config import Config
from hounsfield.archive.engine.tiers import TierOptions, name_of, open_place
from hounsfield.archive.index.tier_notes import ROOT_KEY, read_small
from hounsfield.storage_backends.errors import StorageError
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.object_store import TierMarkerMissingError, claim_tier
from hounsfield.storage_backends.tier_holder import TierHeldError, hold_tier

CURRENT: Final = "current"
FORMER: Final = "former"
UNUSED: Final = "unused"
AWAY: Final = "away"
HELD: Final = "held"


@dataclass(frozen=True, slots=True)
class TierRoot:
    """Whether a tier has the root key as it is wrapped now, has it as it was, or has none; or cannot say."""

    tier: str
    state: str
    why: str = ""

    def text(self) -> str:
        """In words."""
        said = {
            CURRENT: "has the root key as it is wrapped now",
            FORMER: "has the root key as it was wrapped before: only the keys of then open it there. The "
            "server puts that right within a minute",
            UNUSED: "was not used yet, and has none",
            HELD: "has it not, and is not to have it from here",
            AWAY: "has it not, as far as can be seen; the server puts it there when the tier answers",
        }[self.state]
        return f"tier {self.tier} {said}{f': {self.why}' if self.why else ''}"


def tier_roots(config: Config, keyring: Keyring, *, put: bool) -> list[TierRoot]:
    """How it is in each configured tier; ``put``: after it was put where it is not as it should be.

    Each tier is asked once, without patience; none that does not answer raises.
    """
    data = data_path(config)
    tiers = tiering_options(config, workers=1).tiers
    return [_one(options, keyring, data if put else None) for options in tiers]


def _one(options: TierOptions, keyring: Keyring, data: Path | None) -> TierRoot:
    """``data``: the data directory that it is put from; None: only looked at."""
    name, root = options.name, keyring.wrapped_root()
    store = open_place(options)
    try:
        claim_tier(store, keyring.root_id, first_time=False, name=name)
        found = read_small(store, ROOT_KEY)
        if found is None:
            return TierRoot(name, UNUSED)
        if found != root and data is not None:
            hold_tier(store, name_of(data, keyring.root_id), name)
            store.put(ROOT_KEY, [root], len(root))
            found = read_small(store, ROOT_KEY)
        return TierRoot(name, CURRENT if found == root else FORMER)
    except TierMarkerMissingError:
        return TierRoot(name, UNUSED, "it bears no mark; if it was used, its disk is not mounted")
    except TierHeldError as error:
        return TierRoot(name, HELD, str(error))
    except (StorageError, OSError) as error:
        return TierRoot(name, AWAY, str(error))
    finally:
        store.close()
