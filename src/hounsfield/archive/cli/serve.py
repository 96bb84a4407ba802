"""``hounsfield serve``."""

from __future__ import annotations

import json
import os
import secrets
import sys
from pathlib import Path
from typing import Any

import click

from hounsfield.archive.cli.options import config_options, effective_config, split_address
from hounsfield.archive.cli.output import remark


@click.command(
    "serve",
    epilog="""\b
Examples:
  hounsfield serve --data ./archive
  hounsfield serve --data ./archive --dicom 127.0.0.1:0 --http 127.0.0.1:0 --ready-fd 3 3>ready.json
  hounsfield serve --config /etc/hounsfield/config.toml

SIGTERM or Ctrl-C lets what is under way finish (archive.drain_seconds); a second one stops at once.
SIGHUP reads AE lists, certificates and tokens anew.""",
)
@config_options
@click.option(
    "--dicom", "dicom", metavar="HOST:PORT", multiple=True, help="Listen here for DICOM. Repeatable."
)
@click.option("--http", "http", metavar="HOST:PORT", multiple=True, help="Listen here for HTTP. Repeatable.")
@click.option("--workers", type=click.IntRange(min=0), help="Processes that serve; 0: one per core.")
@click.option(
    "--ready-fd", type=int, metavar="N", help="Write a line of JSON to this descriptor once serving."
)
def command(
    *,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    dicom: tuple[str, ...],
    http: tuple[str, ...],
    workers: int | None,
    ready_fd: int | None,
) -> int:
    """Run the archive in the foreground: DICOM and DICOMweb over one data directory.

    An empty data directory is initialised. Without keys.master_key a development key is made outside
    of it, and only loopback is listened on. Port 0 takes any free port; the line on standard error,
    --ready-fd and `hounsfield status` say which.
    """
    import trio

    from hounsfield.archive.app.logs import set_up_logs
    from hounsfield.archive.app.supervisor import Supervisor, ready_line

    extra: list[str] = []
    for name, addresses in (("dicom", dicom), ("http", http)):
        if addresses:
            extra.append(f"{name}.listeners={_listeners(addresses)}")
    if workers is not None:
        extra.append(f"archive.workers={workers}")

    def load() -> Any:
        return effective_config(config_file, overrides, data, tuple(extra), plugins=True)

    config = load()
    set_up_logs(level=config.logs.level, form=config.logs.format, salt=secrets.token_bytes(32))

    def on_ready(status: dict[str, Any]) -> None:
        if supervisor.recovery_key and sys.stderr.isatty():
            remark(
                f"\nRecovery key, shown once; keep it where neither this machine nor its backups are:\n"
                f"    {supervisor.recovery_key}\n"
            )
        for each in status["listeners"]:
            host = f"[{each['host']}]" if ":" in each["host"] else each["host"]
            if each["kind"] == "http":
                scheme = "https" if each["tls"] else "http"
                remark(f"DICOMweb  {scheme}://{host}:{each['port']}/dicom-web")
            elif each["kind"] != "dicom":
                remark(f"{each['kind']:<9} {host}:{each['port']}{' (TLS)' if each['tls'] else ''}")
            else:
                remark(
                    f"DICOM     {status['ae_title']}@{host}:{each['port']}{' (TLS)' if each['tls'] else ''}"
                )
        if ready_fd is not None:
            with os.fdopen(ready_fd, "w") as file:
                file.write(ready_line(status))

    supervisor = Supervisor(config, reload_config=load, on_ready=on_ready)
    trio.run(supervisor.run)
    return 0


def _listeners(addresses: tuple[str, ...]) -> str:
    """The addresses as a TOML array of inline tables."""
    pairs = [split_address(address) for address in addresses]
    return "[" + ", ".join(f"{{host = {json.dumps(host)}, port = {port}}}" for host, port in pairs) + "]"
