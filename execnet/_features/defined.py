"""Defines functions that were sent as source, with the names that they use.

Names of a module of the coordinator live in a namespace here, one for each such module: so
functions share classes and state as they do there.  If the module itself can be imported, it takes
the place of the namespace.  Start at ``Defined.function``.

An entry is (hash, module, name, kind, content).  A plan names the entries of a function in the
order in which they are needed, the function itself last.  A name with a "<" is not in the module:
it is a function within another one, or a value that it closes over.
"""

from __future__ import annotations

import sys

from ..gateway_base import PY2, _marked_as_utf8, load_part, new_rlock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType
    from typing import Any

    Names = dict[str, object]  # of a namespace

    Entry = tuple[str, str, str, str, tuple[Any, ...]]

_FOLDER = "_execnet_sent"  # the package that namespaces appear to be in
_FLAGS = 0
if sys.version_info >= (3, 7):
    _FLAGS = __import__("__future__").annotations.compiler_flag


class Defined(object):
    """What one worker was sent.  ``_lock`` guards everything except what the receiver adds."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._plans: dict[str, list[str]] = {}
        self._spaces: dict[str, tuple[Names, bool]] = {}  # whether it was sent
        self._private: Names = {}  # by the hash of the entry
        self._made: dict[tuple[str, str], str] = {}  # the hash of what a name means now
        self._functions: dict[str, tuple[int, Any]] = {}
        self._changes = 0  # how often a name got another meaning
        self._lock = new_rlock()  # executed code may call, too
        self._calls = load_part("_features.calls")

    def add(self, key: str, plan: list[str], entries: list[Entry]) -> None:
        """Take a plan and its new entries; runs in the receiver thread."""
        for entry in entries:
            self._entries[entry[0]] = entry
        self._plans[key] = plan

    def function(self, key: str) -> Callable[..., object]:
        """Return the function of a plan, after giving all names that it uses their meaning.

        Raises whatever executing its source raises, and ImportError for a missing module.
        """
        changes, function = self._functions.get(key, (-1, None))
        if changes != self._changes:
            with self._lock:
                for hash in self._plans[key]:
                    function = self._make(*self._entries[hash])
                self._functions[key] = self._changes, function
        found: Callable[..., object] = function
        return found

    def _space(self, module: str) -> tuple[Names, bool]:
        """Return the namespace of a module, and whether it is one for names that were sent."""
        if module not in self._spaces:
            try:
                if module == "__main__":
                    raise self._calls.Missing(module, "")
                self._spaces[module] = vars(self._calls.import_module(module)), False
            except self._calls.Missing:
                self._spaces[module] = _new_space(module), True
        return self._spaces[module]

    def _make(
        self, hash: str, module: str, name: str, kind: str, made_of: tuple[object, ...]
    ) -> object:
        """Return the object of an entry; make it unless it exists already."""
        space, was_sent = self._space(module)
        if "<" in name:
            if hash not in self._private:
                self._private[hash] = getattr(self, "_" + kind)(module, space, *made_of)
            return self._private[hash]
        place = module, name
        if was_sent and self._made.get(place) != hash:
            space[str(name)] = getattr(self, "_" + kind)(module, space, *made_of)
            self._changes += place in self._made
            self._made[place] = hash
        return space.get(name)

    # the kinds

    def _value(self, module: str, space: Names, value: object) -> object:
        return value

    def _refused(self, module: str, space: Names, text: str) -> object:
        raise ValueError(text)

    def _import(self, module: str, space: Names, name: str, path: str) -> object:
        try:
            return self._imported(name, path)
        except self._calls.Missing as exc:
            text = "%s, which code of %s that was sent to here uses" % (exc.text, module)
        raise ImportError(text)

    def _imported(self, name: str, path: str) -> object:
        if name in self._spaces:
            first, _, rest = path.partition(".")
            found = self._spaces[name][0].get(first)
            if found is not None:
                return self._calls.attribute(found, rest) if rest else found
        found = self._calls.import_module(name)
        return self._calls.attribute(found, path) if path else found

    def _source(
        self, module: str, space: Names, file_name: str, text: str, defines: str
    ) -> object:
        local: Names = {}
        exec(_compiled(text, file_name), space, local)
        made = local[str(defines)]
        if self._space(module)[1] and "<" not in defines:
            space.setdefault(str(defines), made)  # it may call itself by this name
        return made

    def _closure(
        self, module: str, space: Names, file_name: str, text: str, cells: list[str]
    ) -> object:
        local: dict[str, Any] = {}
        exec(_compiled(text, file_name), space, local)
        return local["__make__"](*[self._make(*self._entries[hash]) for hash in cells])

    def _alias(self, module: str, space: Names, hash: str) -> object:
        return self._make(*self._entries[hash])


def _new_space(module: str) -> Names:
    # ``dataclasses`` looks up the module of a class, which has to exist for that.
    name = "__main__" if module == "__main__" else "%s.%s" % (_FOLDER, module)
    made = type(sys)(str(name))
    if module != "__main__":
        sys.modules[str(name)] = made
    space: Names = vars(made)
    return space


def _compiled(text: str, file_name: str) -> CodeType:
    if PY2:
        text = _marked_as_utf8(text)
    code: CodeType = compile(text + "\n", str(file_name), "exec", _FLAGS, True)
    return code
