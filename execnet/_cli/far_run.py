"""The worker's half of ``execnet run``: starts a program and reports how it ended.

This file is shipped; it keeps to what Python 2.7 and today's Python both accept.  The program's
output goes where the worker's own output goes.  A report is (exit status, text or None, None).
Start at ``run``.
"""

from __future__ import annotations

import errno
import os
import subprocess
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO

    from ..gateway_base import Channel

NOT_FOUND, NOT_EXECUTABLE = 127, 126  # as in shells
END_S = 2.0  # how long an interrupted program may take to end


def run(channel: Channel, report: Channel, command: list[bytes], has_input: bool) -> None:
    """Run a command to its end; its stdin is what arrives on ``channel``, or nothing."""
    words = [_native(word) for word in command]
    try:
        process = _start(words, has_input)
    except EnvironmentError as exc:
        status = NOT_FOUND if exc.errno == errno.ENOENT else NOT_EXECUTABLE
        text: str | None = "can't run %s: %s" % (words[0], exc.strerror)
    else:
        status, text = _wait(process, channel if has_input else None), None
    channel.gateway.before_close()  # this sends all that was written
    report.send((status, text, None))


def _start(words: list[str], has_input: bool) -> subprocess.Popen[bytes]:
    with open(os.devnull, "rb") as nothing:
        return subprocess.Popen(words, stdin=subprocess.PIPE if has_input else nothing)


def _wait(process: subprocess.Popen[bytes], inputs: Channel | None) -> int:
    """Wait until a program ends, feeding it from a channel; return its status."""
    try:
        if inputs is not None and process.stdin is not None:
            thread = threading.Thread(target=_feed, args=(inputs, process.stdin))
            thread.daemon = True
            thread.start()
        status: int = process.wait()
    except BaseException:
        _end(process)
        raise
    return 128 - status if status < 0 else status


def _native(word: bytes) -> str:
    native: str = os.fsdecode(word) if hasattr(os, "fsdecode") else str(word)
    return native


def _feed(channel: Channel, stdin: IO[bytes]) -> None:
    try:
        for data in channel:
            _write(stdin, data)
            channel.send(len(data))
            if not data:  # the last; Python 2 would find this thread waiting at its end
                return
    except (EnvironmentError, EOFError):  # the command or the coordinator has ended
        pass


def _write(stdin: IO[bytes], data: bytes) -> None:
    """Write data, or close if there is none; ignore a program that stopped reading."""
    try:
        if data:
            stdin.write(data)
            stdin.flush()
            return
    except (EnvironmentError, ValueError):  # what is left over must not be written at its end
        pass
    try:
        stdin.close()
    except (EnvironmentError, ValueError):
        pass


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program; it may have been interrupted too, and be about to end."""
    try:
        process.terminate()
        timer = threading.Timer(END_S, process.kill)
        timer.daemon = True
        timer.start()
        process.wait()
        timer.cancel()
    except EnvironmentError:  # it has ended
        pass
