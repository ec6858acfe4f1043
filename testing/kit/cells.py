"""A program that runs cells in a Jupyter kernel: JSON lists of texts from stdin to stdout.

Its status is 3 where there is no Jupyter. The kernel runs in the current folder.
"""

from __future__ import annotations

import json
import sys
from typing import Any

BOUND_S = 60


def outputs_of(client: Any, cell: str) -> str:
    """Run a cell and return what it prints."""
    request, printed = client.execute(cell), []
    while True:  # each message comes within BOUND_S, and a cell sends few
        message = client.get_iopub_msg(timeout=BOUND_S)
        if message["parent_header"].get("msg_id") != request:
            continue
        kind, content = message["msg_type"], message["content"]
        if kind == "error":
            sys.exit("\n".join(content["traceback"]))
        if kind == "stream":
            printed.append(content["text"])
        if kind == "status" and content["execution_state"] == "idle":
            return "".join(printed)


def main() -> None:
    try:
        from jupyter_client.manager import start_new_kernel
    except ImportError:
        sys.exit(3)
    manager, client = start_new_kernel(startup_timeout=BOUND_S)
    try:
        print(json.dumps([outputs_of(client, cell) for cell in json.load(sys.stdin)]))
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


if __name__ == "__main__":
    main()
