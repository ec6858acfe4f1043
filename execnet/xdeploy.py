"""Environments on the far side, made when they are needed and found again when they are there.

``create_venv_gateway`` returns a gateway to a worker of an environment's interpreter.  What it is
made of is in ``_xdeploy``.
"""

from __future__ import annotations

import os

from ._xdeploy.create import Venv, create
from ._xdeploy.errors import DeployError
from ._xdeploy.making import DEFAULT_S, Options, links_of
from ._xdeploy.output import Output
from ._xdeploy.project import SetupFile, Sync, wanted_of
from ._xdeploy.requirements import Requirements

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .gateway import Gateway

__all__ = ["DeployError", "SetupFile", "Sync", "Venv", "create_venv_gateway"]


def create_venv_gateway(
    gateway: Gateway,
    name: str,
    requirements: Requirements = (),
    *,
    python: str | None = None,
    offline: bool | str = "auto",
    find_links: str | os.PathLike[str] | list[str | os.PathLike[str]] | None = None,
    index_url: str | None = None,
    recreate: bool = False,
    refresh: bool = False,
    timeout: float | None = None,
    on_output: Callable[[str], object] | None = None,
    root: str | None = None,
) -> Gateway:
    """Return a gateway to a worker in a virtual environment on the other side of a gateway.

    The environment is made if it is not there.  It is there if there is one of this name that was
    made for the same interpreter from the same requirements and addresses; then nothing is
    installed.  The worker runs in the environment's folder; ``venv`` of the gateway that comes
    back, a ``Venv``, tells where that is and which tool has made it.

    name: a name of up to 64 letters, digits and ``.-_``.
    requirements: a string such as ``"numpy>=2 requests"``; the path of a requirements file, a
        ``pyproject.toml``, a ``pylock.toml``, a ``uv.lock``, a wheel, or the folder of a project
        that is pure Python; or a list of these.  Paths mean this machine, in the files as well.
    python: the interpreter: a version such as "3.12" or "pypy3.11", "auto" for this program's
        version or else the newest, or a path there; None for that of ``gateway``.
    offline: True has all packages come from here; "auto" does so if the far side does not reach
        its index; False never does.
    find_links: folders with wheels here, or addresses of pages that name some.
    index_url: the index that is asked; None for the one that is configured.  An index whose
        address has a secret in it is asked from here, and the secret stays here.
    recreate: make it again, whether it is there or not.
    refresh: the same, to have newer versions of what is not pinned.  Whoever uses the old one
        keeps it.
    timeout: seconds that finding, waiting for another process that makes the same, and making may
        take; None for half an hour.
    on_output: called with each line that installers print; None has them go to the logger
        ``execnet.xdeploy``.
    root: the folder there that all is in; None for ``~/.cache/execnet``.
    Raises ``DeployError`` if it can't be made, ValueError for arguments that mean nothing, OSError
    for files that can't be read and ``BootstrapError`` if the worker can't be started.
    """
    if offline not in (True, False, "auto"):
        raise ValueError(f"offline must be True, False or 'auto', and is {offline!r}")
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout must be more than 0, and is {timeout}")
    options = Options(
        python=python, offline=offline, find_links=links_of(find_links), index_url=index_url or "",
        recreate=recreate, refresh=refresh, root=root or "",
        timeout_s=DEFAULT_S if timeout is None else timeout,
    )  # fmt: skip
    wanted = wanted_of(requirements)
    with Output(on_output) as output:
        return create(gateway, name, wanted, options, output)
