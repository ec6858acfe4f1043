"""Finds modules in a worker that the coordinator forwards, and asks for missing ones.

The coordinator alone decides which names the worker asks about: those that it named, and after the
first answer only modules that exist.  Modules stay in memory; nothing is written to disk.  Answers
arrive on the stream, so a thread that waits for one may have to read that: see ``Tap``.  ``tell``
handles messages that are not answers.  Start at ``Finder.find_spec``.

This file is shipped; it keeps to what Python 2.7 and today's Python both accept.
"""

from __future__ import annotations

import itertools
import os
import sys

from ..gateway_base import (
    PY2,
    Message,
    _marked_as_utf8,
    dumps_internal,
    loads_internal,
)
from .far_files import Resources
from .far_tap import Tap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType
    from typing import Any

    from ..gateway_base import WorkerGateway

    # "package" or "", file, source, why it can't be imported
    Known = tuple[str, str | None, bytes | None, str | None]
    Row = tuple[str, str, str | None, bytes | None, str | None]  # the same, after the name

PLACE = "<execnet>"  # begins the paths that stand for folders of packages here
INSTALL = "xdeploy installs it"
AHEAD = (1 << 31) - 1  # the number of what nobody asked for, of which no more comes
_IMPORTS = "_find_and_load_unlocked"  # import statements go through it, ``util.find_spec`` does not
_not_found: type[ImportError] = ImportError if PY2 else __import__("builtins").ModuleNotFoundError


def _error(text: str, name: str, kind: type[ImportError] = ImportError) -> ImportError:
    return kind(text) if PY2 else kind(text, name=name)


def tell(gateway: Any, told: tuple[Any, ...]) -> None:
    """Act on a message of the coordinator; in the receiver thread, in the order of messages."""
    finder = getattr(gateway, "_finder", None)
    if finder is None:
        finder = gateway._finder = Finder(gateway)
    {"forward": finder.on_forward, "reload": finder.on_reload}[told[0]](*told[1:])


class Finder(object):
    """Takes precedence over ``sys.path`` for names that the coordinator forwards.

    ``_lock`` guards what has arrived.  Any thread may import; each request has a number.
    """

    def __init__(self, gateway: WorkerGateway) -> None:
        self.gateway = gateway
        self._pid = os.getpid()  # a forked process can't use the stream
        self.tap = Tap(gateway)
        self._lock = gateway.execmodel.Lock()
        self._numbers = itertools.count(1)
        self._prefixes: list[str] = []  # what comes from the coordinator, with everything below
        self._reserve: list[str] = []  # what does if it is missing here; "*" for any
        self._names: dict[str, int] = {}  # that exist; 1: a package, 2: a namespace, 0: neither
        self._listed: set[str] = set()  # prefixes whose names are all known
        self._modules: dict[str, Known] = {}
        self._answered: set[int] = set()
        self._coming: set[int] = set()  # answers of which more will come
        self._data: dict[int, Any] = {}
        self._absent: set[str] = set()
        self.loaded: set[str] = set()
        self._has_zlib = _has_zlib()
        self._last = _Last(self)
        # After the one that finds the standard library for our own code.
        finders: list[Any] = sys.meta_path
        finders.insert(int(bool(finders) and hasattr(finders[0], "places")), self)
        if not PY2:
            finders.append(self._last)
        sys.path_hooks.insert(0, self._below)
        self._before_close = gateway.before_close
        gateway.before_close = self._leave

    def _leave(self) -> None:
        """Leave the interpreter as it was: it may be a server that keeps running."""
        for places, own in [(sys.meta_path, self), (sys.meta_path, self._last)]:
            if own in places:
                places.remove(own)
        if self._below in sys.path_hooks:
            sys.path_hooks.remove(self._below)
        for place in [place for place in sys.path_importer_cache if place.startswith(PLACE)]:
            del sys.path_importer_cache[place]
        self._forget_loaded()
        self._before_close()

    # messages of the coordinator

    def on_forward(self, names: dict[str, int], prefixes: list[str], reserve: list[str]) -> None:
        """Forward more from now on; names: some that exist, as in ``_names``."""
        self._names.update(names)
        for one in prefixes:
            if not is_of_library(one.partition(".")[0]):
                self._prefixes.append(one)
        self._reserve += reserve
        self._absent.clear()

    def on_reload(self, names: dict[str, int], changed: list[str]) -> None:
        """Forget modules whose source has changed, and import all forwarded ones again."""
        with self._lock:
            for name in changed:
                self._modules.pop(name, None)
            self._listed.clear()
            self._names = dict(names)
            self._absent.clear()
        if changed:
            self._forget_loaded()

    def _forget_loaded(self) -> None:
        for name in list(self.loaded):
            self.loaded.discard(name)
            sys.modules.pop(name, None)

    # finding

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Return the spec of a module if it is forwarded; None for all others."""
        if not self._is_forwarded(name):
            return None
        spec = self.spec_of(name)
        if spec is not None:
            return spec
        parent = self._modules.get(name.rpartition(".")[0])
        if parent is not None and parent[1] and sys._getframe(2).f_code.co_name == _IMPORTS:
            text = "No module named %r: looked for it at the coordinator, in the package %s"
            raise _error(text % (name, parent[1]), name, _not_found)
        return None

    def find_module(self, name: str, path: list[str] | None = None) -> Loader | None:
        """Like ``find_spec``, for Python 2."""
        reserved = not self._is_forwarded(name)
        if reserved and not (self.is_reserve(name) and _is_absent_here(name, path)):
            return None
        known: Known | None = None
        try:
            if self.get(name) is None:
                return None
        except ImportError as exc:  # to Python 2 it means "not here", unless a loader raises it
            known = "", None, None, str(exc)
        return Loader(self, name, known)

    def _is_forwarded(self, name: str) -> bool:
        parent = name.rpartition(".")[0]
        if name in self._prefixes or parent in self.loaded:
            return True
        if parent and parent in sys.modules:
            return False  # it was imported from elsewhere, before
        above, below = (name + ".").startswith, name + "."
        return any(above(one + ".") or one.startswith(below) for one in self._prefixes)

    def is_reserve(self, name: str) -> bool:
        """Whether to ask for a module that is missing here."""
        top = name.partition(".")[0]
        if not self._reserve or name in self._absent or is_of_library(top):
            return False
        parent = name.rpartition(".")[0]
        if parent and parent not in self.loaded:
            return False
        return "*" in self._reserve or top in self._reserve

    def get(self, name: str) -> Known | None:
        """Return what is known about a module, and ask for it if that is nothing; None: absent."""
        self._take_in()
        known = self._modules.get(name)
        if known is None and self._coming and os.getpid() == self._pid:
            if not self._is_known_absent(name):
                self._wait_for(lambda: name in self._modules or not self._coming, name)
            known = self._modules.get(name)
        if known is None and not self._is_known_absent(name):
            number = self.ask("module", name)
            self._wait(number, name)
            known = self._modules.get(name)
            if known is None:
                self._absent.add(name)
        return known

    def _is_known_absent(self, name: str) -> bool:
        if name in self._names:
            return False
        if name in self._absent:
            return True
        return any(name == one or name.startswith(one + ".") for one in self._listed)

    def ask(self, kind: str, name: str, place: str = "") -> int:
        """Send a request and return its number."""
        if os.getpid() != self._pid:
            raise _error("%s had not arrived when this process was forked" % name, name)
        number = next(self._numbers)
        data = dumps_internal((kind, name, place, self._has_zlib))
        try:
            self.gateway._send(Message.IMPORT, number, data)
        except EnvironmentError as exc:
            raise _error("%s can't be asked for: %s" % (name, exc), name)
        return number

    def _wait(self, number: int, name: str) -> None:
        self._wait_for(lambda: number in self._answered, name)

    def _wait_for(self, condition: Callable[[], bool], name: str) -> None:
        def is_done() -> bool:
            self._take_in()
            return condition()

        self.tap.wait(is_done)
        if not is_done():
            raise _error("%s did not arrive: the coordinator is gone" % name, name)

    def _take_in(self) -> None:
        """Unpack the answers that have arrived."""
        answers = self.tap.answers
        while answers:
            with self._lock:
                if answers:
                    number, payload = answers[0]
                    if payload[:1] == b"z":
                        payload = b"p" + __import__("zlib").decompress(payload[1:])
                    kind, answer = loads_internal(payload[1:], None, (True, True))
                    if kind == "data":
                        self._data[number] = answer
                    else:
                        self._take_modules(*answer)
                    if kind == "more" and number != AHEAD:
                        self._coming.add(number)
                    else:
                        self._coming.discard(number)
                    self._answered.add(number)
                    del answers[0]

    def _take_modules(
        self, names: dict[str, int], listed: list[str], modules: Iterable[Row]
    ) -> None:
        self._names.update(names)
        self._listed.update(listed)
        for name, package, file_name, source, refusal in modules:
            self._modules[name] = package, file_name, source, refusal

    def data(self, kind: str, name: str, place: str) -> Any:
        """Return the bytes of a file of a package, or the content of a folder of it."""
        number = self.ask(kind, name, place)
        self._wait(number, name)
        error, answer = self._data.pop(number)
        if error:
            raise (IOError if PY2 else __import__("builtins").FileNotFoundError)(2, error, place)
        return answer

    def compiles_there(self, name: str) -> bool:
        """Whether the coordinator's own Python accepts the source of a module."""
        number = self.ask("syntax", name)
        self._wait(number, name)
        return bool(self._data.pop(number)[1])

    def spec_of(self, name: str) -> ModuleSpec | None:
        """Return the spec of a module, or None.

        Its source need not be here yet: while a finder waits, CPython starts no other import.
        """
        if name in self._names:
            is_package = self._names[name]
        else:
            known = self.get(name)
            if known is None:
                return None
            is_package = bool(known[0])
        spec_class: Callable[..., ModuleSpec] = type(sys.__spec__)
        spec: ModuleSpec = spec_class(name, Loader(self, name), is_package=bool(is_package))
        return spec

    def path_of(self, name: str) -> list[str]:
        """Return the path of a package: its stand-in, and the local parts of a namespace."""
        path = [PLACE + name]
        _, _, source, refusal = self._modules[name]
        if source is None and not refusal and not PY2:
            find = sys.modules["_frozen_importlib_external"].PathFinder.find_spec
            parent = sys.modules.get(name.rpartition(".")[0])
            here = find(name, parent and [p for p in parent.__path__ if not p.startswith(PLACE)])
            if here is not None and here.origin in (None, "namespace"):
                path += here.submodule_search_locations or ()
        return path

    def names_below(self, name: str) -> list[tuple[str, int]]:
        """Return the modules of a package."""
        self.get(name)
        start = len(name) + 1
        inside = [one for one in list(self._names) if one.startswith(name + ".")]
        return [(one[start:], self._names[one]) for one in sorted(inside) if "." not in one[start:]]

    def text_of_missing(self, name: str) -> str:
        """Return why a module can't be imported that is neither here nor forwarded."""
        names = ", ".join(self._prefixes + self._reserve) or "nothing"
        where = sys.version_info[:2] + (self.gateway.id, names)
        text = "No module named %r in Python %d.%d of %s, nor among what the coordinator forwards"
        advice = " (%s): forward_imports(allow=[%r]) has it sent unless deny= has it, %s"
        return (text + advice) % ((name,) + where + (name, INSTALL))

    def _below(self, place: str) -> _Below:
        """Return the object that ``pkgutil`` asks about a path entry; ImportError for others."""
        if type(place) is not str or not place.startswith(PLACE):
            raise ImportError(place)
        return _Below(self, place[len(PLACE) :])


class _Last(object):
    """Comes after all other finders: asks for what may be forwarded, or explains the failure."""

    def __init__(self, finder: Finder) -> None:
        self._finder = finder

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        finder = self._finder
        if finder.is_reserve(name):
            spec = finder.spec_of(name)
            if spec is not None:
                return spec
        top = name.partition(".")[0]
        if sys.meta_path[-1:] != [self] or sys._getframe(2).f_code.co_name != _IMPORTS:
            return None  # another finder may come after this one
        if top != name or is_of_library(top):
            return None
        raise _error(finder.text_of_missing(name), name, _not_found)


def _has_zlib() -> bool:
    try:
        __import__("zlib")
    except ImportError:
        return False
    return True


def is_of_library(top: str) -> bool:
    """Whether this Python has a module of that name in its standard library."""
    names: frozenset[str] | None = getattr(sys, "stdlib_module_names", None)
    if names is not None:
        return top in names
    if top in sys.builtin_module_names:
        return True
    home = os.path.dirname(os.__file__)
    folders = [home] + [p for p in sys.path if os.path.basename(p) in ("lib-dynload", "DLLs")]
    for folder in folders:
        package = os.path.join(folder, top)
        if os.path.isfile(package + ".py") or os.path.isfile(os.path.join(package, "__init__.py")):
            return True
        there = os.listdir(folder) if folder != home and os.path.isdir(folder) else []
        if top in [found.partition(".")[0] for found in there]:
            return True
    return False


def _is_absent_here(name: str, path: list[str] | None) -> bool:
    """Whether this Python 2 finds nothing of that name itself."""
    imp = __import__("imp")
    try:
        found = imp.find_module(name.rpartition(".")[2], path)
    except ImportError:
        return True
    if found[0] is not None:
        found[0].close()
    return False


class Loader(object):
    """Makes a module from source that has arrived, or arrives when needed."""

    def __init__(self, finder: Finder, name: str, known: Known | None = None) -> None:
        self._finder = finder
        self.name = name
        self._known = known

    def _get(self) -> Known:
        if self._known is None:
            self._known = self._finder.get(self.name)
        if self._known is None:
            raise _error("No module named %r: it is gone" % self.name, self.name, _not_found)
        return self._known

    _package = property(lambda self: self._get()[0])
    _file = property(lambda self: self._get()[1])
    _source = property(lambda self: self._get()[2])
    _refusal = property(lambda self: self._get()[3])

    def create_module(self, spec: ModuleSpec) -> None:
        """Set where it is from, and let the import system make it."""
        spec.origin = self._file
        spec.has_location = self._source is not None
        if self._package and spec.submodule_search_locations is not None:
            spec.submodule_search_locations[:] = self._finder.path_of(self.name)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the source."""
        if self._refusal:
            raise _error(self._refusal, self.name)
        self._finder.loaded.add(self.name)
        code = self.get_code(self.name)
        if code is not None:
            exec(code, module.__dict__)

    def load_module(self, name: str) -> ModuleType:
        """Make and execute a module; for Python 2."""
        if name in sys.modules:
            module = sys.modules[name]
        else:
            module = sys.modules[name] = type(sys)(name)
        module.__file__ = self._file or "%s%s" % (PLACE, name)
        module.__loader__ = self
        module.__package__ = name.rpartition(".")[0]
        if self._package:
            module.__path__ = self._finder.path_of(name)
            module.__package__ = name
        try:
            self.exec_module(module)
        except ImportError as exc:
            sys.modules.pop(name, None)
            missing = str(exc).rpartition("No module named ")[2]
            if missing and str(exc) == "No module named " + missing and "." not in missing:
                exc.args = (self._finder.text_of_missing(missing),)
            raise
        except:
            sys.modules.pop(name, None)
            raise
        return sys.modules[name]

    def get_code(self, name: str) -> CodeType | None:
        """Return the compiled source; None for a namespace."""
        if self._source is None:
            return None
        source: Any = self._source
        if PY2:
            source = _marked_as_utf8(source)
        try:
            return compile(source, self._file or "<%s>" % name, "exec", 0, True)
        except SyntaxError as exc:
            if not self._finder.compiles_there(name):
                raise
            text = "%s, %s at the coordinator, is for another Python than %d.%d of %s: line %s: %s"
            place = name, self._file, sys.version_info[0], sys.version_info[1]
            where = self._finder.gateway.id, exc.lineno, exc.msg
            raise _error(text % (place + where), name)

    def get_source(self, name: str) -> str | None:
        """Return the source as text; for tracebacks and ``inspect``."""
        if self._source is None:
            return None
        if PY2:
            return self._source
        text: str = __import__("importlib.util").util.decode_source(self._source)
        return text

    def is_package(self, name: str) -> bool:
        """Whether it is a package."""
        return bool(self._package)

    def get_filename(self, name: str) -> str:
        """Return the name of its file at the coordinator."""
        if not self._file:
            raise _error("%s has no file" % name, name)
        return str(self._file)

    def get_data(self, path: str) -> bytes:
        """Return the bytes of a file of the package, given the path that it would have; OSError."""
        folder = os.path.dirname(self._file or "")
        if not path.startswith(folder):
            raise IOError(2, "not a file of package %s" % self.name, path)
        data: bytes = self.data("file", path[len(folder) :].replace(os.sep, "/").strip("/"))
        return data

    def data(self, kind: str, place: str) -> Any:
        """Ask for a file of the package, or the content of a folder of it; OSError."""
        name = self.name if self._package else self.name.rpartition(".")[0]
        return self._finder.data(kind, name, place)

    def get_resource_reader(self, name: str) -> Resources | None:
        """Return the reader for ``importlib.resources``; None for a module."""
        return Resources(self) if self._package and self._source is not None else None


class _Below(object):
    """Lists for ``pkgutil`` what is below a package, as an entry of its path."""

    def __init__(self, finder: Finder, name: str) -> None:
        self._finder = finder
        self._name = name

    def iter_modules(self, prefix: str = "") -> Iterator[tuple[str, bool]]:
        for name, kind in self._finder.names_below(self._name):
            if kind < 2:  # as Python itself lists folders
                yield prefix + name, bool(kind)

    def find_spec(self, name: str, target: object = None) -> None:
        return None  # ``Finder`` was asked before

    def find_module(self, name: str) -> None:
        return None
