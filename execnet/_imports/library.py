"""The source of this program's modules: found without importing, read once, scanned for imports.

A ``Library`` belongs to a group; all of its workers get the content that was read first, until
``forget``.  Start at ``Library.find`` and ``closure``.
"""

from __future__ import annotations

import io
import os
import re
import sys
import zipfile
from fnmatch import fnmatchcase
from functools import lru_cache
from hashlib import sha256
from importlib.machinery import BYTECODE_SUFFIXES, EXTENSION_SUFFIXES
from pkgutil import get_importer, iter_modules

from .._ship.lower import without_annotations
from .._ship.syntax import parse
from ..gateway_base import new_rlock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

    Names = dict[str, int]  # of modules; 0: not a package, 1: a package, 2: a namespace
    Imports = tuple[tuple[int, str, tuple[str, ...]], ...]  # dots, module, names taken from it

INSTALL = "xdeploy installs it there"
_REFUSED_FOLDERS = {"site-packages", "dist-packages"}
# Code that reads the annotations of a module, which Python 2 does not have.
_READS_ANNOTATIONS = re.compile(
    rb"^[ \t]*@?(?:from|import|class|[\w.]*dataclass\b).*"
    rb"\b(dataclass(?:es)?|NamedTuple|TypedDict|get_type_hints)\b",
    re.M,
)
_FUTURE_ANNOTATIONS = re.compile(
    rb"^from[ \t]+__future__[ \t]+import\b(?:[^#;\n(]*|[ \t]*\([^)]*)\bannotations\b", re.M
)


class Module:
    """A module as it was found.

    locations: where the modules of a package are; None if it is not a package.  source: its bytes;
    None for a namespace.  refusal: why it can't be sent.
    """

    def __init__(
        self,
        name: str,
        file: str | None,
        locations: list[str] | None,
        source: bytes | None,
        refusal: str = "",
    ) -> None:
        self.name = name
        self.file = file
        self.locations = locations
        self.source = source
        self.refusal = refusal
        self.loader: Any = None
        self.kind = 0 if locations is None else 1 if file or source is not None else 2
        self.digest = sha256(repr((file, locations is None, source, refusal)).encode()).digest()

    def for_python(self, version: tuple[int, ...]) -> tuple[bytes | None, str]:
        """Return the source for a version, and why it can't be sent.

        Annotations are removed for Python 2, and for 3.6 if the module has those of the future,
        which came with 3.7 and need not be valid there.
        """
        source = self.source
        if source and (version < (3,) or (version < (3, 7) and _FUTURE_ANNOTATIONS.search(source))):
            return _without_annotations(source, self.name, version < (3,))
        return source, self.refusal


@lru_cache(maxsize=1024)
def _without_annotations(source: bytes, name: str, is_python2: bool) -> tuple[bytes, str]:
    from .._ship.parts import _decoded

    found = _READS_ANNOTATIONS.search(source)
    if found and is_python2:
        what = found[1].decode()
        return b"", f"{name} reads annotations ({what}), which Python 2 does not have"
    if found:
        return source, ""
    try:
        text = _decoded(source)
        return without_annotations(text, all_of_them=True).encode("utf-8"), ""
    except (SyntaxError, ValueError):  # the worker's Python will say what is wrong, or accept it
        return source, ""


class Library:
    """Modules that were found and read.  ``_lock`` guards them; any thread may call."""

    def __init__(self) -> None:
        self._lock = new_rlock()
        self._modules: dict[str, Module] = {}  # existing ones only: a worker may ask for any
        self._listings: dict[str, Names] = {}
        self._packed: dict[object, bytes] = {}

    def forget(self) -> None:
        """Look for everything again when it is asked for."""
        with self._lock:
            self._modules.clear()
            self._listings.clear()
            self._packed.clear()

    def packed(self, key: object, make: Callable[[], bytes]) -> bytes:
        """Return what ``make`` returned for this key before, since workers often ask alike."""
        with self._lock:
            if key not in self._packed:
                if len(self._packed) >= 8:
                    self._packed.pop(next(iter(self._packed)))
                self._packed[key] = make()
            return self._packed[key]

    def find(self, name: str) -> Module | None:
        """Return a module by its full name, or None; imports nothing."""
        with self._lock:
            module = self._modules.get(name) or self._find(name)
            if module is not None:
                self._modules[name] = module
            return module

    def _find(self, name: str) -> Module | None:
        parent = name.rpartition(".")[0]
        path: list[str] | None = None
        loaded = sys.modules.get(name)
        if parent:
            package = self.find(parent)
            if package is None or package.locations is None:
                return None
            path = package.locations
        spec = _spec_of(name, path)
        if spec is None and loaded is not None:
            spec = getattr(loaded, "__spec__", None)
        if spec is None:
            return _generated(name, loaded)
        return _read(name, spec)

    def names_below(self, name: str) -> Names:
        """Return a module and, for a package, all modules below that its folders show."""
        with self._lock:
            if name not in self._listings:
                module, names = self.find(name), {}
                if module is not None:
                    names[name] = module.kind
                    for place in module.locations or ():
                        names.update(_names_in(place, name + "."))
                self._listings[name] = names
            return self._listings[name]


def _spec_of(name: str, path: list[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        if find is not None:
            try:
                spec: ModuleSpec | None = find(name, path)
            except (KeyError, ImportError) as exc:
                if isinstance(exc, ImportError) and exc.name == name:
                    return None  # one of ours, in a worker that has workers
                # A namespace inside one that is not imported, which it looks for.
                spec = find(name.rpartition(".")[2], path)
            if spec is not None:
                return spec
    return None


def _read(name: str, spec: ModuleSpec) -> Module:
    locations = spec.submodule_search_locations
    locations = None if locations is None else list(locations)
    file = spec.origin if spec.has_location else None
    if locations is not None and (spec.loader is None or (not spec.has_location and file is None)):
        source = _source_of(spec.loader, name, None)
        if source is None:  # a namespace
            return Module(name, None, locations, None)
    where = file or spec.origin or "memory"
    if str(file).endswith(tuple(EXTENSION_SUFFIXES)):
        text = f"{name} is a C extension ({where} at the coordinator), which can't be sent: "
        return Module(name, file, locations, None, text + INSTALL)
    source = _source_of(spec.loader, name, file)
    if source is None:
        text = f"{name} ({where} at the coordinator) has no source that could be sent: "
        return Module(name, file, locations, None, text + INSTALL)
    module = Module(name, file, locations, source)
    module.loader = spec.loader
    return module


def _source_of(loader: Any, name: str, file: str | None) -> bytes | None:
    """Return the source of a module, byte for byte if it has a file; None if it has none."""
    try:
        if file is not None and not file.endswith(tuple(BYTECODE_SUFFIXES)):
            data: bytes = loader.get_data(file)
            return data
    except (AttributeError, OSError):
        pass
    try:
        text = loader.get_source(name)
    except (AttributeError, ImportError, OSError):
        return None
    return None if text is None else _encoded(text)


def _encoded(text: str) -> bytes:
    """Return the bytes of a source in the encoding that it declares, or else in UTF-8."""
    import tokenize

    data = text.encode("utf-8", "surrogatepass")
    try:
        return text.encode(tokenize.detect_encoding(io.BytesIO(data).readline)[0])
    except (SyntaxError, UnicodeError):
        return data


def _generated(name: str, module: ModuleType | None) -> Module | None:
    """Return a module that the program made, if its source is available."""
    import inspect

    if module is None:
        return None
    try:
        source = _encoded(inspect.getsource(module))
    except (OSError, TypeError):
        text = f"{name} was made by the program, without source"
        return Module(name, None, None, None, text)
    path = getattr(module, "__path__", None)
    file = getattr(module, "__file__", None)
    return Module(name, file, None if path is None else list(path), source)


# ---------------------------------------------------------------- listing


def _names_in(place: str, prefix: str) -> Names:
    """Return all modules in an entry of a path, and those below."""
    if os.path.isdir(place):
        return _names_in_folder(place, prefix)
    importer: Any = get_importer(place)
    archive = getattr(importer, "archive", None)
    if archive is not None:
        inside = f"{importer.prefix}".replace(os.sep, "/")
        return _names_in_archive(archive, inside, prefix)
    return {found.name: int(found.ispkg) for found in iter_modules([place], prefix)}


def _names_in_folder(folder: str, prefix: str, depth: int = 0) -> Names:
    names: Names = {}
    if depth > 50:  # a link that leads upwards
        return names
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return names
    for entry in entries:
        if entry.is_dir():
            if entry.name.isidentifier() and entry.name != "__pycache__":
                path = os.path.join(folder, entry.name)
                is_regular = os.path.isfile(os.path.join(path, "__init__.py"))
                names[prefix + entry.name] = 1 if is_regular else 2
                names.update(_names_in_folder(path, f"{prefix}{entry.name}.", depth + 1))
        else:
            name = _module_of(entry.name)
            if name and name != "__init__":
                names.setdefault(prefix + name, 0)
    return names


def _is_package(folder: str) -> bool:
    """Whether there is a module in a folder or below."""
    is_regular = os.path.isfile(os.path.join(folder, "__init__.py"))
    return is_regular or 0 in _names_in_folder(folder, "").values()


def _names_in_archive(archive: str, inside: str, prefix: str) -> Names:
    names: Names = {}
    with zipfile.ZipFile(archive) as file:
        for path in file.namelist():
            if not path.startswith(inside) or path.endswith("/"):
                continue
            *folders, leaf = path[len(inside) :].split("/")
            name = _module_of(leaf)
            if name and all(folder.isidentifier() for folder in folders):
                for depth in range(1, len(folders) + 1):
                    names.setdefault(prefix + ".".join(folders[:depth]), 2)
                if name != "__init__":
                    names.setdefault(prefix + ".".join([*folders, name]), 0)
                elif folders:
                    names[prefix + ".".join(folders)] = 1
    return names


def _module_of(file_name: str) -> str:
    """Return the name of the module that a file is; "" for none."""
    for suffix in (".py", *EXTENSION_SUFFIXES, *BYTECODE_SUFFIXES):
        if file_name.endswith(suffix):
            name = file_name[: -len(suffix)]
            return name if name.isidentifier() else ""
    return ""


def main_folder() -> str:
    """Return the folder of the main program; ValueError for a folder with all sorts of things."""
    main = sys.modules["__main__"]
    file, spec = getattr(main, "__file__", None), getattr(main, "__spec__", None)
    folder = os.path.dirname(os.path.abspath(file)) if file else os.getcwd()
    if file and spec is not None and spec.name:  # python -m
        depth = spec.name.removesuffix(".__main__").count(".")
        depth += spec.name.endswith(".__main__")
        for _ in range(depth):
            folder = os.path.dirname(folder)
    folder = os.path.realpath(folder)
    homes = {os.path.realpath(os.path.expanduser("~")), os.path.dirname(folder)}
    programs = os.path.realpath(os.path.dirname(sys.executable))
    for is_refused, what in [
        (os.path.dirname(folder) == folder, "the root of all files"),
        (folder in homes, "a home directory"),
        (folder == programs, "where programs are installed"),
        (_REFUSED_FOLDERS & set(folder.split(os.sep)), "where packages are installed"),
    ]:
        if is_refused:
            text = f"imports=True means the folder of the main program: {folder} is "
            raise ValueError(f"{text}{what}, so say which modules: imports=NAME,...")
    return folder


def names_of_folder(library: Library, folder: str) -> list[str]:
    """Return the modules and packages of a folder that an import here would find there."""
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            is_folder = entry.is_dir()
            name = entry.name if is_folder else _module_of(entry.name)
            if not name.isidentifier() or name == "__pycache__" or name in sys.stdlib_module_names:
                continue
            if is_folder and os.path.exists(os.path.join(folder, name, "pyvenv.cfg")):
                continue
            if is_folder and not _is_package(entry.path):
                continue
            module = library.find(name)
            places = [] if module is None else [module.file or "", *(module.locations or ())]
            if any(os.path.realpath(place).startswith(folder + os.sep) for place in places):
                names.append(name)
    return sorted(set(names))


# ---------------------------------------------------------------- imports in a source

_IMPORT = re.compile(
    r"""(?:^|[;:])[ \t]*(?:
        from[ \t]*(?P<dots>(?:\.|[ \t])*)(?P<module>[\w.]*)[ \t]*\\?\s*import[ \t]*
            (?:\((?P<several>[^)]*)\)|(?P<taken>(?:[^\n;\\]|\\\n)*))
        |import[ \t]+(?P<modules>(?:[^\n;\\]|\\\n)+)
    )
    |(?:__import__|import_module)\([ \t\n]*['"](?P<called>[\w.]+)['"]""",
    re.M | re.X,
)
_COMMENT = re.compile(r"#[^\n]*")
_scans: dict[bytes, Imports] = {}


def imports_of(source: bytes) -> Imports:
    """Return what a source imports, anywhere in it; roughly, by a regular expression."""
    digest = sha256(source).digest()
    found = _scans.get(digest)
    if found is None:
        if len(_scans) > 10_000:
            _scans.clear()
        found = _scans[digest] = tuple(_scan(source.decode("utf-8", "replace")))
    return found


def _scan(text: str) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    for match in _IMPORT.finditer(text.replace("\r\n", "\n")):
        if match["called"]:
            name = match["called"].lstrip(".")
            yield len(match["called"]) - len(name), name, ()
        elif match["modules"]:
            for name in _words(match["modules"]):
                yield 0, name, ()
        else:
            taken = match["several"] if match["several"] is not None else match["taken"]
            yield match["dots"].count("."), match["module"], _words(taken or "")


def _words(text: str) -> tuple[str, ...]:
    """Return the names of "a as b, c", without their aliases."""
    parts = _COMMENT.sub("", text).replace("\\\n", " ").split(",")
    return tuple(part.split()[0] for part in parts if part.split())


def imported_by(module: Module) -> Iterator[str]:
    """Yield full names that a module imports, or takes from packages."""
    package = module.name if module.locations is not None else module.name.rpartition(".")[0]
    for dots, name, taken in imports_of(module.source or b""):
        base = package.split(".") if dots else []
        base = base[: len(base) - dots + 1] if dots else []
        full = ".".join([*base, name] if name else base)
        if full:
            yield full
            for one in taken:
                yield f"{full}.{one}"


def with_parents(name: str) -> list[str]:
    """Return the names of the packages that a module is in, and its own name."""
    parts = name.split(".")
    return [".".join(parts[: depth + 1]) for depth in range(len(parts))]


def closure(library: Library, name: str, is_wanted: Callable[[str], bool]) -> Iterator[Module]:
    """Yield a module and what it needs, as far as wanted, in the order of need."""
    seen: set[str] = set()
    waiting = with_parents(name)
    while waiting:
        one = waiting.pop(0)
        if one in seen:
            continue
        seen.add(one)
        module = library.find(one) if is_wanted(one) else None
        if module is not None:
            yield module
            for imported in imported_by(module):
                waiting += [part for part in with_parents(imported) if part not in seen]


@lru_cache(maxsize=64)
def compiles(source: bytes) -> bool:
    """Whether this Python accepts a source."""
    try:
        parse(source)
    except (SyntaxError, ValueError):
        return False
    return True


# ---------------------------------------------------------------- what may leave


class Rules:
    """Which modules may be sent.

    names: modules and packages, with everything below, that are always sent.  allow: names, or
    patterns with ``*``, of what may be sent if the worker lacks it.  deny: what is never sent.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.allow: list[str] = []
        self.deny: list[str] = []

    def may_leave(self, name: str) -> bool:
        """Whether a module may be sent."""
        parts = name.split(".")
        if not all(map(str.isidentifier, parts)) or is_below(name, self.deny):
            return False
        if parts[0] == "__main__" or parts[0] in sys.stdlib_module_names:
            return False
        if is_below(name, self.names + self.allow):
            return True
        return any(one.startswith(name + ".") for one in self.names)  # what they are in

    def is_denied_file(self, path: str) -> bool:
        """Whether a file with this dotted name belongs to a denied module or package."""
        folded = [one.casefold() for one in self.deny]
        return is_below(path.casefold(), folded)


def is_below(name: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern matches the name of a module or of a package that it is in."""
    parents = with_parents(name)
    return any(
        any(fnmatchcase(parent, one) for parent in parents) if "*" in one else one in parents
        for one in patterns
    )


def check_names(names: Iterable[str], what: str, may_have_patterns: bool) -> list[str]:
    """Return names of modules as a list; TypeError for a single text, ValueError for others."""
    if isinstance(names, str):
        raise TypeError(f"{what} takes several names: [{names!r}]")
    checked = list(names)
    for name in checked:
        parts = name.replace("*", "x") if may_have_patterns else name
        if not all(part.isidentifier() for part in parts.split(".")):
            raise ValueError(f"{what}: {name!r} is not the name of a module")
        if name == "__main__":
            raise ValueError(
                f"{what}: __main__ is never imported elsewhere; its functions are sent"
            )
    return checked
