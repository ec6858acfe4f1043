"""A new interpreter that serves rpyc's classic mode on its standard input and output."""

from __future__ import annotations

import sys

import rpyc

# It leaves without the interpreter's shutdown, which complains about the closed output.
SERVER = "import os, rpyc; rpyc.connect_stdpipes(rpyc.SlaveService).serve_all(); os._exit(0)"


def start() -> rpyc.Connection:
    """Return the connection to a new interpreter."""
    command = [sys.executable, "-u", "-c", SERVER]
    return rpyc.connect_subproc(command, rpyc.MasterService)


def stop(connection: rpyc.Connection) -> None:
    """Close the connection, at which the server ends, and wait for that."""
    connection.close()
    connection.proc.wait()
