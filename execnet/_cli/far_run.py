"""The worker's half of ``execnet run``: starts a program and reports how it ended.

This file is shipped; it keeps to what Python 2.7 and today's Python both accept.  The program's
output goes where the worker's own output goes.  A report is (exit status, text or None, None).
Start at ``run``.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO

    from ..gateway_base import Channel

    Program = subprocess.Popen[bytes]

NOT_FOUND, NOT_EXECUTABLE = 127, 126  # as in shells
END_S = 2.0  # how long an interrupted program may take to end
JOIN_S = 1.0  # how long a wait for a thread is at a time: on Python 2 an interrupt ends no other


def run(channel: Channel, report: Channel, command: list[bytes], has_input: bool) -> None:
    """Run a command to its end; its stdin is what arrives on ``channel``, or nothing."""
    words = [_native(word) for word in command]
    child = _Child()
    try:
        process = child.start(words, has_input)
        if has_input:
            _in_thread(_feed, channel, process.stdin)
        status, text = process.wait(), None
        status = 128 - status if status < 0 else status
    except _NotStarted as exc:
        status, text = exc.status, "can't run %s: %s" % (words[0], exc)
    except BaseException:
        child.end()
        raise
    channel.gateway.before_close()  # this sends all that was written
    report.send((status, text, None))


class _NotStarted(Exception):
    """Why there is no program; ``status`` is what a shell would end with."""

    def __init__(self, error: EnvironmentError) -> None:
        Exception.__init__(self, error.strerror)
        self.status = NOT_FOUND if error.errno == errno.ENOENT else NOT_EXECUTABLE


class _Child(object):
    """A program that one thread starts and another one ends, as no interrupt reaches them.

    An interrupt within ``Popen`` would leave a program that runs and that nobody knows of.
    """

    def __init__(self) -> None:
        self._starting = threading.Lock()  # taken only by these threads
        self._is_wanted = True
        self._process: Program | None = None
        self._error: BaseException | None = None

    def start(self, words: list[str], has_input: bool) -> Program:
        """Return the program once it has been started; raise what kept it from that."""
        thread = _in_thread(self._start, words, has_input)
        while thread.is_alive():
            thread.join(JOIN_S)
        if self._process is None:
            raise self._error or RuntimeError("it was not started")
        return self._process

    def _start(self, words: list[str], has_input: bool) -> None:
        try:
            with self._starting, open(os.devnull, "rb") as nothing:
                stdin = subprocess.PIPE if has_input else nothing
                if self._is_wanted:
                    self._process = subprocess.Popen(words, stdin=stdin)
        except EnvironmentError as exc:
            self._error = _NotStarted(exc)
        except Exception as exc:
            self._error = exc

    def end(self) -> None:
        """End the program; if it was not started yet, it never will be."""
        thread = _in_thread(self._end)
        while thread.is_alive():
            thread.join(JOIN_S)

    def _end(self) -> None:
        with self._starting:
            self._is_wanted = False
            process = self._process
        try:
            if process is not None:  # it may have been interrupted too, and be about to end
                process.terminate()
                timer = threading.Timer(END_S, process.kill)
                timer.daemon = True
                timer.start()
                process.wait()
                timer.cancel()
        except EnvironmentError:  # it has ended
            pass


def _in_thread(func: Callable[..., object], *args: object) -> threading.Thread:
    thread = threading.Thread(target=func, args=args)
    thread.daemon = True
    thread.start()
    return thread


def _native(word: bytes) -> str:
    if sys.version_info[0] > 2:
        return os.fsdecode(word)
    return word


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
