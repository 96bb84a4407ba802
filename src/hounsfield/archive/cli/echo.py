"""``hounsfield echo``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from hounsfield.archive.cli.options import config_options, effective_config, json_option
from hounsfield.archive.cli.output import EXIT_FAILED, EXIT_UNREACHABLE, Failed, print_json, remark
from hounsfield.archive.cli.remote import remote_options, resolve


@click.command(
    "echo",
    epilog="""\b
Examples:
  hounsfield echo localhost:11112
  hounsfield echo PACS@192.0.2.10:104
  hounsfield echo WORKSTATION --json""",
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
    import trio

    from hounsfield.archive.net.errors import ConnectError, NetError
    from hounsfield.archive.net.scu import VERIFICATION_CONTEXT, ScuLimits, associate

    remote = resolve(target, effective_config(config_file, overrides, data), **remote_words)
    limits = ScuLimits(connect_s=min(timeout, ScuLimits().connect_s), associate_s=timeout, response_s=timeout)

    async def ask() -> tuple[int, float, str]:
        began = time.perf_counter()
        async with associate(remote, [VERIFICATION_CONTEXT], limits) as association:
            response = await association.echo()
            accept = association.accept
            version = accept.user.implementation_version if accept else ""
            return response.status, time.perf_counter() - began, version

    try:
        status, seconds, version = trio.run(ask)
    except ConnectError as error:
        raise Failed(str(error), EXIT_UNREACHABLE) from error
    except NetError as error:
        raise Failed(str(error)) from error
    if as_json:
        print_json(
            {
                "target": str(remote),
                "status": status,
                "milliseconds": round(seconds * 1000, 2),
                "implementation": version,
            }
        )
    else:
        said = "is there" if status == 0 else f"answers with status {status:04X}H"
        remark(f"{remote} {said} ({seconds * 1000:.1f} ms{', ' + version if version else ''})")
    return 0 if status == 0 else EXIT_FAILED
