"""End a socket server, and with it all its clients: ``quitserver.py host:port``.

Runs standing alone, from Python 2.7 on, so its types are in comments.  Start at ``main``.
"""

import argparse
import socket
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Optional  # noqa: F401 - in comments

WAIT_S = 15  # a server ends within that time


def connect(address):
    # type: (str) -> socket.socket
    """Return a connection to "host:port", "[IPv6 host]:port" or "unix:/path"."""
    if not address.startswith("unix:"):
        host, _, port = address.rpartition(":")
        return socket.create_connection((host.strip("[]") or "127.0.0.1", int(port)), WAIT_S)
    conn = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        conn.settimeout(WAIT_S)
        conn.connect(address[5:])
    except BaseException:
        conn.close()
        raise
    return conn


def quit_server(address):
    # type: (str) -> None
    """Have the server there end; EnvironmentError if there is none or it does not answer."""
    conn = connect(address)
    try:
        conn.sendall(b"\0quit\n")
        data = answer = conn.recv(100)
        while data:  # its end comes when another server could listen there
            data = conn.recv(100)
            answer += data
        if answer != b"ending\n":
            raise EnvironmentError("what listens there is no socket server")
    finally:
        conn.close()


def main(args=None):
    # type: (Optional[List[str]]) -> None
    """End the server that the command line names."""
    parser = argparse.ArgumentParser(
        description="End a socket server, and the interpreters that it has started."
    )
    explained = "[host]:port or unix:/path; default %(default)s"
    parser.add_argument("address", nargs="?", default=":8888", help=explained)
    address = parser.parse_args(args).address
    try:
        quit_server(address)
    except (ValueError, EnvironmentError) as exc:
        sys.exit("can't end the server at %s: %s" % (address, exc))


if __name__ == "__main__":
    main()
