"""Keeps what workers are made of, compiled, for the next ones of an environment's interpreter.

This file is shipped, to a worker of that interpreter.  Start at ``main``.
"""

from __future__ import annotations

import marshal
import os

from .places import native, text_of
from .writing import make_folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def main(channel: Any) -> None:
    """Keep what one item has: (path, name of the file, source, other parts)."""
    path, file_name, source, parts = channel.receive()
    keep(native(path), native(file_name), source, parts)


def keep(path: str, file_name: str, source: Any, parts: Any) -> None:
    """Compile the core, with the parts that come with it, into a file: all of it or nothing."""
    compiled = {
        name: (part_file, marshal.dumps(compile(text, part_file, "exec", 0, True, 0)))
        for name, (part_file, text) in parts.items()
    }
    source = text_of(source) + u"\n_sent_parts.update(%r)\n" % (compiled,)
    data = marshal.dumps(compile(source, file_name, "exec", 0, True, 0))
    folder = os.path.dirname(path)
    make_folder(os.path.dirname(folder))
    make_folder(folder)
    temporary = "%s.%d.new" % (path, os.getpid())
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
