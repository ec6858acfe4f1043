"""Spec strings, which say where and how to run a worker, as ``key=value//key=value``.

This module only knows the syntax; what a key means is in ``_specs``.  Start at ``XSpec``, and at
``build`` for specs whose parts come from elsewhere.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


class XSpec:
    """A parsed spec string; each key is an attribute.

    ``key`` without a value is True, a key that was not given is None, ``env:NAME=value``
    goes into the dict ``env``, and ``env:NAME`` alone takes the variable's value from here.
    Neither part contains ``//``, and a key contains no ``=``.

    Raises AttributeError for a key that begins with ``_`` and ValueError for a key that is
    empty or given twice, and for a variable that is not set here.

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
                self._add_variable(key[4:], value if has_value else None)
            else:
                self._add(key, value if has_value else True)

    def _add(self, key: str, value: str | bool) -> None:
        if not key:
            raise ValueError(f"empty key in spec {self.shown()!r}")
        if key.startswith("_"):
            raise AttributeError(f"key {key!r} in spec {self.shown()!r} begins with '_'")
        if key in self.__dict__ and not (key == "env" and not self.env):
            raise ValueError(f"duplicate key {key!r} in spec {self.shown()!r}")
        if key == "env":
            raise ValueError(f"spec {self.shown()!r}: a variable is given as env:NAME=value")
        setattr(self, key, value)

    def _add_variable(self, name: str, value: str | None) -> None:
        if not name:
            raise ValueError(f"spec {self.shown()!r}: a variable is given as env:NAME=value")
        if name in self.env:
            raise ValueError(f"duplicate variable {name!r} in spec {self.shown()!r}")
        if value is None:
            if name not in os.environ:
                raise ValueError(f"spec {self.shown()!r}: the variable {name} is not set here")
            value = os.environ[name]
        self.env[name] = value

    def shown(self) -> str:
        """Return the string without the values of variables, which may be secrets."""
        return "//".join(
            part.partition("=")[0] + "=..." if part.startswith("env:") and "=" in part else part
            for part in self._spec.split("//")
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return None

    def __repr__(self) -> str:
        return f"<XSpec {self.shown()!r}>"

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


def build(*, env: Mapping[str, str | None] | None = None, **keys: object) -> XSpec:
    """Return a spec with these keys, for values that come from elsewhere.

    env: variables by name; None takes the value from here.  keys: True means a key without a value,
    None and False no key; a list of words, for keys that take a command or options, is quoted.
    Raises ValueError for values that a spec can't contain: one with ``//``, or more than one that
    ends in ``/``.

    Example: ``build(ssh=True, host=name, python=["env", "LANG=C", "python3"], env={"A": "b"})``.
    """
    parts = [
        (key, value) for key, value in keys.items() if value is not None and value is not False
    ]
    parts += [(f"env:{name}", True if text is None else text) for name, text in (env or {}).items()]
    words: list[str] = []
    last: list[str] = []
    for key, value in parts:
        if isinstance(value, (list, tuple)):
            import shlex

            value = shlex.join(value)
        text = key if value is True else f"{key}={value}"
        if "//" in text or "=" in key:
            raise ValueError(f"a spec can't contain this value of {key}")
        (last if text.endswith("/") else words).append(text)
    if len(last) > 1:
        raise ValueError(f"in a spec, only one value can end in '/': {len(last)} do")
    return XSpec("//".join(words + last))
