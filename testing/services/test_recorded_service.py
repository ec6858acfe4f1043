"""A service of an earlier execnet, as it was recorded: programs go on using it.

If this fails, what services and programs say to each other has changed: then ``PROTOCOL`` in
``_service.far_find`` has to be another number, so that services of both run side by side.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools import BOUND_S, MakeGateway

from execnet._service import far_find

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no services there")

# Frames of version 3.0.0, protocol 1.
GREETING = bytes.fromhex(
    "0800000000000000d64a4e00000007736572766963654e00000004776f726b504e00000004706f72"
    "744c504e0000000870726f746f636f6c4600000001504e0000000776657273696f6e4e0000000533"
    "2e302e30504e00000006707974686f6e4e00000009707974686f6e332e38504e0000000a65786563"
    "757461626c654e000000122f7573722f62696e2f707974686f6e332e38504e0000000c7665727369"
    "6f6e5f696e666f46000000034600000008460000000a4000000003504e0000000370696446000012"
    "67504e0000000573696e63654441dac332400000005051"
)
HELLO = bytes.fromhex(
    "08000000000000010f4a4e0000000a65786563757461626c654e000000122f7573722f62696e2f70"
    "7974686f6e332e38504e0000000c76657273696f6e5f696e666f4600000003460000000846000000"
    "0a4e0000000566696e616c46000000004000000005504e00000008706c6174666f726d4e00000005"
    "6c696e7578504e000000036377644e000000052f726f6f74504e000000037069644600001267504e"
    "0000000e696d706c656d656e746174696f6e4e0000000763707974686f6e504e00000006636f6465"
    "63734e00000007636c61737369634e00000004666173744000000002504e00000008666561747572"
    "65734e0000001f676f6f6462796520737461636b73206865617274626561742077696e646f775051"
)
Requests = list["dict[str, object]"]


def serve(listener: socket.socket, requests: Requests) -> None:
    """Greet two programs, the second of which gets a worker that ends when it is told to."""
    for _ in range(2):
        conn, _ = listener.accept()
        with conn:
            conn.sendall(GREETING)
            request = far_find.read_dict(conn, far_find.clock() + BOUND_S)
            requests.append(request)
            options = request["options"]
            conn.sendall(options["marker"] + HELLO)
            while conn.recv(4096):
                pass


@pytest.fixture
def requests(home: Path) -> Iterator[Requests]:
    folder = Path(
        far_find.services_folder(),
        far_find.key_of(
            "work", [sys.executable, "-u", "-c", "import sys;exec(eval(sys.stdin.readline()))"]
        ),
    )
    far_find.be_private(str(folder))
    lock = far_find.try_lock(str(folder))
    found: Requests = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
        listener.listen()
        thread = threading.Thread(target=serve, args=(listener, found))
        thread.start()
        yield found
        thread.join(BOUND_S)
    os.close(lock)


def test_a_program_uses_a_service_of_version_3_0(
    requests: Requests, makegateway: MakeGateway
) -> None:
    for spec in "socketservice=work", "socketservice=work//one_at_a_time=yes//idle=60":
        gateway = makegateway(spec)
        assert gateway._rinfo().version_info[:2] == (3, 8)
        gateway._io.kill()
    first, second = requests
    assert first["ask"] == second["ask"] == "gateway"
    assert (first["one_at_a_time"], second["one_at_a_time"]) == (False, True)
    assert (first["idle"], second["idle"]) == (None, 60.0)
    known = {"id", "marker", "codecs", "grace"}  # all that it looks at of these
    assert known <= set(first["options"])  # type: ignore[call-overload]
