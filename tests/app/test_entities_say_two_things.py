"""What is said of an AE is the same in config.toml, in facts, in the registry and on the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import click
import msgspec
import pytest

from hounsfield.archive.app.ae_registry import AeError, AeRegistry, ae_of_fact, as_dict, checked, remote_ae
from hounsfield.archive.app.plugins import OWN_SERVICES
from hounsfield.archive.cli.ae import command
from hounsfield.archive.config import RemoteAE, load_config
from hounsfield.archive.net.policy import SERVICES, RemoteAe

EVERYTHING: dict[str, Any] = {
    "title": "CT1",
    "host": "192.0.2.10",
    "port": 11112,
    "tls": True,
    "sources": ["192.0.2.10", "192.0.2.0/28"],
    "comment": "ground floor",
    "services": ["echo", "store"],
    "associations_max": 4,
    "refused_sop_classes": ["1.2.3"],
    "refused_transfer_syntaxes": ["1.2.4"],
    "preferred_transfer_syntaxes": ["1.2.6", "1.2.5"],
    "called_title": "THEIRS",
    "calling_title": "OURS",
    "tls_ca": "",
    "tls_crl": "",
    "tls_certificate": "",
    "tls_key": "",
    "certificates": ["ct1.example.org"],
    "identity_required": True,
    "users": ["a", "b"],
    "commitment_to": "CT1_COMMIT",
    "move_associations": 2,
}


class Facts:
    """The facts of one kind."""

    def __init__(self) -> None:
        self.kept: dict[str, Mapping[str, Any]] = {}

    async def state(self, kind: str, /) -> list[Mapping[str, Any]]:
        assert kind == "ae"
        return list(self.kept.values())

    async def commit_fact(self, kind: str, name: str, body: dict[str, Any] | None, at_ns: int, /) -> int:
        assert (kind, at_ns > 0) == ("ae", True)
        if body is None:
            del self.kept[name]
        else:
            self.kept[name] = body
        return len(self.kept)


def test_the_fields_are_the_same_everywhere() -> None:
    fields = [field.name for field in dataclasses.fields(RemoteAe)]
    assert list(EVERYTHING) == fields == list(RemoteAE.__struct_fields__)
    assert remote_ae(RemoteAE(title="A")) == RemoteAe("A")
    assert OWN_SERVICES == SERVICES
    for name in ("add", "set"):
        assert isinstance(command, click.Group)
        options = {each.name for each in command.commands[name].params}
        assert set(fields) - {"host", "port"} <= options
        (service,) = (each for each in command.commands[name].params if each.name == "services")
        assert service.metavar == f"[{'|'.join(SERVICES)}|NAME]"


def test_what_is_said_comes_back() -> None:
    ae = checked(EVERYTHING)
    assert as_dict(ae) == EVERYTHING
    assert ae_of_fact(EVERYTHING) == ae
    assert remote_ae(msgspec.convert(EVERYTHING, RemoteAE)) == ae
    assert len({field.default for field in dataclasses.fields(RemoteAe)[1:]} | {"x"}) > 1
    for field in dataclasses.fields(RemoteAe)[1:]:
        if field.name not in {"tls_ca", "tls_crl", "tls_certificate", "tls_key"}:
            assert getattr(ae, field.name) != field.default, f"{field.name} is not tried here"


def test_facts_of_other_releases_are_read() -> None:
    """The first release's six fields; and a field that only a later one knows."""
    first = {"title": "A", "host": "h", "port": 105, "tls": True, "sources": ["192.0.2.1"], "comment": "c"}
    assert ae_of_fact(first) == RemoteAe("A", "h", 105, True, ("192.0.2.1",), "c")
    assert ae_of_fact({"title": "A", "colour": "red"}) == RemoteAe("A")


async def test_a_changed_field_leaves_the_others() -> None:
    told = 0

    async def changed() -> None:
        nonlocal told
        told += 1

    facts = Facts()
    registry = AeRegistry(facts, map(remote_ae, load_config(None, ['aes=[{title="MR1"}]']).aes), changed)
    await registry.add(**EVERYTHING)
    kept = await registry.set(title="CT1", port=104, users=[])
    assert kept == {**EVERYTHING, "port": 104, "users": []}
    assert await registry.show(title="CT1") == {**kept, "configured": False}
    assert facts.kept == {"CT1": kept}
    assert told == 2
    for title, fields, words in (
        ("MR1", {"port": 1}, "stands in the configuration file"),
        ("CT2", {"port": 1}, "no AE 'CT2' was added"),
        ("CT1", {"port": 0}, "0 is no port to call"),
        ("CT1", {"services": ["print"]}, "there are echo, store, find"),
        ("CT1", {"sources": ["::/0"]}, "lets every address in"),
        ("CT1", {"colour": "red"}, "unknown field"),
    ):
        with pytest.raises(AeError, match=words):
            await registry.set(title=title, **fields)
    assert facts.kept == {"CT1": kept}
    with pytest.raises(AeError, match="no AE 'X' is known"):
        await registry.show(title="X")
