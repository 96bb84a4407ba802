"""The department in which the day is played: docs/ris-example.yaml, and who may say so.

Settings are those of a site that begins: one HL7 listener, one destination, bearer tokens by name.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any, Final, Protocol

from benchmarks.day_peers import ISSUER

ROOT: Final = Path(__file__).resolve().parent.parent
FILES: Final = (ROOT / "docs" / "ris-example.yaml", ROOT / "benchmarks" / "department.yaml")
PROCEDURE: Final = "CTHEADC^CT of the head with contrast^99DEPT"
PLAIN: Final = "CTHEAD^CT of the head without contrast^99DEPT"
"""Done as it is ordered: nobody has to say how, or to ask first."""
APART_MIN: Final = 30
"""Two of them on one device do not touch, with buffers and cleaning."""
PEOPLE: Final = {
    "clerk": "novak", "technologist": "novak", "radiologist": "weiss", "trainee": "adler",
    "administrator": "admin",
}  # fmt: skip
"""Whose token is used for what a role does."""


class Ask(Protocol):
    """Asks the running server, as commands do."""

    def __call__(self, operation: str, **arguments: Any) -> Any: ...


def tokens_file(path: Path) -> dict[str, str]:
    """Write a file of bearer tokens, one for each of the people; the tokens by role."""
    tokens = {code: secrets.token_hex(24) for code in PEOPLE.values()}
    path.touch(0o600)
    path.write_text("".join(f"{code}:{token}\n" for code, token in tokens.items()))
    return {role: tokens[code] for role, code in PEOPLE.items()}


def settings(tokens: Path, receiver_port: int) -> tuple[str, ...]:
    """As ``--set`` takes them."""
    return (
        f"http.bearer_token_file={tokens}",
        "storage.study_stable_seconds=2",
        'plugins.ris.institution="St. Hounsfield Hospital"',
        'plugins.ris.address="1 Ray Street"',
        f"plugins.ris.issuer={ISSUER}",
        f'plugins.ris.hl7_listeners=[{{name="his", port=0, issuer="{ISSUER}"}}]',
        f'plugins.ris.hl7_destinations=[{{name="epr", host="127.0.0.1", port={receiver_port}}}]',
        "plugins.ris.hl7_retry_seconds=0.5",
    )


def furnish(ask: Ask) -> str:
    """Import what the department offers, with what, and who works there; what was imported."""
    files = [{"name": path.name, "text": path.read_text()} for path in FILES]
    sections = ask("ris.import", user="demo", files=files)["sections"]
    return ", ".join(f"{one['add']} {one['section']}" for one in sections if one["add"])
