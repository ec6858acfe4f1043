"""What a target removes: names that the source does not have, and whatever is in an entry's way.

This file is shipped: it keeps to what Python 2.7 and today's Python both accept.
Start at ``Sweeping``.
"""

from __future__ import annotations

import errno
import os
import stat
from abc import abstractmethod
from collections import deque

from .apart import Apart
from .bases import Bases
from .places import at, path_of
from .removal import Removal, is_empty
from .rules import Rules
from .temps import parts_of
from .wire import DOOMED, Violation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .places import Directory, Entry
    from .removal import Spare, Tell
    from .wire import Options, Say

ASKED_MAX = 1000  # paths in one question
FULL = b"a non-empty directory has its name"
GUARDED = b"a directory that holds excluded entries has its name"


class Sweeping(Bases):
    """Decides what may be removed, and removes it; a dry run only reports it.

    Rules for what stays are applied here.  The filter of the source's user has to be asked: a
    question is (paths, their answers, what to call with a function that says what stays).
    """

    def __init__(self, send: Say, options: Options) -> None:
        Bases.__init__(self, send, options)
        self._spare: Spare | None = Rules(options["rules"]).leaves_out if options["rules"] else None
        self._asks = options["asks"]
        self._apart = Apart(options.get("source"))
        self._keeps_apart = options.get("keeps_apart", False)
        self._is_left_out = options.get("is_left_out", False)
        # in the order in which the answers will come
        self._questions: deque[tuple[list[bytes], bytearray, Callable[[Spare], object]]] = deque()

    @abstractmethod
    def _try(self, maker: Callable[..., object], entry: Entry, *args: object) -> None:
        """Process one entry; what the host refuses is noted, and the rest goes on."""

    def _check_place(self) -> None:
        """Raise OSError if there is no such home, or if the source would be in danger."""
        if self._has_no_home:
            raise OSError(errno.ENOENT, "no such home directory")
        self._apart.check(self._dest, self._delete, self._keeps_apart, self._is_left_out)

    # what the source does not have

    def _sweep(self, directory: Directory, names: Iterable[bytes], is_complete: bool) -> None:
        """Remove what was not announced, if that is wanted, and what dead runs left."""
        doomed = []
        for name in sorted(names):
            if parts_of(name):
                if self._is_left_over(directory, name):  # else another run is at work
                    count = self._remove(directory, [name], None)
                    self._deleted -= count  # it was none of the target's own
            elif self._delete and is_complete:
                doomed.append(name)
        if doomed and self._asks:
            self._ask_what_stays(
                directory, doomed, lambda spare: self._remove(directory, doomed, spare)
            )
        elif doomed:
            self._remove(directory, doomed, self._spare)

    def _is_left_over(self, directory: Directory, name: bytes) -> bool:
        try:
            return self._temps.is_left_over(self._places.handle(directory), name)
        except OSError:
            return False

    def _remove(
        self, directory: Directory, names: Iterable[bytes], spare: Spare | None,
        tell: Tell | None = None
    ) -> int:  # fmt: skip
        """Remove names of a directory and everything below them; return how many were removed."""
        if tell is None and self._dry_run:
            tell = self._tell
        try:
            removal = self._removal(directory, spare, tell)
        except OSError as exc:
            self._note(directory.entry(), exc)
            return 0
        for name in names:
            try:
                removal.remove(name)
            except OSError as exc:
                self._note(directory.entry(), exc, b"deleting " + name + b": ")
        if tell is not None or not removal.count:
            return 0
        directory.settled = False
        self._deleted += removal.count
        return removal.count

    def _removal(self, directory: Directory, spare: Spare | None, tell: Tell | None) -> Removal:
        path = path_of(directory.parent, directory.name)
        handle = self._places.handle(directory)
        return Removal(handle, path, spare, tell, self._apart.is_source)

    def _tell(self, path: bytes, _: bool) -> None:
        self.plan_deletion(path)

    # what the source's user wants to stay

    def _ask_what_stays(
        self, directory: Directory, names: list[bytes], then: Callable[[Spare], object]
    ) -> bool:  # fmt: skip
        """Ask about names and everything below them; ``then`` gets a function that says what stays.

        Returns False if all of it stays anyway.
        """
        paths: list[bytes] = []
        self._remove(directory, names, self._spare, lambda path, _: paths.append(path))
        if not paths:
            return False
        self._questions.append((paths, bytearray(), then))
        for start in range(0, len(paths), ASKED_MAX):
            self._out.say(DOOMED, paths[start : start + ASKED_MAX])
        return True

    def _on_spared(self, spared: bytes) -> None:
        if not self._questions:
            raise Violation("an answer that was not asked for")
        paths, answers, then = self._questions[0]
        answers += spared
        if len(answers) > len(paths):
            raise Violation("%d answers about %d paths" % (len(answers), len(paths)))
        if len(answers) == len(paths):
            self._questions.popleft()
            doomed = {path for path, stays in zip(paths, answers) if not stays}
            then(lambda path, _: path not in doomed)

    # what is in the way

    def _may_replace(
        self, entry: Entry, found: os.stat_result, maker: Callable[..., object], *args: object
    ) -> bool:  # fmt: skip
        """Return whether something of another kind with an entry's name may go; note it if not.

        It says no as well when the source has to be asked first; then ``maker`` is called again.
        """
        directory, number, name = entry[:3]
        if number in self._replaced:
            return True
        is_directory = stat.S_ISDIR(found.st_mode)
        if is_directory and not self._delete:
            if not is_empty(self._places.handle(directory), name):
                self.skip(entry, FULL)
                return False
        elif is_directory and self._asks:
            if not self._ask_what_stays(
                directory, [name], lambda spare: self._replace(entry, spare, maker, args)
            ):
                self.skip(entry, GUARDED)
            return False
        elif is_directory and not self._can_go(directory, name, self._spare):
            self.skip(entry, GUARDED)
            return False
        self._replaced[number] = is_directory, self._spare
        if self._dry_run:
            self._remove(directory, [name], self._spare)
        return True

    def _replace(
        self, entry: Entry, spare: Spare | None, maker: Callable[..., object],
        args: tuple[object, ...]
    ) -> None:  # fmt: skip
        """Go on with an entry that is in conflict with a directory, now that we have asked."""
        directory, number, name = entry[:3]
        try:
            can_go = self._can_go(directory, name, spare)
        except OSError as exc:
            self._note(entry, exc)
            return
        if not can_go:
            self.skip(entry, GUARDED)
            return
        self._replaced[number] = True, spare
        if self._dry_run:
            self._remove(directory, [name], spare)
        self._try(maker, entry, *args)

    def _can_go(self, directory: Directory, name: bytes, spare: Spare | None) -> bool:
        if spare is None:
            return True
        return self._removal(directory, spare, lambda path, _: None).remove(name)

    def _clear(self, directory: Directory, name: bytes, spare: Spare | None) -> None:
        """Remove a directory that is in the way; its content is removed only with ``delete``."""
        if not self._delete:
            path, where = at(self._places.handle(directory), name)
            os.rmdir(path, **where)
            self._deleted += 1
            return
        removal = self._removal(directory, spare, None)
        try:
            removal.remove(name)
        finally:
            self._deleted += removal.count

    def _make_directory(
        self, directory: Directory, name: bytes, found: os.stat_result | None, mode: int
    ) -> bool:  # fmt: skip
        """Make a directory; what else has its name is removed once it is sure to be replaced.

        Returns False if another run has made it just now.
        """
        path, where = at(self._places.handle(directory), name)
        if found is None:
            try:
                os.mkdir(path, mode, **where)
            except OSError as exc:
                if exc.errno != errno.EEXIST or not stat.S_ISDIR(os.lstat(path, **where).st_mode):
                    raise
                return False
            return True
        _, temp = self._temps.make(directory, lambda path, **at: os.mkdir(path, mode, **at))
        try:
            os.unlink(path, **where)
            self._deleted += 1
            self._temps.keep(directory, temp, name)
        except OSError:
            self._temps.drop(temp)
            raise
        return True
