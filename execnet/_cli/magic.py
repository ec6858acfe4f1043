"""``%%execnet SPEC``: a cell of a notebook, or of IPython, that runs in workers.

``%load_ext execnet`` loads it.  The worker's half is ``far_shell``.  Start at ``Cells.run``.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn, Protocol

from .._features.queues import timed_inbox
from ..gateway import Gateway
from ..gateway_base import ExecnetError, RemoteError
from ..multi import Group
from .session import CommandError
from .shell import Far, Writer
from .words import parse_specs

NAME = "execnet"
_SLICE_S = 1.0  # how long a wait may last that a signal might not end
_END_S = 2.0

_USAGE = """\
%%execnet [-i NAME]... [-o NAME]... SPEC...

Run the cell in the interpreter of a worker, and show what it prints and its last value.

SPEC: where to run, such as popen, ssh=user@host, popen//python=python2.7 or 3*popen; or a variable
that is a gateway or a group. The first cell with a SPEC starts its worker; the next ones run in the
same, which keeps its variables. With several workers, each line has the id of its gateway in front.
-i NAME: a variable to copy to the workers before the cell runs.
-o NAME: a variable to copy from the worker afterwards; with several workers, a list of its values.

Interrupting the cell interrupts the code in the workers. "%unload_ext execnet" ends them.
"""


class Posted(Protocol):
    """A queue of what cells print, and of None with each answer."""

    def put(self, item: tuple[Far, str, bool] | None) -> object: ...
    def get(self, block: bool, timeout: float) -> tuple[Far, str, bool] | None: ...


class InteractiveShell(Protocol):
    """What is used of IPython's."""

    user_ns: dict[str, object]  # the variables of the notebook
    magics_manager: Any

    def register_magic_function(
        self, func: Callable[[str, str], None], magic_kind: str, magic_name: str
    ) -> None: ...


class CellError(RemoteError):
    """What a cell raised in workers; IPython shows the tracebacks of these, and none of here."""

    def _render_traceback_(self) -> list[str]:
        return str(self).split("\n")


class Poster(Writer):
    """Has the thread of the cell print; what another thread prints may land in another cell."""

    def __init__(self, posted: Posted) -> None:
        super().__init__(False)
        self._posted = posted

    def write(self, far: Far, text: str, is_error: bool) -> None:
        self._posted.put((far, text, is_error))


class Cell(Far):
    """The interpreter of one worker; ``posted`` gets what it prints, and None with each answer."""

    def __init__(self, gateway: Gateway, posted: Posted) -> None:
        self._posted = posted
        super().__init__(gateway)
        self.writer = Poster(posted)

    def close(self) -> None:
        """Have the worker run no more cells."""
        with suppress(OSError):
            self._channel.close()

    def _take(self, item: object) -> None:
        super()._take(item)
        self._posted.put(None)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _usage_error(message)


def _usage_error(text: str) -> Exception:
    """Return the exception that IPython shows as one line."""
    from IPython.core.error import UsageError

    error: Exception = UsageError(f"%%{NAME}: {text}")
    return error


class Cells:
    """Runs cells, in workers that it starts when it meets a spec for the first time, and keeps."""

    def __init__(self, shell: InteractiveShell) -> None:
        self._shell = shell
        self._group = Group()
        self._known: dict[str, list[Cell]] = {}  # by spec, or id of a gateway
        self._posted: Posted = timed_inbox(self._group.execmodel)
        self._parser = _Parser(add_help=False, allow_abbrev=False)
        self._parser.add_argument("-i", action="append", default=[])
        self._parser.add_argument("-o", action="append", default=[])
        self._parser.add_argument("words", nargs="+", metavar="SPEC")

    def run(self, line: str, cell: str) -> None:
        """Run a cell; line: what follows the name of the magic."""
        try:
            options = self._parser.parse_intermixed_args(shlex.split(line))
            given = {name: self._shell.user_ns[name] for name in options.i}
        except ValueError as exc:  # a quote without an end
            raise _usage_error(str(exc)) from None
        except KeyError as exc:
            raise _usage_error(f"there is no variable {exc.args[0]}") from None
        targets = list(dict.fromkeys(one for word in options.words for one in self._targets(word)))
        if given:
            self._ask(targets, "put", given)
        self._ask(targets, "cell", cell)
        if options.o:
            self._ask(targets, "get", options.o)
            for name in options.o:
                values = [target.answer[0][name] for target in targets]
                self._shell.user_ns[name] = values[0] if len(targets) == 1 else values

    def close(self) -> None:
        """End the workers; those of the notebook itself stay."""
        for cells in self._known.values():
            for cell in cells:
                cell.close()
        self._group.terminate(_END_S)

    def _targets(self, word: str) -> list[Cell]:
        """Return the interpreters that a word means; starts them if they do not run."""
        value = self._shell.user_ns.get(word)
        loops = sys.modules.get("execnet._aio.gateway")  # if there are such gateways
        if loops is not None and isinstance(value, loops.Gateway):
            raise _usage_error(f"{word} belongs to a loop, and cells wait: use execnet.makegateway")
        if isinstance(value, (Gateway, Group)):
            gateways = list(value) if isinstance(value, Group) else [value]
            return [self._cell_of(gateway) for gateway in gateways]
        known = self._known.get(word)
        if not known or any(cell.error is not None for cell in known):
            for cell in known or ():
                cell.gateway.exit()
            try:
                gateways = self._group.makegateways(parse_specs([word]))
            except (CommandError, ValueError) as exc:
                raise _usage_error(str(exc)) from None
            except ExecnetError as exc:  # a worker that can't be started
                raise CellError(str(exc)) from exc
            known = self._known[word] = [Cell(gateway, self._posted) for gateway in gateways]
        return known

    def _cell_of(self, gateway: Gateway) -> Cell:
        for cell in self._known.get(gateway.id, ()):
            if cell.gateway is gateway:
                return cell
        cell = Cell(gateway, self._posted)
        self._known[gateway.id] = [cell]
        return cell

    def _ask(self, targets: Sequence[Cell], kind: str, value: object) -> None:
        """Have all of them do something, and print what they print; raise what they raised."""
        writer = Writer(len(targets) > 1)
        for target in targets:
            target.ask(kind, value)
        try:
            self._print_until_answered(targets, writer)
        except KeyboardInterrupt:
            for target in targets:
                target.interrupt()
            self._print_until_answered(targets, writer)  # a second one does not wait for them
        finally:
            writer.end_lines()
        failed = [(target, target.error or target.answer) for target in targets]
        texts = [(target.id, text) for target, text in failed if isinstance(text, (str, bytes))]
        if texts:
            raise CellError("\n".join(_told(id, text, len(targets) > 1) for id, text in texts))

    def _print_until_answered(self, targets: Sequence[Cell], writer: Writer) -> None:
        while True:
            has_ended = all(target.wait(0) for target in targets)
            try:
                posted = self._posted.get(True, 0 if has_ended else _SLICE_S)
            except self._group.execmodel.Empty:
                if has_ended:
                    return
                continue
            if posted is not None:
                writer.write(*posted)


def _told(id: str, text: str | bytes, is_tagged: bool) -> str:
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return f"[{id}] {text.rstrip()}" if is_tagged else text.rstrip()


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Define ``%%execnet``: what IPython calls for ``%load_ext execnet``."""
    cells = Cells(shell)

    def execnet(line: str, cell: str) -> None:
        cells.run(line, cell)

    execnet.__doc__ = _USAGE
    execnet.cells = cells  # type: ignore[attr-defined]
    shell.register_magic_function(execnet, "cell", NAME)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """End the workers of the cells, and forget ``%%execnet``."""
    magic = shell.magics_manager.magics["cell"].pop(NAME, None)
    if magic is not None:
        magic.cells.close()
