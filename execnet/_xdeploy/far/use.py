"""Puts layers and trees on the path of the worker that runs this.

One layer and one tree of each project are used at a time; the last one comes first.  Modules from
the one before are forgotten, so that the next import takes the new one; objects that programs
already hold stay as they are.
This file is shipped.  Start at ``main``.
"""

from __future__ import annotations

import io
import os
import sys
import zlib

from .find import facts_of, key_of
from .flocks import Busy, NoLocks, shared
from .places import key_folder, newest, text_of
from .quick import check_owner, native, root_folder
from .writing import make_folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from ...gateway_base import Channel
    from .places import UseAnswer, UseRequest

# Starts an interpreter with a layer on its path.
LAUNCHER = """\
#!/bin/sh
PYTHONPATH={layer}${{PYTHONPATH:+:$PYTHONPATH}}
export PYTHONPATH
exec {python} "$@"
"""

# By kind and project: the folder that is on the path, and the descriptor that holds what it is in.
_used: dict[tuple[str, str], tuple[str, int | None]] = {}
_held: dict[str, int] = {}  # trees: the descriptors that hold them


def main(channel: Channel) -> None:
    """Answer one request: a dict, as the answer is."""
    request: UseRequest = channel.receive()
    if request["kind"] == u"layer":
        answer = use_layer(request)
    elif request["kind"] == u"tree":
        answer = {u"folder": text_of(tree_folder(request))}
    elif request["kind"] == u"launcher":
        answer = {u"launcher": text_of(write_launcher(request))}
    else:
        name = "tree", native(request["name"])
        remove_bytecode(native(request["tree"]), request["sent"])
        use(name, native(request["folder"]), None, request["changed"])
        answer = {}
    channel.send(answer)


def use_layer(request: UseRequest) -> UseAnswer:
    """Put a layer on the path if it exists; return what is known about it.

    One for an environment leaves out what that has, so that it is for this environment alone.
    """
    environment = environment_here()
    facts = facts_of(None) + environment
    key = key_of(facts, request["digest"])
    folder = key_folder(request["root"], "layers", request["name"], key)
    if os.path.isdir(folder):  # what somebody else has put there is not used
        for path in (root_folder(request["root"]), os.path.dirname(folder), folder):
            check_owner(path)
    found = newest(folder)
    answer: UseAnswer = {u"facts": facts, u"key": text_of(key), u"found": False, u"newest": 0}
    answer.update({u"interpreter": text_of(sys.executable), u"leaves_out": bool(environment)})
    if found is None:
        return answer
    layer = os.path.join(folder, str(found[0]))
    try:
        held = shared(layer + ".held")
        os.utime(layer + ".held", None)  # this notes its last use
    except NoLocks:
        held = None
    except (Busy, EnvironmentError):  # it is being removed
        return answer
    if newest(folder) != found:
        if held is not None:
            os.close(held)
        return answer
    is_used = sys.path[:2].count(layer) > 0
    use(("layer", native(request["name"])), layer, held, not is_used)
    answer.update({u"found": True, u"folder": text_of(layer), u"tool": found[1].get("tool", u"")})
    return answer


def environment_here() -> list[str]:
    """Return what tells apart the environment that this runs in; nothing if it is none of ours.

    Its folder alone does not: one that was pruned may be made again.
    """
    try:
        with io.open(sys.prefix + ".done", encoding="utf-8") as file:
            return [text_of(sys.prefix), file.read()]
    except (EnvironmentError, ValueError):
        return []


def tree_folder(request: UseRequest) -> str:
    """Make and hold the folder for the tree of one of the coordinator's projects; return it."""
    folder = key_folder(request["root"], "trees", request["name"], request["key"])
    trees = os.path.dirname(folder)
    for path in (os.path.dirname(trees), trees, folder):
        make_folder(path)
    path = os.path.join(folder, "1")
    make_folder(path)
    try:
        open(path + ".held", "ab").close()
        if path not in _held:
            _held[path] = shared(path + ".held")  # as long as this process lives
        os.utime(path + ".held", None)
    except (NoLocks, Busy):
        pass
    return path


def write_launcher(request: UseRequest) -> str:
    """Write a command that starts an interpreter with a layer; return its path, beside the tree."""
    text = LAUNCHER.format(layer=_quoted(request["layer"]), python=_quoted(request["python"]))
    data = text if isinstance(text, bytes) else text.encode("utf-8")
    folder = key_folder(request["root"], "trees", request["name"], request["key"])
    path = os.path.join(folder, "1.python-%08x" % (zlib.crc32(data) & 0xFFFFFFFF))
    temporary = "%s.%d" % (path, os.getpid())
    try:
        with open(temporary, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o700)
        os.rename(temporary, path)
    except BaseException:
        _unlink(temporary)
        raise
    return path


def _quoted(text: str) -> str:
    """Return a word for ``sh``."""
    return "'%s'" % native(text).replace("'", "'\\''")


def use(name: tuple[str, str], folder: str, held: int | None, is_changed: bool) -> None:
    """Have a project's packages imported from a folder; it comes first in the path."""
    old, old_held = _used.get(name, (None, None))
    if is_changed:
        for other in {used[0] for used in _used.values()}:
            forget(other, None if other == old else top_names(folder))
    if is_changed or old != folder:
        for place in {old, folder}:
            _without(sys.path, place)
            _remove_variable("PYTHONPATH", place)
            _remove_variable("PATH", os.path.join(place or folder, "bin"))
        sys.path.insert(1 if sys.path[:1] == [""] else 0, folder)
        _add_variable("PYTHONPATH", folder)
        if os.path.isdir(os.path.join(folder, "bin")):
            _add_variable("PATH", os.path.join(folder, "bin"))
    _used[name] = folder, held
    if old_held is not None:
        os.close(old_held)


def top_names(folder: str) -> set[str]:
    """Return the names of what can be imported from a folder."""
    return {name.partition(".")[0] for name in os.listdir(folder)}


def forget(folder: str, names: set[str] | None) -> None:
    """Have modules from a folder imported again; names: only these, None for all."""
    start = folder + os.sep
    for name, module in list(sys.modules.items()):
        if names is not None and name.partition(".")[0] not in names:
            continue
        paths = [getattr(module, "__file__", None) or ""]
        try:
            paths += list(getattr(module, "__path__", ()))
        except TypeError:  # something that only looks like a module
            continue
        if any(isinstance(path, str) and path.startswith(start) for path in paths):
            sys.modules.pop(name, None)
    machinery = sys.modules.get("importlib")
    if hasattr(machinery, "invalidate_caches"):
        machinery.invalidate_caches()  # type: ignore[union-attr]


def remove_bytecode(folder: str, sources: Iterable[str]) -> None:
    """Remove what was compiled from sources that were sent again; paths are relative to a folder.

    Python would not see that one differs whose size and second are those of the one before.
    """
    stems: dict[str, set[str]] = {}
    for source in sources:
        path = os.path.join(folder, native(source))
        stems.setdefault(os.path.dirname(path), set()).add(os.path.basename(path)[: -len(".py")])
    for place, names in stems.items():
        for below in (place, os.path.join(place, "__pycache__")):
            try:
                found = os.listdir(below)
            except OSError:
                continue
            for name in found:
                if name.endswith(".pyc") and name.partition(".")[0] in names:
                    _unlink(os.path.join(below, name))


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:  # another process was faster
        pass


def _without(paths: list[str], path: str | None) -> None:
    while path in paths:
        paths.remove(path)


def _add_variable(name: str, folder: str) -> None:
    """Put a folder first in an environment variable, for processes that the worker starts."""
    paths = [path for path in os.environ.get(name, "").split(os.pathsep) if path]
    os.environ[name] = os.pathsep.join([folder] + paths)


def _remove_variable(name: str, folder: str | None) -> None:
    paths = [path for path in os.environ.get(name, "").split(os.pathsep) if path]
    _without(paths, folder)
    os.environ[name] = os.pathsep.join(paths)
