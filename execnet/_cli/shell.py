"""``execnet shell``: an interactive prompt for the interpreters of workers.

The worker's half is ``far_shell``.  All of this runs in the main thread, which gets Ctrl-C; what
workers send is handled in the receiver threads.  Start at ``_run``.
"""

from __future__ import annotations

import argparse
import codecs
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

from .. import _folders
from .._errors import indented
from ..gateway import Gateway
from ..gateway_base import ExecnetError, new_lock, printable
from . import far_shell
from .session import END_S, STATUS_FAILED, WatchedGroup, run_there
from .words import SPEC_HELP, Commands, add_command, parse_specs

_DESCRIPTION = f"""\
Start one interpreter per SPEC, all at once, and use them as at Python's own prompt: with history,
completion with the tab key, and multi-line statements. Output appears as it is written. Ctrl-C
interrupts the running statement; Ctrl-D or exit() ends the shell.

{SPEC_HELP}"""
_EPILOG = """\
With several SPECs each statement runs in all of them, and each line that is printed comes after
the id of its gateway.

  %ID [CODE]   use one gateway from now on, or run this line there
  %all [CODE]  use all of them from now on, or run this line in all
  %who         list the gateways

exit status: that of exit(N), else 0; 1 if no interpreter is left, or one could not be started; 2 if
the command line is wrong; 130 after a third Ctrl-C, for code that can't be interrupted.

examples:
  execnet shell ssh=user@host
  execnet shell 'ssh=node[1-4]'
  execnet shell popen//python=python2.7
"""
_HISTORY_LINES = 10_000
_SLICE_S = 0.05  # how soon a Ctrl-C is passed on
_CTRL_C_MOST = 3  # for one statement, until the shell gives up
_ANSWER_S = 5.0  # for completions
_KEPT = re.compile(r"(\x1b\[[0-9;]*m|\r)")  # colours and progress bars are let through
_LIFE_S = 1.0  # how often the main thread looks up from a wait


def add_parser(subparsers: Commands) -> None:
    """Add the parser of ``execnet shell``."""
    parser = add_command(
        subparsers,
        "shell",
        "an interactive prompt for one or several interpreters",
        _DESCRIPTION,
        _EPILOG,
        usage="execnet shell SPEC... [--json]",
    )
    parser.add_argument("words", nargs="+", metavar="SPEC", help="where to run")
    parser.add_argument(
        "--json", action="store_true", help="print each line of output as a JSON object"
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    group = WatchedGroup()
    try:
        far = [Far(gateway) for gateway in group.start_all(parse_specs(args.words))]
        return Prompt(far, args.json).talk()
    except BaseException:
        group.kill()
        raise
    finally:
        group.terminate(END_S)


@contextmanager
def _counted_interrupts() -> Iterator[list[int]]:
    """Count Ctrl-C, instead of having it raise wherever this thread is."""
    pressed: list[int] = []
    try:
        before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    except ValueError:  # no signal reaches another thread
        yield pressed
        return
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


class Far:
    """The interpreter of one worker, and its answers.

    ``_answered`` is set when the answer to the last request has arrived, or when none will come;
    ``take`` runs in a receiver thread.  ``writer`` gets the output.
    """

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.id = gateway.id
        self.error: str | None = None  # why it is gone
        self.answer: Any = None
        self.writer: Writer | None = None
        self._number = 0
        self._answered = threading.Event()
        self._decoders = {fd: codecs.getincrementaldecoder("utf-8")("replace") for fd in (1, 2)}
        self._control = gateway.newchannel()
        self._channel = run_there(gateway, "the shell", far_shell, control=self._control)
        self._channel.reconfigure(py2str_as_py3str=False)  # output is bytes
        self._channel.setcallback(self._take, endmarker=None)

    def ask(self, kind: str, what: object) -> None:
        """Send a request about something; ``wait`` comes next."""
        self._number += 1
        self.answer = None
        self._answered.clear()
        if self.error is not None:
            self._answered.set()
            return
        with suppress(OSError):  # its end is about to be reported
            self._channel.send((kind, self._number, what))

    def wait(self, timeout_s: float = _LIFE_S) -> bool:
        """Whether the answer has arrived, or none will come."""
        return self._answered.wait(timeout_s)

    def interrupt(self) -> None:
        """Interrupt the running statement; the answer says whether that helped."""
        with suppress(OSError):
            self._control.send(self._number)

    def _take(self, item: Any) -> None:
        if item is None:
            self._end()
            return
        try:
            kind, number, value = item
            if kind in (b"output", "output"):
                fd, data = value
                if self.writer is not None:
                    self.writer.write(self, self._decoders[fd].decode(data), fd == 2)
            elif number == self._number:
                self.answer = value
                self._answered.set()
        except (TypeError, ValueError, KeyError):
            self.error = "it broke the protocol of the shell"
            self._answered.set()

    def _end(self) -> None:
        try:
            self._channel.waitclose(0)
            self.error = "it has ended"
        except (ExecnetError, EOFError) as exc:
            self.error = str(exc)
        self._answered.set()


class Writer:
    """Prints what interpreters print; for several, whole lines after the ids of their gateways.

    As JSON, each line is an object, as ``execnet exec`` prints them.  ``_lock`` keeps their outputs
    apart.
    """

    def __init__(self, is_tagged: bool, as_json: bool = False) -> None:
        self._is_tagged = is_tagged
        self._as_json = as_json
        self._has_colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self._rest: dict[tuple[str, bool], str] = {}  # by gateway, and whether it is of stderr
        self._lock = new_lock()

    def write(self, far: Far, text: str, is_error: bool) -> None:
        """Print some output, to stderr or stdout as it was there."""
        with self._lock:
            if not (self._is_tagged or self._as_json):
                text = _harmless(text)
                self._print(self.coloured(text, 31) if is_error else text)
                return
            place = far.id, is_error and self._as_json
            *lines, self._rest[place] = (self._rest.get(place, "") + text).split("\n")
            for line in lines:
                self._print_line(*place, line)

    def end_lines(self) -> None:
        """Print an incomplete last line, as nothing more will come."""
        with self._lock:
            rests, self._rest = self._rest, {}
            for place, rest in rests.items():
                if rest:
                    self._print_line(*place, rest)

    def _print_line(self, id: str, is_error: bool, line: str) -> None:
        if self._as_json:
            stream = "stderr" if is_error else "stdout"
            self._print(json.dumps({"gateway": id, "stream": stream, "line": line}) + "\n")
        else:
            self._print(f"{self.coloured(f'[{id}]', 36)} {_harmless(line)}\n")

    def coloured(self, text: str, colour: int) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._has_colours else text

    def say(self, text: str, id: str | None = None) -> None:
        """Print a line of the shell's own; id: the gateway that it is about."""
        with self._lock:
            if self._as_json:
                self._print(json.dumps({"gateway": id, "error": text}) + "\n")
                return
            text = text if id is None else f"[{id}] {indented(text)}"
            self._print(f"{self.coloured(printable(text), 31)}\n")

    def describe(self, gateways: Sequence[Far]) -> None:
        """Print a line about each gateway."""
        with self._lock:
            for far in gateways:
                text = far.gateway.describe()
                if self._as_json:
                    text = json.dumps({"gateway": far.id, "description": text})
                self._print(f"{printable(text)}\n")

    def _print(self, text: str) -> None:
        encoding = sys.stdout.encoding or "ascii"
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()


def _harmless(text: str) -> str:
    """Return what a worker wrote, without control sequences other than colours and the like."""
    parts = _KEPT.split(text.replace("\r\n", "\n"))
    return "".join(part if number % 2 else printable(part) for number, part in enumerate(parts))


class Prompt:
    """Reads lines, and runs them in the current gateways."""

    def __init__(self, far: Sequence[Far], as_json: bool) -> None:
        self._all = list(far)
        self._targets = list(far)
        self._lines: list[str] = []  # of an incomplete statement
        self._is_typed = sys.stdin.isatty()
        self._as_json = as_json
        self._writer = Writer(len(far) > 1, as_json)
        for one in far:
            one.writer = self._writer

    def talk(self) -> int:
        """Read and run until the end; return the exit status."""
        readline = _Readline(self._complete) if self._is_typed else None
        if self._is_typed and not self._as_json:
            self._greet()
        try:
            while True:
                try:
                    line = input(self._prompt())
                except EOFError:
                    return self._end()
                except KeyboardInterrupt:
                    self._lines = []
                    print("\nKeyboardInterrupt")
                    continue
                status = self._take(line)
                if status is not None:
                    return status
        finally:
            if readline is not None:
                readline.save()

    def _end(self) -> int:
        """Run an unfinished statement at the end of the input; return the exit status."""
        if self._is_typed:
            print()
        elif self._lines and self._living():
            return self._execute(self._living(), "\n".join([*self._lines, ""])) or 0
        return 0

    def _greet(self) -> None:
        self._writer.describe(self._all)
        print("Ctrl-C interrupts the running code, Ctrl-D ends the shell")

    def _prompt(self) -> str:
        if not self._is_typed:
            return ""
        if self._lines:
            return "... "
        name = "" if len(self._all) == 1 else "all " if len(self._targets) > 1 else ""
        if not name and len(self._all) > 1:
            name = f"{self._targets[0].id} "
        return f"{name}>>> "

    def _take(self, line: str) -> int | None:
        """Execute a line; return the exit status if it ends the shell."""
        if not self._lines and line.startswith("%"):
            return self._command(line[1:])
        if not self._lines and not line.strip():
            return None
        self._lines.append(line)
        text = "\n".join(self._lines)
        self._targets = [far for far in self._targets if far.error is None] or self._living()
        if not self._targets:
            return STATUS_FAILED
        if self._goes_on(text):
            return None
        self._lines = []
        return self._execute(self._targets, text)

    def _goes_on(self, text: str) -> bool:
        """Whether a statement continues in the next line, according to the first target."""
        first = self._targets[0]
        first.ask("check", text)
        while not first.wait():
            pass
        return first.answer is True

    def _living(self) -> list[Far]:
        return [far for far in self._all if far.error is None]

    def _command(self, words: str) -> int | None:
        name, _, text = words.strip().partition(" ")
        chosen = self._living() if name == "all" else [far for far in self._all if far.id == name]
        if name == "who":
            self._writer.describe(self._all)
        elif not chosen:
            ids = ", ".join(f"%{far.id}" for far in self._all)
            self._writer.say(f"there is no %{name}; there are %all, %who, {ids}")
        elif text.strip():
            return self._execute(chosen, text.strip())
        else:
            self._targets = chosen
        return None

    def _execute(self, targets: Sequence[Far], text: str) -> int | None:
        """Run a statement; return the exit status if it ends the shell."""
        with _counted_interrupts() as pressed:
            for far in targets:
                far.ask("run", text)
            passed_on = 0
            for far in targets:
                while not far.wait(_SLICE_S):
                    if len(pressed) >= _CTRL_C_MOST:
                        self._writer.say(
                            "the code can't be interrupted, so the shell ends it and itself"
                        )
                        raise KeyboardInterrupt
                    if passed_on < len(pressed):
                        passed_on = len(pressed)
                        for one in targets:
                            one.interrupt()
        self._writer.end_lines()
        for far in [far for far in targets if far.error is not None]:
            self._writer.say(str(far.error), far.id)
        if not self._living():
            return STATUS_FAILED
        statuses = [far.answer for far in targets if isinstance(far.answer, int)]
        return max(statuses) & 0xFF if statuses else None

    def _complete(self, text: str) -> list[str]:
        living = [far for far in self._targets if far.error is None]
        if not living or not text.strip():
            return []
        living[0].ask("complete", text)
        answer = living[0].answer if living[0].wait(_ANSWER_S) else None
        words = answer if isinstance(answer, list) else []
        return [word.decode() if isinstance(word, bytes) else str(word) for word in words]


class _Readline:
    """History and completion, if Python has the module for it."""

    def __init__(self, complete: Callable[[str], list[str]]) -> None:
        self._path = _folders.history_file()
        self._words: list[str] = []
        self._ask = complete
        try:
            import readline
        except ImportError:
            self._readline: ModuleType | None = None
            return
        self._readline = readline
        with suppress(OSError):
            readline.read_history_file(self._path)
        readline.set_completer(self._complete)
        readline.set_completer_delims(" \t\n`~!@#$%^&*()-=+[{]}\\|;:'\",<>/?")
        is_libedit = "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")

    def _complete(self, text: str, state: int) -> str | None:
        if not text.strip():
            return "    " if state == 0 else None
        if state == 0:
            self._words = self._ask(text)
        return self._words[state] if state < len(self._words) else None

    def save(self) -> None:
        """Save the history for the next time, if there is a place for it."""
        if self._readline is None:
            return
        self._readline.set_completer(None)
        with suppress(OSError):
            os.makedirs(os.path.dirname(self._path), 0o700, exist_ok=True)
            self._readline.set_history_length(_HISTORY_LINES)
            os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600))
            self._readline.write_history_file(self._path)
