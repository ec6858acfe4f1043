"""An interpreter that has loaded all that a worker needs, and waits for its first line.

This file is shipped to it with the rest of the source; it keeps to what Python 2.7 and today's
Python both accept.  Start at ``run``.
"""

from __future__ import annotations

import sys

from ..gateway_base import FEATURE_PARTS, Message, load_part

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def run(options: dict[str, Any]) -> None:
    """Become the worker of the next line; a line of any other kind is executed as it is.

    options: a dict of ``head``, with which the line of a worker with the source that is loaded
    here begins.
    """
    base: Any = sys.modules[load_part.__module__]
    base._find_standard_library()
    for name in FEATURE_PARTS:
        load_part(name)
    line = sys.stdin.readline()
    if not line:  # nobody needs it any more
        return
    code, head = eval(line), options["head"]
    package = base.__name__.rpartition(".")[0]
    for name in [name for name in sys.modules if name.startswith(package + "._via")]:
        del sys.modules[name]  # a worker that has just started has none of it
    vars(sys.modules[package]).pop("_via", None)
    if code.startswith(head):
        _, file_name, worker_options = eval("(" + code[len(head) :])
        if file_name == base.__file__:
            base._read_rest = Message.from_io  # of what is there, no more than its frame
            base.start_worker(**worker_options)
            return
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]
    exec(code, vars(sys.modules["__main__"]))
