"""Where environments are, and which of them are complete.

All of one name and key are in one folder, ``venvs/NAME-KEY``, numbered from 1: ``1`` is the
environment, at its final path; ``1.done`` is written last and says that it is complete; ``1.held``
is locked by whoever uses it, ``lock`` by whoever makes one.  A number is never used twice: a
process that outlived its maker may still write there.
This file is shipped.  Start at ``newest``.
"""

from __future__ import annotations

import io
import os

from .quick import native, root_folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypedDict

    from ...gateway_base import Channel

    Marker = dict[str, str]  # what tells of something that is complete
    Found = tuple[int, Marker]  # the number of the newest one that is complete

    class Holding(TypedDict, total=False):
        """What comes with a ``FindRequest`` for one of the two."""

        hold: Channel  # of ``find``
        told: Channel  # of ``start``, as is what follows
        args: list[str]

    class FindRequest(Holding):
        """What ``find`` looks for, and ``start`` starts a worker in."""

        name: str
        root: str
        recreate: bool
        digest: str
        python: str
        python_search: list[str]
        core: str
        start: str

    class FindAnswer(TypedDict, total=False):
        """What there is; only an error and a key if there is no interpreter."""

        error: str
        key: str
        facts: list[str]
        interpreter: str
        found: bool
        newest: int
        core: str
        has_core: bool
        start: str
        has_start: bool
        venv: str
        python: str
        tool: str

    class LayersRequest(TypedDict, total=False):
        """What ``layers`` takes besides a ``BuildRequest``."""

        leaves_out: bool

    class BuildRequest(LayersRequest):
        """What ``build`` makes; ``layers`` and ``fetch`` take the same."""

        root: str
        name: str
        key: str
        newer_than: int
        facts: list[str]
        interpreter: str
        ladder: list[str]
        timeout: float
        lines: list[str]
        constraints: list[str]
        shown: str
        index: Channel
        offline: bool | str
        default_index: str
        index_url: str
        asks_index: bool
        has_index: bool
        links: bool | str
        relays: bool

    class UseRequest(TypedDict, total=False):
        """What ``use`` does, by its kind."""

        kind: str
        name: str
        root: str
        digest: str  # of a layer
        key: str  # of a tree, or a launcher
        layer: str  # of a launcher, as is the next
        python: str
        tree: str  # of what was sent, as is what follows
        sent: list[str]
        folder: str
        changed: bool

    class UseAnswer(TypedDict, total=False):
        """What it has done, or what is known of a layer."""

        facts: list[str]
        key: str
        found: bool
        newest: int
        interpreter: str
        leaves_out: bool
        folder: str
        tool: str
        launcher: str

    class PruneRequest(TypedDict, total=False):
        """What ``kept`` is told besides a ``KeptRequest`` if it is to remove something."""

        unused_s: float
        names: list[str]
        dry_run: bool

    class KeptRequest(PruneRequest):
        """What ``kept`` lists, or removes."""

        root: str
        prune: bool

    class KeptEntry(TypedDict):
        """One thing that is kept."""

        kind: str
        folder: str
        number: int
        name: str
        path: str
        state: str
        python: str
        tool: str
        requirements: str
        used: float
        bytes: int

PRIVATE = 0o700
LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
HEX = frozenset("0123456789abcdef")


def text_of(value: str | bytes) -> str:
    """Return a ``str`` of this Python as text."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def is_name(text: str) -> bool:
    """Whether a text is a name of an environment or a project."""
    return 0 < len(text) <= 64 and text[0] in LETTERS and LETTERS.union("._-").issuperset(text)


def is_key(text: str) -> bool:
    """Whether a text is a key, and so no path."""
    return len(text) == 24 and HEX.issuperset(text)


def key_folder(root: str, kind: str, name: str, key: str) -> str:
    """Return the folder for a name and a key; kind: such as "venvs"."""
    name, key = native(name), native(key)
    if not is_name(name) or not is_key(key):
        raise ValueError("not the name of an environment: %r" % (name,))
    return os.path.join(root_folder(root), kind, "%s-%s" % (name, key))


def core_path(root: str, key: str) -> str:
    """Return the file that workers of an interpreter are made of."""
    return os.path.join(root_folder(root), "core", key)


def cache_lock(root: str) -> str:
    """Return the file that is held, shared, while something is made with the installers' caches."""
    return os.path.join(root, "caches.held")


def python_of(venv: str) -> str:
    """Return the path of an environment's interpreter."""
    names = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
    return os.path.join(venv, *names)


def numbers_in(folder: str) -> list[int]:
    """Return the numbers used in a folder, complete or not, the newest first."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    heads = {name.partition(".")[0] for name in names}
    return sorted((int(head) for head in heads if head.isdigit()), reverse=True)


def read_marker(folder: str, number: int) -> Marker | None:
    """Return the content of an environment's marker, None if it is not complete."""
    try:
        with io.open(os.path.join(folder, "%d.done" % number), encoding="utf-8") as file:
            lines = file.read().split(u"\n")
    except (EnvironmentError, ValueError):
        return None
    marker = {line.partition(u"\t")[0]: line.partition(u"\t")[2] for line in lines[:-2]}
    return marker if lines[-2:] == [u"done", u""] else None


def newest(folder: str) -> Found | None:
    """Return (number, marker) of the one to use, or None."""
    for number in numbers_in(folder):
        marker = read_marker(folder, number)
        if marker is not None:
            return number, marker
    return None


def newest_venv(folder: str) -> Found | None:
    """Return the same for environments.

    One whose interpreter can't run any more, as the one it was made from is gone, does not count.
    """
    found = newest(folder)
    runs = found is not None and os.access(python_of(os.path.join(folder, str(found[0]))), os.X_OK)
    return found if runs else None
