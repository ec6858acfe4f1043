"""The worker's half of ``execnet shell``: an interpreter that reads statements from a channel.

This file is shipped; it keeps to what Python 2.7 and today's Python both accept.  It gets
(what to do, its number, a text) and sends (kind, number, value):

- "check" is answered by "more" and whether the statement continues in the next line;
- "run" by "output" with (descriptor, bytes) while it runs, then by "done" with its exit status,
  which is None unless it asked for the end;
- "complete" by "completed" and a list of words;
- "cell", which may be several statements, by "done" and the text of the error that ended it, or
  None;
- "put" (with a dict) and "get" (with a list of names) by "done" and None, or (dict of values,).

Start at ``Shell``.
"""

from __future__ import annotations

import ast
import binascii
import codeop
import keyword
import linecache
import os
import re
import signal
import sys
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any

    from ..gateway_base import Channel

NAME = "<shell>"
CELL_NAME = "<cell %d>"
READ_BYTES = 1 << 16
SYNC_S = 5.0  # how long the end of a statement waits for its output


class Pipe(object):
    """A pipe in place of descriptor ``fd``; its thread sends what is written at once."""

    def __init__(self, fd: int, send: Callable[[int, bytes], object]) -> None:
        self._fd = fd
        self._send = send
        self._mark = b"\0" + binascii.hexlify(os.urandom(8)) + b"\0"
        self._is_synced = threading.Event()
        self._read_fd, write_fd = os.pipe()
        os.dup2(write_fd, fd)
        os.close(write_fd)
        thread = threading.Thread(target=self._read, name="execnet-shell-%d" % fd)
        thread.daemon = True
        thread.start()

    def sync(self) -> None:
        """Wait until all that was written was sent."""
        self._is_synced.clear()
        os.write(self._fd, self._mark)
        self._is_synced.wait(SYNC_S)

    def _read(self) -> None:
        rest = b""
        while True:
            data = rest + os.read(self._read_fd, READ_BYTES)
            parts = data.split(self._mark)
            rest = parts.pop()
            kept = self._begun_mark(rest)
            parts.append(rest[: len(rest) - kept])
            rest = rest[len(rest) - kept :]
            for number, part in enumerate(parts):
                if number:
                    self._is_synced.set()
                if part:
                    self._send(self._fd, part)
            if not data:
                return

    def _begun_mark(self, data: bytes) -> int:
        """Return how many bytes at the end may be the beginning of the mark."""
        for size in range(min(len(data), len(self._mark) - 1), 0, -1):
            if self._mark.startswith(data[-size:]):
                return size
        return 0


class Shell(object):
    """Runs statements in the main thread, one after the other.

    ``interrupt`` is called in the receiver thread.  An interrupt is raised only while a statement
    runs, so that no message gets lost.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._process = channel.gateway.process
        self._base = sys.modules[channel.__class__.__module__]
        self._number = 0  # of the running statement, 0 for none
        self._names = {"__name__": "__main__", "__doc__": None, "channel": channel}
        self._compile = codeop.CommandCompiler()
        for file in sys.stdout, sys.stderr:
            if hasattr(file, "reconfigure"):
                file.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
        self._pipes = [Pipe(1, self._output), Pipe(2, self._output)]
        self._is_interrupted = False
        self._interrupt_main = self._process.interrupt_main
        self._process.interrupt_main = self._on_wish
        try:
            signal.signal(signal.SIGINT, self._on_signal)
        except ValueError:  # code is not executed in the main thread here
            pass

    def _output(self, fd: int, data: bytes) -> None:
        try:
            self._channel.send(("output", self._number, (fd, data)))
        except (EnvironmentError, EOFError):  # nobody is listening any more
            pass

    def _on_wish(self) -> None:
        self._is_interrupted = True
        self._interrupt_main()
        number = self._number
        self._base.load_part("_features.interrupts").insist(
            self._channel.gateway.execmodel,
            lambda: self._is_interrupted and number == self._number,
            self._interrupt_main,
        )

    def _on_signal(self, signum: int, frame: object) -> None:
        """Raise a requested interrupt; Ctrl-C in a terminal may arrive here as well."""
        is_wished, self._is_interrupted = self._is_interrupted, False
        if is_wished and self._process.is_interruptible:
            raise KeyboardInterrupt

    def interrupt(self, number: int) -> None:
        """Interrupt the statement with a number, if it is still running."""
        if number == self._number:
            self._on_wish()

    def serve(self) -> None:
        """Serve requests until the end."""
        self._process.is_interruptible = False
        for kind, number, text in self._channel:
            if kind == "check":
                answer: Any = ("more", number, self._goes_on(text))
            elif kind == "complete":
                answer = ("completed", number, self._completions(text))
            elif kind == "put":
                answer = ("done", number, self._names.update(text))
            elif kind == "get":
                answer = ("done", number, self._values(text))
            else:
                answer = ("done", number, self._run(number, text, kind == "cell"))
                for pipe in self._pipes:
                    pipe.sync()
                self._number = 0
            try:
                self._channel.send(answer)
            except self._base.DumpError:
                self._channel.send(("done", number, "%s" % (sys.exc_info()[1],)))

    def _values(self, names: list[str]) -> object:
        """Return ({name: value},), or a text that says which name is not there."""
        missing = [name for name in names if name not in self._names]
        if missing:
            return "there is no %s" % (", ".join(missing),)
        return ({name: self._names[name] for name in names},)

    def _goes_on(self, text: str) -> bool:
        try:
            return self._compile(self._source(text), NAME, "single") is None
        except (SyntaxError, OverflowError, ValueError):
            return False

    def _source(self, text: Any) -> str:
        return text.encode("utf-8") if self._base.PY2 else text  # type: ignore[no-any-return]

    def _codes(self, number: int, text: str, is_cell: bool) -> list[Any]:
        """Compile a statement, or a cell, whose last expression is shown."""
        source = self._source(text)
        if not is_cell:
            return [self._compile(source, NAME, "single")]
        name = CELL_NAME % number
        lines = source.splitlines(True)
        linecache.cache[name] = len(source), None, lines, name  # for tracebacks
        tree = ast.parse(source, name)
        shown: list[ast.stmt] = []
        if tree.body and isinstance(tree.body[-1], ast.Expr):
            shown.append(tree.body.pop())
        codes = [compile(tree, name, "exec", 0, True)]
        if shown:
            codes.append(compile(ast.Interactive(shown), name, "single", 0, True))
        return codes

    def _run(self, number: int, text: str, is_cell: bool) -> object:
        """Run a statement or a cell; return what the answer to it says."""
        answer: Any = None
        try:
            codes = self._codes(number, text, is_cell)
            self._number = number
            try:
                self._process.is_interruptible = True
                for code in codes:
                    exec(code, self._names)
            finally:
                self._process.is_interruptible = False
        except:  # noqa: E722 - Python 2 can raise anything
            answer = self._failed(is_cell, *sys.exc_info())
        for file in sys.stdout, sys.stderr:
            try:
                file.flush()
            except Exception:  # it may be any object, or closed
                pass
        return answer

    def _failed(
        self, is_cell: bool, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None
    ) -> object:  # fmt: skip
        """Return the exit status that a statement asks for, or the text of a cell's error."""
        while traceback is not None and traceback.tb_frame.f_globals is globals():
            traceback = traceback.tb_next
        last = traceback
        while last is not None and last.tb_next is not None:
            if last.tb_next.tb_frame.f_globals is globals():  # the handler that raised an interrupt
                try:
                    last.tb_next = None
                except (AttributeError, TypeError):  # before Python 3.7
                    break
            last = last.tb_next
        if is_cell:
            return self._base.geterrortext((kind, error, traceback))
        if isinstance(error, SystemExit):
            return self._status_of(error)
        text = "KeyboardInterrupt\n"
        if not isinstance(error, KeyboardInterrupt):
            text = self._base.geterrortext((kind, error, traceback))
        try:
            sys.stderr.write(text)
        except Exception:  # the user's code may have replaced it with anything
            pass
        return None

    def _status_of(self, error: BaseException | None) -> int:
        code = getattr(error, "code", None)
        if code is None or isinstance(code, int):
            return (code or 0) & 0xFF
        sys.stderr.write("%s\n" % (code,))
        return 1

    def _completions(self, text: str) -> list[str]:
        head, dot, tail = str(text).rpartition(".")
        if not dot:
            words = list(self._names) + dir(sys.modules[len.__module__]) + list(keyword.kwlist)
        elif re.match(r"[^\W\d][\w.]*$", head):
            try:
                words = dir(eval(head, self._names))
            except Exception:  # attributes can do anything
                words = []
        else:
            words = []
        found = {head + dot + word for word in words if word.startswith(tail)}
        is_private = tail.startswith("_")
        start = len(head + dot)
        return sorted(one for one in found if is_private or one[start] != "_")


def run(channel: Channel, control: Channel) -> None:
    """Serve a shell; interrupts arrive on the channel ``control``."""
    shell = Shell(channel)
    control.setcallback(shell.interrupt)
    shell.serve()
