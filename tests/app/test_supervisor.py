"""The processes: a dead worker is replaced, a signal drains, one server per directory, no key in the open."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from hounsfield.archive.app.asking import ask
from hounsfield.archive.errors import ControlError, NoServerError


def until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """Ask until the answer is true; the bound only ends a hopeless wait."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, "it never became true"
        time.sleep(0.02)
    return answer


def connect(address: tuple[str, int]) -> tuple[socket.socket, int, int]:
    """A connection, and the worker and process that took it."""
    sock = socket.create_connection(address, timeout=30)
    worker, pid = sock.makefile("r").readline().split()
    return sock, int(worker), int(pid)


def test_ports_that_the_kernel_chose_are_reported_and_inherited(start_server: Any) -> None:
    server = start_server()
    pids = {each["pid"] for each in server.ask("status")["workers"]}
    for kind in ("dicom", "http"):
        sock, _, pid = connect(server.address(kind))
        sock.close()
        assert pid in pids
    assert server.stop() == 0


def test_connections_spread_over_workers(start_server: Any) -> None:
    server = start_server()
    with contextlib.ExitStack() as stack:
        taken = set()
        for _ in range(200):
            sock, worker, _ = connect(server.address("http"))
            stack.callback(sock.close)
            taken.add(worker)
            if len(taken) == 2:
                break
    assert taken == {0, 1}


def test_a_killed_worker_is_replaced_and_its_gauges_do_not_stay(start_server: Any) -> None:
    server = start_server()
    sock, worker, pid = connect(server.address("http"))
    totals = until(lambda: (t := server.ask("status")["totals"])["worker_connections"] == 1 and t)
    assert totals["http_requests_total"] == 1
    os.kill(pid, signal.SIGKILL)
    again = until(
        lambda: (w := server.ask("status")["workers"][worker])["restarts"] == 1 and w["ready"] and w
    )
    sock.close()
    assert again["pid"] != pid
    totals = server.ask("status")["totals"]
    assert totals["worker_connections"] == 0
    assert totals["http_requests_total"] == 1, "a counter outlives its worker"
    assert totals["worker_ready"] == 2
    assert any(event["event"] == "a worker ended; starting another" for event in server.events())


def test_a_worker_that_is_killed_at_its_start_is_replaced_when_another_serves_already(
    start_server: Any,
) -> None:
    """That the archive opens was seen: no reason to take it from those whom the other one serves."""
    server = start_server('archive.ae_title="DIES"')
    workers = server.ask("status")["workers"]
    assert [worker["restarts"] for worker in workers] == [0, 1]
    assert server.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_what_is_under_way_finish(start_server: Any, number: int) -> None:
    server = start_server()
    sock, _, pid = connect(server.address("http"))
    server.process.send_signal(number)
    until(lambda: server.ask("status")["state"] == "draining")
    with pytest.raises(OSError):
        until(lambda: socket.create_connection(server.address("http"), timeout=5).close())
    assert psutil.pid_exists(pid), "the worker waits for its connection"
    sock.sendall(b"still here")
    sock.close()
    assert server.process.wait(60) == 0


def test_draining_is_bounded(start_server: Any) -> None:
    server = start_server("archive.drain_seconds=0.2")
    sock, _, _ = connect(server.address("http"))
    assert server.stop() == 0
    assert any(event["event"].startswith("connections were cut") for event in server.events())
    sock.close()


def test_a_second_signal_stops_at_once(start_server: Any) -> None:
    server = start_server("archive.drain_seconds=3600")
    sock, _, _ = connect(server.address("http"))
    server.process.send_signal(signal.SIGTERM)
    until(lambda: server.ask("status")["state"] == "draining")
    assert server.stop() == 0
    sock.close()


def test_a_second_server_is_refused(start_server: Any) -> None:
    server = start_server(workers=1)
    second = start_server(workers=1, data=server.data)
    assert (
        f"another Hounsfield (process {server.process.pid}) is running on {server.data}"
        in second.ready["error"]
    )
    assert second.process.wait(60) == 1
    assert server.ask("status")["state"] == "serving"


def test_workers_leave_with_a_killed_supervisor_and_then_the_directory_is_free(start_server: Any) -> None:
    server = start_server("archive.drain_seconds=0.2")
    workers = [psutil.Process(each["pid"]) for each in server.ask("status")["workers"]]
    server.process.kill()
    server.process.wait(60)
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    again = start_server(data=server.data)
    assert again.ask("status")["state"] == "serving"


def test_the_key_is_in_no_environment_and_on_no_command_line(start_server: Any, tmp_path: Path) -> None:
    server = start_server()
    (key_file,) = (tmp_path / "state").rglob("*.key")
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert not key_file.is_relative_to(server.data)
    key = bytes.fromhex(key_file.read_text())
    assert server.ask("whoami")["key_bytes"] == len(key), "the worker has it all the same"
    for process in [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children()]:
        for name in ("environ", "cmdline"):
            shown = Path(f"/proc/{process.pid}/{name}").read_bytes()
            assert key not in shown
            assert key.hex().encode() not in shown.lower()


def test_a_key_from_the_environment_is_not_handed_down(
    start_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = bytes(range(32)).hex()
    monkeypatch.setenv("THE_KEY", key)
    server = start_server("keys.master_key=env:THE_KEY")
    workers = psutil.Process(server.process.pid).children()
    assert workers
    for worker in workers:
        shown = Path(f"/proc/{worker.pid}/environ").read_bytes()
        assert b"PATH=" in shown
        assert key.encode() not in shown


def test_a_worker_that_cannot_start_ends_the_start_with_its_reason(start_server: Any) -> None:
    server = start_server("archive.ae_title=FAIL")
    assert server.ready == {"error": "the archive could not start: the stub was told to fail"}
    assert server.process.wait(60) == 1
    with pytest.raises(NoServerError):
        server.ask("status")


def test_a_long_recovery_is_waited_for_and_mentioned(
    start_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a reindex of millions that was killed: giving up would begin it anew, for ever."""
    monkeypatch.setenv("SUPERVISOR_LIMITS", '{"ready_seconds_max": 1.5, "recovery_note_seconds": 0.5}')
    server = start_server("archive.ae_title=LONG")
    assert "error" not in server.ready
    assert any("still being opened" in event["event"] for event in server.events())
    assert server.stop() == 0


def test_a_worker_that_is_not_ready_in_time_ends_the_start(
    start_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUPERVISOR_LIMITS", '{"ready_seconds_max": 0.2}')
    server = start_server("archive.ae_title=STUCK")
    assert "not every worker was ready" in server.ready["error"]
    assert server.process.wait(60) == 1


def test_an_address_in_use_is_one_clear_error(start_server: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = start_server(f"dicom.listeners=[{{port={port}}}]")
    assert (
        f"dicom.listeners[0] (127.0.0.1:{port}): something else listens there already"
        in server.ready["error"]
    )


def test_the_control_socket_is_the_owners_alone(start_server: Any) -> None:
    server = start_server(workers=1)
    assert (server.data / "control.sock").stat().st_mode & 0o777 == 0o600
    assert server.data.stat().st_mode & 0o777 == 0o700
    server.stop()
    assert not (server.data / "control.sock").exists()


def test_questions_reach_a_worker_and_errors_come_back(start_server: Any) -> None:
    server = start_server()
    assert server.ask("whoami")["ae"] == "HOUNSFIELD"
    with pytest.raises(ControlError, match="asked to fail"):
        server.ask("fail")
    with pytest.raises(ControlError, match="does not know 'nonsense'"):
        server.ask("nonsense")
    with pytest.raises(ControlError, match="failed on this request"):
        server.ask("status", surplus=1)
    assert server.ask("status")["state"] == "serving"


def test_who_called_is_remembered(start_server: Any) -> None:
    server = start_server()
    server.ask("call")
    server.ask("call")
    (row,) = until(lambda: [r for r in server.ask("ae-recent") if r["count"] == 2])
    assert (row["calling_ae"], row["outcome"], row["reason"]) == ("CT1", "refused", "title")


def test_a_ring_wakes_the_other_workers_only(start_server: Any) -> None:
    server = start_server(workers=3)
    server.ask("ring")
    assert until(lambda: (n := server.ask("status")["totals"]["commits_total"]) >= 2 and n) == 2


def test_sighup_loads_tokens_anew_and_a_bad_file_changes_nothing(start_server: Any, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("first:a-token-that-is-long-enough\n")
    tokens.chmod(0o600)
    server = start_server(f"http.bearer_token_file={tokens}", workers=1)
    assert server.ask("tokens") == []
    tokens.write_text("second:a-token-that-is-long-enough\n")
    server.process.send_signal(signal.SIGHUP)
    until(lambda: server.ask("tokens") == ["second:a-token-that-is-long-enough"])
    tokens.write_text("third:short\n")
    with pytest.raises(ControlError, match="a token is 16 or more"):
        server.ask("reload")
    assert any(event["event"] == "loaded AE lists, certificates and tokens anew" for event in server.events())
    assert server.process.poll() is None


def test_a_data_directory_of_a_long_name_has_a_control_socket_too(start_server: Any, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    start_server(workers=1, data=deep)
    assert ask(deep / "control.sock", "status")["state"] == "serving"
