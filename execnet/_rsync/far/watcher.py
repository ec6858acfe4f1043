"""How a source learns what happens to one target, and how a target can fail.

This file is shipped for ``RSync.pull`` too: it keeps to what Python 2.7 and today's Python
both accept.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class TargetFailed(Exception):
    """A target cannot write any more: (path, errno, reason)."""


class Watcher(object):
    """Observes one target, in the pump's thread.  Paths are relative to the root."""

    def asked(self, count: int) -> None:
        """The target asked for a file of this many bytes."""

    def sending(self, paths: Sequence[bytes]) -> None:
        """Content of these files is about to be sent, in whole or in part."""

    def sent(self, count: int) -> None:
        """This many bytes of content were sent."""

    def moved(self, path: bytes, count: int) -> None:
        """This many bytes of files are done: sent, or found to be there."""

    def listed(self, total: int) -> None:
        """The target knows how many bytes it needs."""

    def done(self, sizes: Sequence[int]) -> None:
        """Files of these sizes are in place at the target."""

    def skipped(self, path: bytes, reason: bytes) -> None:
        """An entry could not be written there, or could not be read here."""

    def plans(self) -> bool:
        """Return whether this is a dry run."""
        return True

    def planned(self, paths: Sequence[bytes], deleted: Sequence[bytes]) -> None:
        """A dry run would send the first and delete the second."""

    def spared(self, paths: Sequence[bytes]) -> bytes:
        """Return a byte for each path that the target would delete: 1 if it has to stay."""
        return b"\0" * len(paths)

    def ended(self, unchanged: int, settled: int, deleted: int, refused: Sequence[int]) -> None:
        """The target is done; refused: how many times, modes, owners and links it could not set."""

    def accept(self, path: bytes) -> bool:
        """Return whether an entry is included; asked only for copies in place of links."""
        return True
