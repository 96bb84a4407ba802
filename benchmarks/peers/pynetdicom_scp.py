"""pynetdicom as an acceptor, as its documentation shows it: the raw data set bytes go into a file.

python -m benchmarks.peers.pynetdicom_scp --directory D [--port 0]
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path
from typing import Any


def main() -> None:
    """Serves until SIGTERM; prints `ready PORT`."""
    from pynetdicom import AE, AllStoragePresentationContexts, evt

    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.pynetdicom_scp", description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--max-pdu", type=int, default=262_144)
    parser.add_argument(
        "--status", type=lambda text: int(text, 16), default=0, help="answer with this status (hex)"
    )
    arguments = parser.parse_args()

    def store(event: Any) -> int:
        name = str(event.request.AffectedSOPInstanceUID)
        (arguments.directory / name).write_bytes(event.request.DataSet.getvalue())
        return int(arguments.status)

    entity = AE(ae_title="PYNETDICOM")
    entity.supported_contexts = AllStoragePresentationContexts
    entity.maximum_pdu_size = arguments.max_pdu
    entity.maximum_associations = 100
    server = entity.start_server(
        ("127.0.0.1", arguments.port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)]
    )
    assert server and server.socket
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    print(f"ready {server.socket.getsockname()[1]}", flush=True)
    stopped.wait()
    server.shutdown()
    sys.exit(0)


if __name__ == "__main__":
    main()
