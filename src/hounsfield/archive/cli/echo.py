"""``hounsfield echo``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hounsfield.archive.cli.conversation import converse, limits_for
from hounsfield.archive.cli.options import config_options, effective_config, json_option
from hounsfield.archive.cli.output import EXIT_FAILED, print_json, printable, remark
from hounsfield.archive.cli.remote import remote_options, resolve

if TYPE_CHECKING:
    from hounsfield.archive.wire import AssociateAccept


@click.command(
    "echo",
    epilog="""\b
Examples:
  hounsfield echo localhost:11112
  hounsfield echo PACS@192.0.2.10:104
  hounsfield echo WORKSTATION --json
  hounsfield echo PACS --tls-ca hospital.pem --user jane --passcode ask""",
)
@click.argument("target")
@remote_options
@config_options
@json_option
def command(
    *,
    target: str,
    timeout: float,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
    **remote_words: Any,
) -> int:
    """Ask an application entity whether it is there (C-ECHO), and say how long it took.

    TARGET is [AE@]HOST:PORT, or the title of an AE in config.toml or from `hounsfield ae add`. Without AE@
    the other side is called by our own title (archive.ae_title). Exit code 3: nobody there.
    """
    from hounsfield.archive.net.scu import VERIFICATION_CONTEXT, associate

    remote = resolve(target, effective_config(config_file, overrides, data), **remote_words)

    async def ask() -> tuple[int, float, AssociateAccept | None]:
        began = time.perf_counter()
        async with associate(remote, [VERIFICATION_CONTEXT], limits_for(timeout)) as association:
            response = await association.echo()
            return response.status, time.perf_counter() - began, association.accept

    status, seconds, accept = converse(ask)
    version = printable(accept.user.implementation_version) if accept else ""
    # PS3.7 D.3.3.7.2: who verifies nobody's identity does not answer the item either
    acknowledged = accept is not None and accept.user.identity_response is not None
    if as_json:
        body: dict[str, Any] = {
            "target": str(remote),
            "status": status,
            "milliseconds": round(seconds * 1000, 2),
            "implementation": version,
        }
        if remote.identity is not None:
            body["identity_acknowledged"] = acknowledged
        print_json(body)
    else:
        said = "is there" if status == 0 else f"answers with status {status:04X}H"
        remark(f"{remote} {said} ({seconds * 1000:.1f} ms{', ' + version if version else ''})")
        if remote.identity is not None:
            remark(f"it {'verified' if acknowledged else 'did not say that it verified'} our user")
    return 0 if status == 0 else EXIT_FAILED
