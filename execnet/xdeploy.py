"""Environments on the far side, made when they are needed and found again later.

``create_venv_gateway`` returns a gateway to a worker of an environment's interpreter.  Its parts
are in ``_xdeploy``.
"""

from __future__ import annotations

import os

from ._transports.pythons import is_version
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
    fetch_python: bool = False,
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

    The environment is made unless there is one of this name for the same interpreter, requirements
    and addresses; then nothing is installed.  The worker runs in the environment's folder.  The
    returned gateway's attribute ``venv``, a ``Venv``, says where that is and which tool made it.

    name: a name of up to 64 letters, digits and ``.-_``.
    requirements: a string such as ``"numpy>=2 requests"``; the path of a requirements file, a
        ``pyproject.toml``, a ``pylock.toml``, a ``uv.lock``, a wheel, or the folder of a project
        that is pure Python; or a list of these.  Paths, also those in files, mean this machine.
    python: the interpreter: a version such as "3.12" or "pypy3.11", "auto" for this program's
        version or else the newest, or a path there; None for that of ``gateway``.
    fetch_python: whether uv, if it is installed there, fetches that version if there is none.
    offline: True sends all packages from here; "auto" does so if the far side can't reach its
        index; False never does.
    find_links: folders with wheels here, or addresses of pages that name some.
    index_url: the index to ask; None for the configured one.  An index whose address contains a
        secret is asked from here, and the secret stays here.
    recreate: make it again, even if it exists.
    refresh: the same, to get newer versions of what is not pinned.  Processes that use the old
        one keep it.
    timeout: seconds for finding it, waiting for another process that is making the same, and
        making it; None for half an hour.
    on_output: called with each line that installers print; None sends them to the logger
        ``execnet.xdeploy``.
    root: the folder there that holds everything; None for ``~/.cache/execnet``.
    Raises ``DeployError`` if it can't be made, ValueError for bad arguments, OSError for files
    that can't be read and ``BootstrapError`` if the worker can't be started.
    """
    if offline not in (True, False, "auto"):
        raise ValueError(f"offline must be True, False or 'auto', and is {offline!r}")
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout must be more than 0, and is {timeout}")
    if fetch_python and not is_version(python):
        raise ValueError(f"fetch_python needs a version, and python is {python!r}")
    options = Options(
        python=python, fetch_python=fetch_python, offline=offline,
        find_links=links_of(find_links), index_url=index_url or "",
        recreate=recreate, refresh=refresh, root=root or "",
        timeout_s=DEFAULT_S if timeout is None else timeout,
    )  # fmt: skip
    wanted = wanted_of(requirements)
    with Output(on_output) as output:
        return create(gateway, name, wanted, options, output)
