"""Turns functions into source that can be sent, with everything that they use of their modules.

It follows functions, classes, constants, imports, and what a function closes over, into the modules
of the user's own programs.  Installed modules are only named.  No user code is run.
``_features.defined`` turns the source into functions again.  Start at ``plan_of``.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
import types
import weakref

from .._ship.source import _find_non_builtin_globals
from ..gateway_base import _CONTAINERS, DumpError, dumps_internal
from .names import is_installed, name_of, shown
from .reading import Text, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Function = Callable[..., object]  # or a class
    Entry = tuple[str, str, str, str, tuple[object, ...]]


class Plan:
    """A function and its parts; ``entries`` are in the order in which they are needed."""

    def __init__(self, entries: list[Entry], seen: list[_Seen]) -> None:
        self.entries = entries
        self.hashes = [entry[0] for entry in entries]
        self.key = _hash(self.hashes)
        self._seen = seen

    def is_current(self) -> bool:
        """Whether everything that the function uses is unchanged."""
        return all(seen.is_same() for seen in self._seen)


class _Seen:
    """What a name stood for; if that is mutable, also what was in it."""

    def __init__(self, read_value: Callable[[], object], value: object) -> None:
        self._read = read_value
        # Functions may refer to themselves, and would never be freed.
        self._value = weakref.ref(value) if isinstance(value, types.FunctionType) else value
        self._content = _content(value)

    def is_same(self) -> bool:
        value, before = self._read(), self._value
        if isinstance(before, weakref.ref) and isinstance(value, types.FunctionType):
            before = before()
        return value is before and self._content == _content(value)


def _content(value: object) -> bytes:
    if type(value) not in _CONTAINERS:
        return b""
    try:
        return dumps_internal(value, False)
    except DumpError:
        return b""


def _hash(item: object) -> str:
    return hashlib.sha256(dumps_internal(item, False)).hexdigest()[:24]


_plans: dict[bool, weakref.WeakKeyDictionary[object, Plan]] = {
    True: weakref.WeakKeyDictionary(),
    False: weakref.WeakKeyDictionary(),
}


def plan_of(function: Function, is_old: bool) -> Plan:
    """Return the parts of a function, a class or a decorated function.

    is_old: for a Python without annotations, including those of classes.
    Raises a ValueError that names what can't be sent.
    """
    if isinstance(function, types.MethodType):
        if not isinstance(function.__self__, type):
            raise ValueError(
                f"{shown(function)} can't be sent: the object of the method can't go along"
            )
        return _made(function, is_old)  # there is a new one each time
    plan = None
    try:
        plan = _plans[is_old].get(function)
        if plan is None or not plan.is_current():
            plan = _plans[is_old][function] = _made(function, is_old)
    except TypeError:  # it has no weak references, so it is not a Python function
        raise ValueError(f"{function!r} can't be sent: it is not a function or a class") from None
    return plan


def _made(function: Function, is_old: bool) -> Plan:
    collector = _Collector(is_old)
    collector.follow_root(function)
    return Plan(list(collector.entries.values()), collector.seen)


class _Collector:
    """Follows the names that a function uses; the parts come in the order of need."""

    def __init__(self, is_old: bool) -> None:
        self.entries: dict[tuple[str, str], Entry] = {}
        self.seen: list[_Seen] = []
        self._is_old = is_old
        self._begun: set[tuple[str, str]] = set()

    def follow_root(self, function: Function) -> None:
        """Add a function and everything that it needs; it is the last entry."""
        module = getattr(function, "__module__", None)
        name = getattr(function, "__qualname__", None)
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError(f"{function!r} can't be sent: it is not a function or a class")
        names = vars(sys.modules[module]) if module in sys.modules else {}
        if "." in name and "<" not in name and name.partition(".")[0] in names:
            first = name.partition(".")[0]
            self._follow(module, first, names, shown(function))
            self._add(module, f"<{name}>", "import", (module, name))
            return
        self._add_source(module, name, function)
        # Where functions need each other, the requested one may have come first.
        self.entries[module, name] = self.entries.pop((module, name))

    def _add(self, module: str, name: str, kind: str, made_of: tuple[object, ...]) -> str:
        entry = module, name, kind, made_of
        hash = _hash(entry)
        self.entries[module, name] = (hash, *entry)
        return hash

    def _follow(self, module: str, name: str, names: dict[str, object], user: str) -> None:
        if name not in names:
            return  # it will be missing there just as it is here
        value = names[name]
        self.seen.append(_Seen(lambda: names.get(name), value))
        self._add_name(module, name, value, user)

    def _add_name(self, module: str, name: str, value: object, user: str) -> None:
        """Add what a name of a module stands for; user: what uses it, for messages."""
        if (module, name) in self._begun:
            return
        self._begun.add((module, name))
        if isinstance(value, types.ModuleType):
            if value.__name__ == "__main__" or sys.modules.get(value.__name__) is not value:
                raise ValueError(f"{user} can't be sent: it uses {name!r}, a module without a name")
            self._add(module, name, "import", (value.__name__, ""))
        elif callable(value) and hasattr(value, "__qualname__"):
            self._add_callable(module, name, value, user)
        else:
            try:
                self._add(module, name, "value", (value,))
            except DumpError:
                used = name.rpartition(">")[2]
                raise ValueError(
                    f"{user} can't be sent: it uses {used!r}, which is of type"
                    f" {type(value).__name__}; only functions, classes, modules and values of"
                    " builtin types can be sent along"
                ) from None

    def _add_callable(self, module: str, name: str, value: Function, user: str) -> None:
        known, home = name_of(value), getattr(value, "__module__", None)
        if not isinstance(home, str) or isinstance(value, types.MethodType):
            if known is None:
                raise ValueError(f"{user} can't be sent: it uses {name!r}, {value!r}")
        elif known is None or (home == module and not is_installed(home)):
            if home == module:
                self._add_source(module, name, value)
            else:  # its names are those of another module
                private = f"<{len(self._begun)}>{name}"
                self._add_source(home, private, value)
                self._add(module, name, "alias", (self.entries[home, private][0],))
            return
        home, _, path = known.partition(":")
        if not is_installed(home):  # it may be missing there: then its source is needed, too
            first = path.partition(".")[0]
            try:
                self._follow(home, first, vars(sys.modules[home]), user)
            except ValueError as exc:
                self._add(home, first, "refused", (str(exc),))
        self._add(module, name, "import", (home, path))

    def _add_source(self, module: str, name: str, value: Function) -> None:
        """Add a function or a class by its source, after what that uses."""
        self._begun.add((module, name))
        function = inspect.unwrap(value)
        if not isinstance(function, (types.FunctionType, type)):
            raise ValueError(f"{shown(value)} can't be sent: it is not a Python function")
        text = read(function, self._is_old)
        names = _globals_of(function, module)
        for used in _find_non_builtin_globals(text.sent, text.code):
            self._follow(module, used, names, text.shown)
        if not text.cells and not text.makes:
            made_of: tuple[object, ...] = text.code.co_filename, text.sent, text.defines
            self._add(module, name, "source", made_of)
            return
        hashes = [self._add_cell(module, text, cell, value) for cell, value in text.cells.items()]
        self._add(module, name, "closure", (text.code.co_filename, text.sent, hashes))

    def _add_cell(self, module: str, text: Text, cell: str, held: types.CellType) -> str:
        try:
            value = held.cell_contents
        except ValueError:
            raise ValueError(
                f"{text.shown} can't be sent: {cell!r}, which it closes over, has no value"
            ) from None
        self.seen.append(_Seen(lambda: held.cell_contents, value))
        private = f"<{len(self._begun)}>{cell}"
        self._add_name(module, private, value, text.shown)
        return self.entries[module, private][0]


def _globals_of(function: object, module: str) -> dict[str, object]:
    if isinstance(function, types.FunctionType):
        return function.__globals__
    return vars(sys.modules[module]) if module in sys.modules else {}
