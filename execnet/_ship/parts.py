"""Modules as source: read through the import system; what is made of them is kept.

A module may be a file, or be in a zip or a frozen program; this is where its source is read for
workers.  If it takes long to prepare one of our modules, the result is kept beside Python's own
bytecode, and trusted as much.  Start at ``read`` and ``kept``.
"""

from __future__ import annotations

import io
import marshal
import os
import re
import sys
from contextlib import suppress
from functools import cache

from .._errors import BootstrapError
from ..gateway_base import dumps_internal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

    from .._inside import Inside
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
    except (AttributeError, ImportError, OSError):  # the loader has no sources
        return None


def from_loader(loader: Any, name: str, path: str) -> str | None:
    """Return the source of a module as its loader has it; raises what that raises."""
    try:
        source: str | None = loader.get_source(name)
    except UnicodeDecodeError:  # the loader of zips takes everything for UTF-8
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


@cache
def source_of(name: str) -> str:
    """Return the source of one of our modules, which need not be imported.

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
    """Return the file name of one of our modules."""
    return str(_spec_of(name).origin)


@cache
def _spec_of(name: str) -> Any:
    from importlib.util import find_spec

    spec = find_spec(f"{PACKAGE}.{name}")
    if spec is None:
        raise BootstrapError(f"{PACKAGE}.{name}, which a worker is to be sent, is not there")
    return spec


@cache
def lowered(name: str) -> str:
    """Return the source of one of our modules, for Pythons that don't understand it as it is."""
    source = source_of(name)

    def lower() -> str:
        from . import lower as ship_lower

        return ship_lower.lower(source)

    text: str = kept(name, "lowered", [source, source_of("_ship.lower")], lower)
    return text


# What runs in a worker: it loads the modules that it is sent, and runs the last one.
LOADER = """\
import sys
base = sys.modules[channel.__class__.__module__]
parts = channel.receive()
parts = base.loads_internal(__import__("zlib").decompress(parts)) if type(parts) is bytes else parts
[base.load_part(*sent) for sent in parts][-1].main(channel)
"""  # nothing in it is indented, so that it is sent without a look at that


def run(
    gateway: Any,
    name: str,
    is_there: bool = False,
    send: Callable[[Channel, object], None] | None = None,
) -> Channel:
    """Run ``main(channel)`` of one of our modules in a worker; return the channel.

    The module is sent together with those that it imports, unless the worker can import them, or
    has them already, which ``is_there`` tells.  send: sends it, in place of the channel.  Raises
    OSError if the worker is gone.
    """
    channel: Channel = gateway.remote_exec(LOADER)
    channel.reconfigure(py2str_as_py3str=False)  # what Python 2 calls str are bytes here
    sent: Any = [(name, None, None)] if is_there else sent_parts(gateway, name)
    has_sources = any(source for _, _, source in sent)
    if has_sources and gateway.settings.is_over_network and _unpacks(gateway):
        sent = _packed(name)
    channel.send(sent) if send is None else send(channel, sent)
    return channel


def send_parts(channel: Channel, name: str) -> None:
    """Send what another loader expects at the other end of a channel; otherwise as ``run``."""
    channel.reconfigure(py2str_as_py3str=False)
    channel.send(sent_parts(channel.gateway, name))


def _unpacks(gateway: Inside) -> bool:
    """Whether a worker has zlib, and reads our source as it is."""
    return not (gateway.has_old_python() or gateway.handshake.is_plain)


@cache
def _packed(name: str) -> bytes:
    rows = [(one, file_of(one), source_of(one)) for one in with_imports(name)]
    made_of = [source_of("_ship.parts"), *[text for row in rows for text in row]]

    def pack() -> bytes:
        import zlib

        return zlib.compress(dumps_internal(rows), 6)

    packed: bytes = kept(name, "packed", made_of, pack)
    return packed


def sent_parts(gateway: Any, name: str) -> list[tuple[str, str | None, str | None]]:
    """Return what a worker's ``load_part`` needs for one of our modules and its imports."""
    if gateway.imports_parts():
        return [(name, None, None)]
    if name in gateway.known_parts:
        return [(one, None, None) for one in with_imports(name)]
    read = lowered if gateway.has_old_python() else source_of
    return [(one, file_of(one), read(one)) for one in with_imports(name)]


def note_loaded(gateway: Inside, name: str) -> None:
    """Remember that a worker has one of our modules, as its answer shows; it is not sent again."""
    gateway.known_parts |= {name}


@cache
def with_imports(name: str) -> list[str]:
    """Return a shipped module and those that it imports, in the order in which they are needed.

    Workers have the core and its features; imports within functions do not count.
    """
    found: list[str] = []
    package = name.rpartition(".")[0]
    for other, module, names in _IMPORTS.findall(source_of(name)):
        folder = other.strip(".") or package
        for one in [module] if module else [one.strip() for one in names.split(",")]:
            found += [part for part in with_imports(f"{folder}.{one}") if part not in found]
    return [*found, name]


# Imports from the same folder, and from that of what runs alone.
_IMPORTS = re.compile(r"^from \.(\.script|)(\w*) import (.*)", re.M)


def import_folder() -> str:
    """Return what has to be on ``sys.path`` for this package to be found; it may be a zip."""
    return os.path.abspath(os.path.join(__file__, "..", "..", ".."))


# ---------------------------------------------------------------- kept beside the bytecode


def kept(name: str, kind: str, made_of: list[str], make: Callable[[], Any]) -> Any:
    """Return what ``make`` returns, if possible as an earlier program has kept it.

    It is kept for this version of Python, beside the bytecode of one of our modules and under the
    same rules: not where Python is told to write none.  If the file is cut, was made from other
    sources or can't be read, the only cost is the time to make it again.  made_of: the texts that
    decide the result, which has to be something that ``marshal`` takes.
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
