"""Authentication for a service with a port: both sides prove that they have this user's key.

The messages are those of a socket server and its clients: ``script.socketserver``.  This file is
shipped; it keeps to what Python 2.7 and today's Python both accept.  Start at ``admit``.
"""

from __future__ import annotations

from ..gateway_base import load_part
from .far_find import ServiceError, clock

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket


def admit(sock: socket.socket, deadline: float) -> None:
    """Return when the other end has proved that it has the key; else raise ``ServiceError``."""
    server = load_part("script.socketserver")
    sock.settimeout(max(0.001, deadline - clock()))
    key, words = server.own_key(), [b"plain", server.new_nonce()]
    sock.sendall(b" ".join([server.VERSION] + words) + b"\n")
    try:
        said = server.read_line(sock, deadline).split(b" ")
    except ValueError as exc:
        raise ServiceError(str(exc))
    is_proof = len(said) == 4 and said[0] == server.VERSION
    words += said[1:3]
    if not is_proof or not server.compare_digest(said[3], server.proof(key, b"client", words)):
        refusal = b"the client has not proved that it has the key of this user"
    elif said[2] != server.binding_of(sock.getsockname()):
        refusal = b"the client has dialled another address"
    else:
        proved = server.proof(key, b"server", words)
        sock.sendall(b" ".join([server.VERSION, b"ok", proved]) + b"\n")
        return
    sock.sendall(b" ".join([server.VERSION, b"error", refusal]) + b"\n")
    raise ServiceError(refusal.decode("ascii"))
