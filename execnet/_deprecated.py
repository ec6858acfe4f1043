"""Names of old programs; each says what to use instead."""

from __future__ import annotations

import warnings

from .gateway import Gateway
from .multi import makegateway


def _warn(name: str, spec: str) -> None:
    warnings.warn(
        f"{name} is deprecated, use execnet.makegateway({spec!r})", DeprecationWarning, stacklevel=3
    )


def PopenGateway(python: str | None = None) -> Gateway:
    """Return ``makegateway("popen//python=...")``."""
    spec = f"popen//python={python}" if python else "popen"
    _warn("PopenGateway", spec)
    return makegateway(spec)


def SocketGateway(host: str, port: int) -> Gateway:
    """Return ``makegateway("socket=host:port")``."""
    spec = f"socket={host}:{port}"
    _warn("SocketGateway", spec)
    return makegateway(spec)


def SshGateway(
    sshaddress: str,
    remotepython: str | None = None,
    identity: str | None = None,
    ssh_config: str | None = None,
) -> Gateway:
    """Return ``makegateway("ssh=...")`` with the options that were given."""
    spec = f"ssh=-i {identity} {sshaddress}" if identity else f"ssh={sshaddress}"
    if remotepython:
        spec += f"//python={remotepython}"
    if ssh_config:
        spec += f"//ssh_config={ssh_config}"
    _warn("SshGateway", spec)
    return makegateway(spec)
