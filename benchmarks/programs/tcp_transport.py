"""An int's pickle, made beforehand, to a bare interpreter and back by TCP; microseconds."""

from __future__ import annotations

import pickle
import socket
import subprocess
import sys

import _items
from _measure import Result, Scaled, main, microseconds, time_each

ECHO = """
import socket, sys
conn = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
while data := conn.recv(65536):
    conn.send(data)
"""


def measure(scaled: Scaled, _: str) -> Result:
    item, count = _items.round_trips("int")
    data = pickle.dumps(item, 4)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-c", ECHO, str(listener.getsockname()[1])]
        process = subprocess.Popen(command)
        conn, _address = listener.accept()
    conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def round_trip() -> bytes:
        conn.send(data)
        return conn.recv(65536)

    if round_trip() != data:
        raise ValueError("another item came back")
    samples = time_each(round_trip, scaled(count), warm_up=scaled(count // 10))
    conn.close()
    process.wait()
    return microseconds(samples)


if __name__ == "__main__":
    main(measure)
