"""End a socket server and all its clients: ``quitserver.py host:port``.

It needs ``socketserver.py`` in the same folder, but no execnet.  It runs from Python 2.7 on, so its
types are in comments.  Start at ``main``.
"""

import argparse
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional  # noqa: F401 - in comments

WAIT_S = 15  # how long a server may take to end
ANSWER_S = 3  # how long it may take to answer
ENDING = b"ending\n"  # what our servers answer
QUIT_RELEASED = b'"raise KeyboardInterrupt"\n'  # what servers of execnet 1 and 2 execute
SERVER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "socketserver.py")


def load_server():
    # type: () -> Dict[str, Any]
    """Return the names of ``socketserver.py``.

    Not by import: the standard library has a module of that name.
    """
    names = {"__name__": "execnet_socketserver", "__file__": SERVER}  # type: Dict[str, Any]
    with open(SERVER) as file:
        exec(compile(file.read(), SERVER, "exec"), names)
    return names


def quit_server(address, key=None, fingerprint=None, trusts=False):
    # type: (str, Optional[str], Optional[str], bool) -> None
    """End the server at an address; EnvironmentError if there is none or it does not answer.

    key: the file with its key; None takes the default one, if there is one.  fingerprint: of its
    certificate.  trusts: whether to ask for no proof.  With neither key nor fingerprint, a server
    that keeps silent is ended as well: what it is sent is no secret.
    """
    server = load_server()
    conn = server["connect"](address, WAIT_S, key, fingerprint, trusts, takes_silent=True)
    answer = _ask(conn, server["QUIT"])
    if answer == ENDING:
        return
    if answer or key or fingerprint or not _ends_as_released(server, address):
        raise EnvironmentError("what listens there is no socket server")


def _connect(server, address):
    # type: (Dict[str, Any], str) -> Any
    return server["connect"](address, WAIT_S, trusts=True)


def _ask(conn, line):
    # type: (Any, bytes) -> bytes
    """Send a line; return all that is answered until the connection ends, b"" for nothing."""
    try:
        conn.settimeout(ANSWER_S)
        try:
            conn.sendall(line)
            data = answer = conn.recv(100)  # type: bytes
        except EnvironmentError:
            return b""
        conn.settimeout(WAIT_S)
        while data:  # the end comes when another server can listen there
            data = conn.recv(100)
            answer += data
        return answer
    finally:
        conn.close()


def _ends_as_released(server, address):
    # type: (Dict[str, Any], str) -> bool
    """End a server that executes what it is sent, as in execnet 1 and 2; whether it ended."""
    try:
        _ask(_connect(server, address), QUIT_RELEASED)
        for _ in range(20):
            _connect(server, address).close()
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
    explained = "its key; default ~/.execnet/key, if there is one"
    parser.add_argument("--key", metavar="FILE", help=explained)
    explained = "the SHA-256 of its certificate, for a server with --tls and without a key"
    parser.add_argument("--fingerprint", metavar="HEX", help=explained)
    explained = "ask for no proof, and do not wait for one"
    parser.add_argument("--no-authentication", action="store_true", help=explained)
    options = parser.parse_args(args)
    if options.no_authentication and (options.key or options.fingerprint):
        parser.error("--no-authentication asks for no proof")
    address = options.address
    try:
        quit_server(address, options.key, options.fingerprint, options.no_authentication)
    except (ValueError, EnvironmentError) as exc:
        sys.exit("can't end the server at %s: %s" % (address, exc))


if __name__ == "__main__":
    main()
