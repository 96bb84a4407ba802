"""Ceph's RADOS gateway with a monitor and one disk of its own, in a directory and without systemd.

Needs Debian's ``ceph-mon ceph-osd ceph-common radosgw`` (16.2 and newer) and the right to run them.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.peers.base import free_port

from support.s3_servers import (
    ACCESS_KEY,
    SECRET_KEY,
    S3Server,
    answers,
    start_program,
    stop_program,
    wait_until,
)

_CONFIGURATION = """
[global]
fsid = {fsid}
mon_host = v1:127.0.0.1:{monitor}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
ms_bind_msgr2 = false
ms_cluster_mode = crc
ms_service_mode = crc
ms_client_mode = crc
ms_mon_client_mode = crc
ms_mon_cluster_mode = crc
ms_mon_service_mode = crc
run_dir = {directory}
admin_socket = {directory}/$name.asok
log_file = {directory}/$name.log
pid_file =
crash_dir = {directory}/crash
mon_data = {directory}/mon
mon_allow_pool_size_one = true
mon_allow_pool_delete = true
mon_data_avail_crit = 1
mon_data_avail_warn = 2
mon_max_pg_per_osd = 2000
osd_data = {directory}/osd
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
osd_crush_update_on_start = true
osd_objectstore = bluestore
osd_memory_target = 939524096
bluestore_block_create = true
bluestore_block_size = 8589934592
rgw_frontends = beast endpoint=127.0.0.1:{gateway} tcp_nodelay=1
rgw_data = {directory}/rgw
rgw_enable_usage_log = false
rgw_lc_debug_interval = -1
"""


@contextmanager
def ceph() -> Iterator[S3Server]:
    """A gateway that answers, with an empty bucket (15 to 30 s)."""
    directory = Path(tempfile.mkdtemp(prefix="hounsfield-ceph-", dir="/var/tmp"))
    server = S3Server("Ceph", free_port(), directory)
    try:
        with ExitStack() as stack:
            _start(directory, server, stack)
            yield server
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _start(directory: Path, server: S3Server, stack: ExitStack) -> None:
    cluster, monitor = str(uuid.uuid4()), free_port()
    configuration = directory / "ceph.conf"
    configuration.write_text(
        _CONFIGURATION.format(fsid=cluster, directory=directory, monitor=monitor, gateway=server.port)
    )
    for name in ("mon", "osd", "rgw", "crash"):
        (directory / name).mkdir()
    (directory / "keys").write_text(f"{ACCESS_KEY}:{SECRET_KEY}\n")
    common = ["-c", str(configuration)]
    monitors = directory / "monmap"
    _run(
        "monmaptool", "--create", "--fsid", cluster, "--addv", "a", f"[v1:127.0.0.1:{monitor}]", str(monitors)
    )
    _run("ceph-mon", *common, "--mkfs", "-i", "a", "--monmap", str(monitors))
    _program(stack, directory, "ceph-mon", *common, "-f", "-i", "a")
    ask = ["ceph", *common, "--connect-timeout", "30"]
    disk = str(uuid.uuid4())
    number = _run(*ask, "osd", "new", disk).strip()
    _run("ceph-osd", *common, "-i", number, "--mkfs", "--osd-uuid", disk)
    store = _program(stack, directory, "ceph-osd", *common, "-f", "-i", number)
    # A gateway that finds no disk may wait for one for ever.
    up = [*ask, "osd", "stat", "--format=json"]
    wait_until(lambda: json.loads(_run(*up))["num_up_osds"] == 1, store, directory / f"osd.{number}.log")
    gateway = _program(stack, directory, "radosgw", *common, "-f", "-n", "client.rgw")
    wait_until(lambda: answers(server.endpoint), gateway, directory / "client.rgw.log")
    keys = [f"--access-key={ACCESS_KEY}", f"--secret-key={SECRET_KEY}"]
    made = _run("radosgw-admin", *common, "user", "create", "--uid=tests", "--display-name=tests", *keys)
    assert json.loads(made)["user_id"] == "tests"
    server.make_bucket()


def _program(stack: ExitStack, directory: Path, *command: str) -> subprocess.Popen[bytes]:
    process = start_program(list(command), directory / f"{command[0]}.out")
    stack.callback(_stop, process)
    return process


def _stop(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        stop_program(process)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
    return done.stdout
