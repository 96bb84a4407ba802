"""Many threads may be the first to decode a kind of row: none of them crashes the process."""

from __future__ import annotations

import subprocess
import sys

ROUNDS = 40

SCRIPT = """
import sys, threading
import msgspec
from hounsfield.archive.index import rows

sys.setswitchinterval(1e-6)

def round_of_threads(number):
    name = f"Row{number}"
    source = "from __future__ import annotations\\nimport msgspec\\n"
    for depth in range(8):
        inner = f"Part{depth - 1}" if depth else "int"
        source += f"class Part{depth}(msgspec.Struct, array_like=True):\\n"
        source += f"    a: {inner}\\n    b: dict[int, str]\\n"
    module = type(sys)(name)
    sys.modules[name] = module
    exec(source, module.__dict__)
    kind = module.Part7
    value = 1
    for _ in range(8):
        value = [value, {1: "x"}]
    data = msgspec.msgpack.encode(value)
    ready = threading.Barrier(6)
    failures = []

    def first():
        ready.wait()
        try:
            rows.decode(kind, data)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=first) for _ in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    if failures:
        raise failures[0]

for number in range(int(sys.argv[1])):
    round_of_threads(number)
"""


def test_the_first_decodings_of_a_kind_may_coincide() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(ROUNDS)], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
