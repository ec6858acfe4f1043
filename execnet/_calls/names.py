"""Names of functions on the far side.  Runs no user code.  Start at ``name_of``."""

from __future__ import annotations

import sys
import types


def name_of(function: object) -> str | None:
    """Return "module:name" if that leads to this very function; else None.

    Functions of the main module have no such name: elsewhere, the main module is another one.
    """
    module = getattr(function, "__module__", None)
    path = getattr(function, "__qualname__", None)
    if type(function) is types.BuiltinFunctionType and not module:
        module = type(function.__self__).__module__  # a method of a builtin type
    if not isinstance(module, str) or not isinstance(path, str) or module == "__main__":
        return None
    found: object = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    if found is function or (found == function and isinstance(function, types.MethodType)):
        return f"{module}:{path}"
    return None


def is_installed(module: str) -> bool:
    """Whether a module is of the standard library, was installed, or has no source at all."""
    if module.partition(".")[0] in sys.stdlib_module_names:
        return True
    path = getattr(sys.modules.get(module), "__file__", None) or ""
    return not path.endswith(".py") or "site-packages" in path or "dist-packages" in path


def shown(function: object) -> str:
    """Return the name of a function for messages."""
    if isinstance(function, str):
        return function
    kind = "class" if isinstance(function, type) else "function"
    return f"{kind} {getattr(function, '__qualname__', None) or repr(function)}"
