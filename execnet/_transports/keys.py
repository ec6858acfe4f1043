"""The keys of socket servers: which one a client uses, and what a server gets over a gateway.

Nothing is connected here.  Start at ``Wish`` and ``given_to_server``.
"""

from __future__ import annotations

import functools
import os

from .._errors import AuthenticationError
from .._folders import key_file
from ..script import socketserver

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..xspec import XSpec

_of_this_process: bytes | None = None  # if none can be written to a file


def own_key() -> bytes:
    """Return the key for servers that this process starts: the default one, made if need be.

    If no file can be written, it is a key that lives as long as this process.  Raises
    ``AuthenticationError`` if there is one that can't be used.
    """
    global _of_this_process
    if not os.path.lexists(key_file()):
        try:
            socketserver.make_key(key_file())
        except OSError:
            if not os.path.lexists(key_file()):
                _of_this_process = _of_this_process or os.urandom(32)
                return _of_this_process
    return _read(key_file())


def client_key(path: str | None) -> bytes | None:
    """Return the key in a file, or else the default one; None where there is none."""
    if path is None and not os.path.lexists(key_file()):
        return _of_this_process
    return _read(path or key_file())


def _read(path: str) -> bytes:
    try:
        return socketserver.read_key(path)
    except (OSError, ValueError) as exc:
        raise AuthenticationError(f"can't take the key in {path}: {exc}") from exc


class Wish:
    """What a spec says about the proof; raises ``AuthenticationError`` for an invalid key.

    is_needed: whether to send nothing to a server that does not prove itself.
    """

    def __init__(self, spec: XSpec, key: bytes | None = None) -> None:
        self.is_off = spec.authentication == "none"
        self.key = key
        if key is None and not self.is_off:
            self.key = client_key(spec.key)
        is_named = key is not None or spec.key is not None or spec.authentication == "required"
        self.is_needed = is_named or self.key is not None
        self.bound: str | None = spec.bound
        self.fingerprint: str | None = spec.fingerprint
        self.has_secrets = bool(spec.env)


def trusts_others(spec: XSpec) -> bool:
    """Whether a spec also accepts a server at a path that belongs to another user."""
    return spec.authentication == "none" and not spec.env


@functools.lru_cache(maxsize=1)
def _certificate() -> bytes | None:
    try:
        return socketserver.make_certificate()
    except OSError:
        return None


def certificate() -> bytes | bool:
    """Return a certificate with its private key; True if only the far side can make one."""
    return _certificate() or True


def given_to_server() -> str:
    """Return the lines before the source of a server that runs in a worker."""
    given: dict[str, str] = {"key": own_key().hex()}
    made = _certificate()
    if made is not None:
        given["certificate"] = made.decode("ascii")
    return f"GIVEN={given!r};"
