"""What programs may use of execnet; start at ``public_names``."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import execnet
from execnet import gateway

AIO = "execnet.aio"

# No underscore, and yet only for modules of the package: what its parts ask of each other.
INTERNAL = {
    *[f"Gateway.{name}" for name in gateway._INTERNAL],
    *[f"RSync.on_{event}" for event in ("acks", "finished", "list", "progress", "sending")],
    *("RSync.on_skipped", "Sync.launcher", "Sync.start", "Codec.describe", "Codec.for_python"),
}
# Not for programs, though it has no underscore, and what joblib calls.
UNLISTED = {"execnet.rsync_remote", "execnet.joblib.GroupBackend."}


def public_modules() -> Iterator[ModuleType]:
    """Yield the modules that say what programs may use of them."""
    yield execnet
    for found in pkgutil.iter_modules(execnet.__path__, "execnet."):
        if "._" not in found.name and found.name not in UNLISTED:
            try:
                module = importlib.import_module(found.name)
            except ModuleNotFoundError as exc:  # what an extra installs
                if (exc.name or "").startswith("execnet"):
                    raise
                continue
            if hasattr(module, "__all__"):
                yield module


def public_names() -> list[str]:
    """Return the full names of all that a program may use, with the members of classes."""
    names = []
    for module in public_modules():
        for name in module.__all__:
            full, value = f"{module.__name__}.{name}", getattr(module, name)
            if name.startswith("__") or (
                module is not execnet and value is getattr(execnet, name, None)
            ):
                continue
            names.append(full)
            if inspect.isclass(value) and not issubclass(value, Exception):
                names += [
                    f"{full}.{member}"
                    for member in own_members(value)
                    if not member.startswith("_")
                    and not inspect.isclass(inspect.getattr_static(value, member))
                ]
    return [name for name in names if not is_internal(name)]


def is_internal(name: str) -> bool:
    owner, _, member = name.rpartition(".")
    short = f"{owner.rpartition('.')[2]}.{member}"
    # a channel in a loop has ``next`` only to say that it is not iterated over without "async"
    return f"{owner}." in UNLISTED or short in INTERNAL or name == f"{AIO}.Channel.next"


def own_members(kind: type) -> set[str]:
    """Return the names of the members that this package has given a class."""
    return {
        name
        for base in kind.__mro__
        if base.__module__.startswith("execnet")
        for name in base.__dict__
    }
