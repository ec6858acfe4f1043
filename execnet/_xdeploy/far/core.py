"""Keeps what workers are made of, compiled, for the next ones of the same interpreter.

That is also done for what finds an environment and starts its worker.
This file is shipped, to a worker of that interpreter.  Start at ``main``.
"""

from __future__ import annotations

import binascii
import marshal
import os

from .quick import native
from .writing import make_folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ...gateway_base import Channel


def main(channel: Channel) -> None:
    """Keep what one item has: (path, name of a file, its source or "", other parts)."""
    path, file_name, source, parts = channel.receive()
    keep(native(path), native(file_name), source, parts)


def keep(path: str, file_name: str, source: str, parts: dict[str, tuple[str, str]]) -> None:
    """Compile into a file, all of it or nothing: the core, and parts that are loaded later."""
    compiled = {
        native(name): (native(file), marshal.dumps(compile(text, file, "exec", 0, True, 0)))
        for name, (file, text) in parts.items()
    }
    core = compile(source, file_name, "exec", 0, True, 0) if source else None
    data = marshal.dumps((core, compiled))
    folder = os.path.dirname(path)
    make_folder(os.path.dirname(folder))
    make_folder(folder)
    temporary = "%s.%s.new" % (path, binascii.hexlify(os.urandom(4)).decode("ascii"))
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
