"""End a socket server, and with it all its clients: ``quitserver.py host:port``.

Runs standing alone, from Python 2.7 on, so its types are in comments.  Start at ``main``.
"""

import argparse
import socket
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Optional  # noqa: F401 - in comments

WAIT_S = 15  # a server ends within that time
ANSWER_S = 3  # and answers at once
QUIT, ENDING = b"\0quit\n", b"ending\n"  # what our servers are sent, and what they answer
QUIT_RELEASED = b'"raise KeyboardInterrupt"\n'  # what those of execnet 1 and 2 execute


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
    answer = _ask(address, QUIT)
    if answer == ENDING:
        return
    if answer or not _ends_as_released(address):
        raise EnvironmentError("what listens there is no socket server")


def _ask(address, line):
    # type: (str, bytes) -> bytes
    """Return what is answered to a line, to the end of the connection; b"" for no answer."""
    conn = connect(address)
    try:
        conn.settimeout(ANSWER_S)
        try:
            conn.sendall(line)
            data = answer = conn.recv(100)
        except EnvironmentError:
            return b""
        conn.settimeout(WAIT_S)
        while data:  # its end comes when another server could listen there
            data = conn.recv(100)
            answer += data
        return answer
    finally:
        conn.close()


def _ends_as_released(address):
    # type: (str) -> bool
    """Whether a server ends that executes what it is sent, as those of execnet 1 and 2 do."""
    try:
        _ask(address, QUIT_RELEASED)
        for _ in range(20):
            connect(address).close()
            time.sleep(0.1)
    except EnvironmentError:  # it has ended
        return True
    return False


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
