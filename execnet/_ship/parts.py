"""Modules as source: read through the import system, and what is made of them kept.

A module may be a file, or be in a zip or a frozen program; what goes to workers is read here,
whichever it is.  What takes long to make of one of ours is kept beside Python's own bytecode,
where it is trusted as much as that is.  Start at ``read`` and ``kept``.
"""

from __future__ import annotations

import io
import marshal
import os
import re
import sys
from contextlib import suppress
from functools import lru_cache

from .._errors import BootstrapError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

    from ..gateway_base import Channel

PACKAGE = str(__package__).rpartition(".")[0]
HASH_BYTES = 8


def read(module: ModuleType) -> tuple[str, str | None]:
    """Return the source of a module and the name of its file, if it has one, which is read anew.

    Raises ValueError if there is no source.
    """
    spec = getattr(module, "__spec__", None)
    name = getattr(spec, "name", module.__name__)
    loader = getattr(spec, "loader", None) or getattr(module, "__loader__", None)
    file_name = str(getattr(module, "__file__", None) or "")
    if file_name.endswith(".pyc"):
        file_name = file_name[:-1]
    source = _source(name, loader, file_name)
    if source is None:
        raise ValueError(f"can't execute {module!r}: it has no source file")
    return source, file_name or None


def _source(name: str, loader: object, path: str) -> str | None:
    if os.path.isfile(path) and not _is_extension(path):
        with open(path, "rb") as file:
            return _decoded(file.read())
    try:
        return from_loader(loader, name, path)
    except (AttributeError, ImportError, OSError):  # it is one that has no sources
        return None


def from_loader(loader: Any, name: str, path: str) -> str | None:
    """Return the source of a module as its loader has it; raises what that raises."""
    try:
        source: str | None = loader.get_source(name)
    except UnicodeDecodeError:  # the loader of zips takes all for UTF-8
        return _decoded(loader.get_data(path))
    return source


def _is_extension(file_name: str) -> bool:
    import _imp

    return file_name.endswith(tuple(_imp.extension_suffixes()))


def _decoded(data: bytes) -> str:
    head = data.split(b"\n", 2)[:2]
    if any(b"coding" in line for line in head):
        from importlib.util import decode_source

        return decode_source(data)
    text = data.decode("utf-8").removeprefix("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def is_ours(module: ModuleType) -> bool:
    """Whether a module belongs to this package."""
    return module.__name__.startswith(PACKAGE + ".")


@lru_cache(maxsize=32)
def source_of(name: str) -> str:
    """Return the source of a module of ours, which need not be imported.

    Raises ``BootstrapError`` if it can't be found.
    """
    spec = _spec_of(name)
    source = _source(spec.name, spec.loader, spec.origin or "")
    if source is None:
        raise BootstrapError(
            f"the source of {spec.name}, which a worker needs, can't be found here"
        )
    return source


def file_of(name: str) -> str:
    """Return the name of the file of a module of ours."""
    return str(_spec_of(name).origin)


@lru_cache(maxsize=32)
def _spec_of(name: str) -> Any:
    from importlib.util import find_spec

    spec = find_spec(f"{PACKAGE}.{name}")
    if spec is None:
        raise BootstrapError(f"{PACKAGE}.{name}, which a worker is to be sent, is not there")
    return spec


@lru_cache(maxsize=32)
def lowered(name: str) -> str:
    """Return the source of a module of ours, for Pythons that don't understand it as it is."""
    source = source_of(name)

    def lower() -> str:
        from . import lower as ship_lower

        return ship_lower.lower(source)

    text: str = kept(name, "lowered", [source, source_of("_ship.lower")], lower)
    return text


# What a worker does with it: it adds what it was sent to what it has, and runs the last one.
LOADER = """
import sys
base = sys.modules[channel.__class__.__module__]
for name, file_name, source in channel.receive():
    module = base.load_part(name, file_name, source)
module.main(channel)
"""


def run(gateway: Any, name: str, is_there: bool = False) -> Channel:
    """Run ``main(channel)`` of a module of ours in a worker; return the channel.

    It is sent with those that it imports, except to a worker that can import them, or has them
    already, which ``is_there`` tells.  Raises OSError if the worker is gone.
    """
    channel: Channel = gateway.remote_exec(LOADER)
    send_parts(channel, name, is_there)
    return channel


def send_parts(channel: Channel, name: str, is_there: bool = False) -> None:
    """Send what the loader at the other end of a channel receives; as ``run``."""
    gateway = channel.gateway
    channel.reconfigure(py2str_as_py3str=False)  # what Python 2 calls str are bytes here
    channel.send([(name, None, None)] if is_there else sent_parts(gateway, name))


def sent_parts(gateway: Any, name: str) -> list[tuple[str, str | None, str | None]]:
    """Return what ``load_part`` of a worker needs for a module of ours and what that imports."""
    if gateway._imports_parts():
        return [(name, None, None)]
    read = lowered if gateway._is_old() else source_of
    return [(one, file_of(one), read(one)) for one in _with_imports(name)]


@lru_cache(maxsize=32)
def _with_imports(name: str) -> list[str]:
    """Return a shipped module and those that it imports, in the order in which they are needed.

    The core and its features are there; what is imported within a function does not count.
    """
    found: list[str] = []
    package = name.rpartition(".")[0]
    for module, names in _IMPORTS.findall(source_of(name)):
        for one in [f".{module}"] if module else [f".{one.strip()}" for one in names.split(",")]:
            found += [part for part in _with_imports(package + one) if part not in found]
    return [*found, name]


# Those of the same folder, as far as the rest needs them.
_IMPORTS = re.compile(r"^from \.(\w*) import (.*)", re.M)


def import_folder() -> str:
    """Return what has to be on ``sys.path`` for this package to be found; it may be a zip."""
    return os.path.abspath(os.path.join(__file__, "..", "..", ".."))


# ---------------------------------------------------------------- kept beside the bytecode


def kept(name: str, kind: str, made_of: list[str], make: Callable[[], Any]) -> Any:
    """Return what ``make`` returns, if possible as an earlier program has kept it.

    It is kept for the Python that this is, beside the bytecode of a module of ours, and like
    that: not where Python is told to write none.  A file that is cut, of other sources or not
    to be read only costs the time to make it again.  made_of: the texts that decide what is
    made, which is what ``marshal`` takes.
    """
    from importlib.util import source_hash  # differs between Pythons with different bytecode

    spec = _spec_of(name)
    if not spec.cached:  # as in a zip
        return make()
    path = f"{spec.cached.removesuffix('.pyc')}-{kind}.pyc"
    key = b"execnet\n" + source_hash("\0".join(made_of).encode("utf-8", "surrogateescape"))
    start = len(key) + HASH_BYTES
    try:
        with io.open_code(path) as file:
            data = file.read()
        if data[:start] == key + source_hash(data[start:]):
            return marshal.loads(data[start:])
    except (OSError, EOFError, ValueError, TypeError):
        pass
    made = make()
    if not sys.dont_write_bytecode:
        body = marshal.dumps(made)
        _write(path, key + source_hash(body) + body, spec.origin)
    return made


def _write(path: str, data: bytes, source: str) -> None:
    """Write a file as Python writes bytecode: all of it or nothing, as readable as the source."""
    temporary = f"{path}.{os.urandom(4).hex()}"
    try:
        mode = (os.stat(source).st_mode | 0o200) & 0o666
        fd = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode
        )
    except OSError:
        return
    try:
        with open(fd, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException as exc:
        with suppress(OSError):
            os.unlink(temporary)
        if not isinstance(exc, OSError):
            raise
