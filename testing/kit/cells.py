"""A program that runs cells in a Jupyter kernel.

On stdin it gets a JSON list of pairs: a cell, and how many lines it prints, some of which may come
after its end, from workers.  On stdout it tells what each printed.  Its status is 3 where there is
no Jupyter.  The kernel runs in the current folder.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

BOUND_S = 60


def outputs_of(client: Any, cell: str, lines: int) -> str:
    """Run a cell and return what it prints, which is at least so many lines."""
    request, printed, is_idle = client.execute(cell), "", False
    while not is_idle or len(re.findall(r"(?m)^.*\S", printed)) < lines:
        # Each message comes within BOUND_S, and a cell sends few.
        message = client.get_iopub_msg(timeout=BOUND_S)
        if message["parent_header"].get("msg_id") != request:
            continue
        kind, content = message["msg_type"], message["content"]
        if kind == "error":
            sys.exit("\n".join(content["traceback"]))
        if kind == "stream":
            printed += content["text"]
        is_idle = is_idle or (kind == "status" and content["execution_state"] == "idle")
    return printed


def main() -> None:
    try:
        from jupyter_client.manager import start_new_kernel
    except ImportError:
        sys.exit(3)
    manager, client = start_new_kernel(startup_timeout=BOUND_S)
    try:
        print(json.dumps([outputs_of(client, *cell) for cell in json.load(sys.stdin)]))
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


if __name__ == "__main__":
    main()
