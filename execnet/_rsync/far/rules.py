"""Which paths are synchronised according to rules: the first that matches counts.

This file is shipped: it keeps to what Python 2.7 and today's Python both accept.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .wire import Rule


class Rules(object):
    """rules: (regular expression for a path, whether it is included, for directories only)."""

    def __init__(self, rules: list[Rule]) -> None:
        import re  # few runs have rules

        self._rules = [
            (re.compile(expression).match, takes_part, is_for_directories)
            for expression, takes_part, is_for_directories in rules
        ]

    def leaves_out(self, path: bytes, is_directory: bool) -> bool:
        """Return whether a path below the root is left out; a directory takes its content along."""
        for match, takes_part, is_for_directories in self._rules:
            if (is_directory or not is_for_directories) and match(path):
                return not takes_part
        return False
