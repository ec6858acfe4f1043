"""Credit: how many bytes may be under way between two ends, counted the same at both.

Whoever sends has at most a window of bytes under way that the receiving end has not taken.  It may
send if nothing is under way, or if that and what it wants to send fit the window together; bytes
that go out in pieces as they come (``via=``, ``output=forward``) only need room for one byte, so
the last piece may pass the window by its size.  The receiving end reports how much it has taken,
each time that this comes to a quarter of the window or, where single items count, for each item.
It knows the rule as well, so it can tell when too much is under way.

Start at ``Credit``.
"""

from __future__ import annotations


class Credit(object):
    """The count of one direction, at either end.

    sent: bytes that the sending end has sent; at the receiving end, those that have come.
    taken: bytes that the receiving end has taken; at the sending end, those that it has reported.
    Each of the two is written by one thread at a time, so they need no lock.
    """

    def __init__(self, window_bytes: int) -> None:
        self.window_bytes = window_bytes
        self.sent = self.taken = 0
        self._untold = 0  # bytes that were taken and not reported yet

    @property
    def under_way(self) -> int:
        """How many bytes are under way, or unread at the other end."""
        return max(0, self.sent - self.taken)

    # the sending end

    def has_room(self, size: int = 1) -> bool:
        """Whether this many bytes may be sent now; called by whoever counts ``sent``."""
        if self.taken > self.sent:  # an interrupt has kept bytes from being counted
            self.sent = self.taken
        under_way = self.sent - self.taken
        return not under_way or under_way + size <= self.window_bytes

    # the receiving end

    def take(self, size: int) -> int:
        """Count bytes as taken; return how many to report now, 0 if that has time.

        A negative size takes back what was counted.
        """
        self.taken += size
        self._untold += size
        if self._untold < self.window_bytes // 4:
            return 0
        untold, self._untold = self._untold, 0
        return untold

    def is_exceeded(self, allowance: int) -> bool:
        """Whether more has come than the window and this many bytes, which the rule may add."""
        return self.sent - self.taken > self.window_bytes + allowance
