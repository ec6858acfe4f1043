"""Spec strings: where a worker is to run and how, as ``key=value//key=value``.

Knows the syntax only; what a key means is known where it is used.  Start at ``XSpec``.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class XSpec:
    """A parsed spec string; each key is an attribute.

    ``key`` without a value is True, a key that was not given is None, ``env:NAME=value``
    goes into the dict ``env``.  Neither part contains ``//``, a key contains no ``=``.

    Raises AttributeError for a key that begins with ``_`` and ValueError for a key that is
    empty or given twice.

    Example: ``XSpec("ssh=host//python=python3.12//env:LANG=C//nice=5")``.
    """

    _spec: str
    env: dict[str, str]

    if TYPE_CHECKING:
        id: str | None
        execmodel: str | None

    def __init__(self, string: str) -> None:
        self._spec = string
        self.env = {}
        for part in string.split("//"):
            key, has_value, value = part.partition("=")
            if key.startswith("env:"):
                self._add_variable(key[4:], value, bool(has_value))
            else:
                self._add(key, value if has_value else True)

    def _add(self, key: str, value: str | bool) -> None:
        if not key:
            raise ValueError(f"empty key in spec {self._spec!r}")
        if key.startswith("_"):
            raise AttributeError(f"key {key!r} in spec {self._spec!r} begins with '_'")
        if key in self.__dict__ and not (key == "env" and not self.env):
            raise ValueError(f"duplicate key {key!r} in spec {self._spec!r}")
        if key == "env":
            raise ValueError(f"spec {self._spec!r}: a variable is given as env:NAME=value")
        setattr(self, key, value)

    def _add_variable(self, name: str, value: str, has_value: bool) -> None:
        if not name or not has_value:
            raise ValueError(f"spec {self._spec!r}: a variable is given as env:NAME=value")
        if name in self.env:
            raise ValueError(f"duplicate variable {name!r} in spec {self._spec!r}")
        self.env[name] = value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return None

    def __repr__(self) -> str:
        return f"<XSpec {self._spec!r}>"

    def __str__(self) -> str:
        return self._spec

    def __hash__(self) -> int:
        return hash(self._spec)

    def __eq__(self, other: object) -> bool:
        return self._spec == getattr(other, "_spec", None)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def _samefilesystem(self) -> bool:
        """Whether the worker sees the coordinator's files at the same relative paths."""
        return self.popen is not None and self.chdir is None
