"""A module of the worker, whose functions you call as if it were here."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .near import Calls


class RemoteModule:
    """A module of a worker: its functions are called there, its values are copies.

    An attribute that is callable, or is a module, is again an object like this; the worker is asked
    once what it is, and a call takes one round trip.  Any other attribute is read again each time.
    """

    def __init__(self, calls: Calls, module: str, path: str = "") -> None:
        self.__calls = calls
        self.__module = module
        self.__path = path
        self.__known: dict[str, RemoteModule] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)  # what Python asks any object for
        known = self.__known.get(name)
        if known is None:
            path = f"{self.__path}.{name}".lstrip(".")
            found = self.__calls.describe(self.__module, path)
            if found:
                return found[0]
            known = self.__known[name] = RemoteModule(self.__calls, self.__module, path)
        return known

    def __call__(self, *args: object, **kwargs: object) -> Any:
        """Call it in the worker, like ``Gateway.call``."""
        if not self.__path:
            raise TypeError(f"module {self.__module!r} can't be called, its functions can")
        return self.__calls.call(f"{self.__module}:{self.__path}", args, kwargs)

    def __repr__(self) -> str:
        name = f"{self.__module}:{self.__path}".rstrip(":")
        return f"<RemoteModule {name!r} of {self.__calls.gateway.id}>"
