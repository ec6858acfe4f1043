"""What a target removes: names that the source does not have, and what is in the way of others.

This file is shipped: it keeps to what Python 2.7 and today's Python both accept.
Start at ``Sweeping``.
"""

from __future__ import annotations

import os
import stat

from ._rsync_places import at, path_of
from ._rsync_removal import Removal, is_empty
from ._rsync_requests import Requests
from ._rsync_temps import PREFIX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Sweeping(Requests):
    """Decides what may go, and lets it go; a dry run only tells it."""

    def __init__(self, send: Callable[[Any], object], options: dict[str, Any]) -> None:
        Requests.__init__(self, send, options)

    # what the source does not have

    def _sweep(self, directory: Any, names: Any, is_complete: bool) -> None:
        """Remove what was not announced, if that is wanted, and what dead runs have left."""
        doomed = []
        for name in sorted(names):
            if name.startswith(PREFIX) and self._is_left_over(directory, name):
                self._deleted -= self._remove(directory, [name])
            elif self._delete and is_complete:
                doomed.append(name)
        if doomed:
            self._remove(directory, doomed)

    def _is_left_over(self, directory: Any, name: bytes) -> bool:
        try:
            return self._temps.is_left_over(self._places.handle(directory), name)
        except OSError:
            return False

    def _remove(self, directory: Any, names: Any) -> int:
        """Remove names of a directory with all that is below them; return how many went."""
        removal = None
        try:
            removal = self._removal(directory)
            for name in names:
                try:
                    removal.remove(name)
                except OSError as exc:
                    self._note(directory.entry(), exc, b"deleting " + name + b": ")
        except OSError as exc:
            self._note(directory.entry(), exc)
        count = removal.count if removal is not None and not self._dry_run else 0
        if count:
            directory.settled = False
        self._deleted += count
        return count

    def _removal(self, directory: Any) -> Removal:
        tell = (lambda path, _: self.plan_deletion(path)) if self._dry_run else None
        path = path_of(directory.parent, directory.name)
        return Removal(self._places.handle(directory), path, None, tell)

    # what is in the way

    def _may_replace(self, entry: Any, found: Any) -> bool:
        """Tell whether what has an entry's name, and is of another kind, may go; note if not."""
        directory, number, name = entry[:3]
        if number in self._replaced:
            return True
        is_directory = stat.S_ISDIR(found.st_mode)
        handle = self._places.handle(directory)
        if is_directory and not self._delete and not is_empty(handle, name):
            self.skip(entry, b"a directory that is not empty has its name")
            return False
        self._replaced[number] = is_directory
        if self._dry_run:
            self._removal(directory).remove(name)
        return True

    def _clear(self, directory: Any, name: bytes) -> None:
        """Remove a directory that is in the way; all that is in it only with ``delete``."""
        if not self._delete:
            path, where = at(self._places.handle(directory), name)
            os.rmdir(path, **where)
            self._deleted += 1
            return
        removal = self._removal(directory)
        try:
            removal.remove(name)
        finally:
            self._deleted += removal.count

    def _make_directory(self, directory: Any, name: bytes, found: Any) -> None:
        """Make a directory; what has its name and is none goes when it is sure to be replaced."""
        path, where = at(self._places.handle(directory), name)
        if found is None:
            os.mkdir(path, 0o700, **where)
            return
        _, temp = self._temps.make(directory, lambda path, **at: os.mkdir(path, 0o700, **at))
        try:
            os.unlink(path, **where)
            self._deleted += 1
            self._temps.keep(directory, temp, name)
        except OSError:
            self._temps.drop(temp)
            raise
