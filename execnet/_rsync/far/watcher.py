"""What a source is told of one target, and how a target can fail.

This file is shipped for ``RSync.pull`` too: it keeps to what Python 2.7 and today's Python
both accept.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class TargetFailed(Exception):
    """A target can write nothing more: (path, errno, reason)."""


class Watcher(object):
    """Is told what happens to one target, in the pump's thread.  Paths are below the root."""

    def asked(self, count: int) -> None:
        """The target asked for a file of so many bytes."""

    def sending(self, paths: Any) -> None:
        """Content of these files is about to be sent, in whole or in part."""

    def sent(self, count: int) -> None:
        """So many bytes of content were sent."""

    def moved(self, path: bytes, count: int) -> None:
        """So many bytes of files were dealt with, sent or found to be there."""

    def listed(self, total: int) -> None:
        """The target knows what it needs, this many bytes."""

    def done(self, sizes: Any) -> None:
        """Files of these sizes are in place at the target."""

    def skipped(self, path: bytes, reason: bytes) -> None:
        """An entry could not be had there, or not be read here."""

    def plans(self) -> bool:
        """Tell whether this is a dry run."""
        return True

    def planned(self, paths: Any, deleted: Any) -> None:
        """A dry run would send the first and delete the second."""

    def spared(self, paths: Any) -> bytes:
        """Return a byte for each path that the target is to delete: 1 if it has to stay."""
        return b"\0" * len(paths)

    def ended(self, unchanged: int, settled: int, deleted: int, refused: Any) -> None:
        """The target is done; refused: on how many entries it set no time, mode or owner."""

    def accept(self, path: bytes) -> bool:
        """Tell whether an entry takes part; asked only for copies in place of links."""
        return True
