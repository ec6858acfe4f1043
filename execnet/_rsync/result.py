"""The outcome of a synchronisation: ``Result`` for all targets, ``TargetResult`` for one."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Protocol

from ..gateway_base import ExecnetError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..gateway import Gateway

LISTED_MAX = 100_000  # items of a list in a result, which a far side could make endless


def printable(text: str) -> str:
    """Return a text without characters that confuse a terminal or cannot be encoded.

    Control characters, and bytes of names that are not UTF-8, are escaped.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def text_of(reason: bytes) -> str:
    """Return a reason that the far side told, whatever bytes it has."""
    return reason.decode("utf-8", "backslashreplace")


def printable_lines(text: str) -> str:
    """Return the same of a text that may have several lines, such as a traceback."""
    return "\n".join(map(printable, text.expandtabs().split("\n")))


def _escaped(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # a byte that could not be decoded
        return f"\\x{ord(char) - 0xDC00:02x}"
    return repr(char)[1:-1]


def print_line(text: str) -> None:
    """Print a line, whatever names are in it and whatever stdout can encode."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(printable(text).encode(encoding, "backslashreplace").decode(encoding))


class RSyncError(ExecnetError, OSError):
    """A target, or the source of a pull, had to stop; the text says which one and why.

    Control characters are escaped, since parts of the text may come from the far side.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(printable(arg) if isinstance(arg, str) else arg for arg in args))


class Progress(Protocol):
    """The type of ``progress=``.  It is called in the thread that called ``send`` or ``pull``."""

    def __call__(self, total: int, done: int, current: str, /) -> object:
        """Take how many bytes there are to transfer, as far as known, and how many are done.

        current: the path of the file that is being sent, below the source.
        """


@dataclass(frozen=True)
class Skipped:
    """Something that was left out, and why.

    path: below the source; empty for a source that is a single file.
    """

    path: str
    reason: str


@dataclass
class TargetResult:
    """What one target received.

    Each entry is counted once: in ``files_sent`` if content was sent, in whole or in part; in
    ``settled`` if only a mode, a time, an owner or a hard link was set; in ``unchanged`` if nothing
    had to be done.  ``bytes_sent`` counts the content that travelled.  A dry run fills ``planned``
    with what it would send or make, and ``planned_deletions``; the path of a source that is a
    single file is empty.  ``refused`` says for how many entries the target could not set "times",
    "modes" or "owners", or make "links", for which it has copies; their content has arrived.  Each
    list holds at most 100,000 items; ``unlisted`` counts, by the name of the list, the items beyond
    that.
    """

    gateway: Gateway
    destdir: str
    files_sent: int = 0
    bytes_sent: int = 0
    settled: int = 0
    unchanged: int = 0
    deleted: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    planned: list[str] = field(default_factory=list)
    planned_deletions: list[str] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)
    unlisted: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    error: BaseException | None = None

    @property
    def ok(self) -> bool:
        """Whether everything arrived: no error, nothing skipped, nothing refused."""
        return self.error is None and not self.skipped and not self.refused

    def add(self, name: str, item: Skipped | str) -> None:
        """Add to the list of that name, or count the item if that is full."""
        items = getattr(self, name)
        if len(items) < LISTED_MAX:
            items.append(item)
        else:
            self.unlisted[name] = self.unlisted.get(name, 0) + 1

    def take_refusals(self, times: int, modes: int, owners: int, links: int) -> None:
        """Note for how many entries the target could not set each of these."""
        counts = {"times": times, "modes": modes, "owners": owners, "links": links}
        self.refused = {name: count for name, count in counts.items() if count}


@dataclass
class Result:
    """What all targets received, in the order in which they were added."""

    targets: list[TargetResult]

    @property
    def ok(self) -> bool:
        """Whether everything arrived everywhere."""
        return all(target.ok for target in self.targets)
