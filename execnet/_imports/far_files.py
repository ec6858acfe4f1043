"""The files of packages in memory, for ``importlib.resources``.

This file is shipped; it keeps to what Python 2.7 and today's Python both accept.  Start at
``Resources``.
"""

from __future__ import annotations

import io

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO, Any, Protocol

    class Loader(Protocol):
        """Gets the files of a package, whose ``name`` it has: ``far_finder.Loader``."""

        name: str

        def data(self, kind: str, place: str) -> Any: ...


class Resources(object):
    """The files of a package, as ``importlib.resources`` asks for them."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def files(self) -> Entry:
        return Entry(self._loader, "", True)

    def open_resource(self, resource: str) -> IO[bytes]:
        return io.BytesIO(self._loader.data("file", resource))

    def resource_path(self, resource: str) -> str:
        raise __import__("builtins").FileNotFoundError(2, "it exists only in memory", resource)

    def is_resource(self, resource: str) -> bool:
        return (resource, False) in [tuple(one) for one in self._loader.data("folder", "")]

    def contents(self) -> list[str]:
        return [name for name, _ in self._loader.data("folder", "")]


class Entry(object):
    """A file or a folder of a package, as a ``Traversable`` of ``importlib.resources``."""

    def __init__(self, loader: Loader, place: str, is_folder: bool | None = None) -> None:
        self._loader = loader
        self._place = place
        self._is_folder = is_folder
        self.name = place.rpartition("/")[2] or loader.name.rpartition(".")[2]

    def __repr__(self) -> str:
        return "<execnet: %s of %s>" % (self._place or "all", self._loader.name)

    def _kind(self) -> bool | None:
        """Whether it is a folder; None if it does not exist."""
        if self._is_folder is None:
            folder, _, name = self._place.rpartition("/")
            try:
                found = dict(self._loader.data("folder", folder))
            except EnvironmentError:
                found = {}
            self._is_folder = found.get(name)
        return self._is_folder

    def is_dir(self) -> bool:
        return bool(self._kind())

    def is_file(self) -> bool:
        return self._kind() is False

    def iterdir(self) -> Iterator[Entry]:
        start = self._place and self._place + "/"
        for name, is_folder in self._loader.data("folder", self._place):
            yield Entry(self._loader, start + name, is_folder)

    def joinpath(self, *parts: object) -> Entry:
        places = [self._place] if self._place else []
        return Entry(self._loader, "/".join(places + [str(part) for part in parts]))

    __truediv__ = joinpath

    def read_bytes(self) -> bytes:
        data: bytes = self._loader.data("file", self._place)
        return data

    def read_text(self, encoding: str | None = None, errors: str = "strict") -> str:
        with self.open("r", encoding=encoding, errors=errors) as file:
            text: str = file.read()
        return text

    def open(self, mode: str = "r", **how: Any) -> IO[Any]:
        file = io.BytesIO(self.read_bytes())
        return file if "b" in mode else io.TextIOWrapper(file, **dict({"encoding": "utf-8"}, **how))
