"""Finds an environment that exists already: all that a second call needs.

The request is a dict, and so is the answer.  The environment that was found is held until the
coordinator closes the channel ``hold``, when its worker holds the environment itself.
This file is shipped.  Start at ``main``.
"""

from __future__ import annotations

import os
import sys
import zlib

from .flocks import Busy, NoLocks, shared
from .places import (
    core_path,
    is_name,
    key_folder,
    newest,
    newest_venv,
    python_of,
    read_marker,
    text_of,
)
from .quick import check_owner, native, root_folder, start_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ...gateway_base import Channel
    from .places import FindAnswer, FindRequest, Found

PROBE_S = 30.0
PYTHONS = "pythons"  # the kind of what uv has fetched

# What an interpreter reports about itself; run in others too.
PROBE = """
import os, sys
try:
    import _imp
    suffixes = _imp.extension_suffixes()
except (ImportError, AttributeError):
    import imp
    suffixes = [entry[0] for entry in imp.get_suffixes()]
try:
    libc = os.confstr("CS_GNU_LIBC_VERSION")
except (AttributeError, ValueError, OSError):
    libc = ""
executable = getattr(sys, "_base_executable", None) or sys.executable
facts = [
    sys.implementation.name if hasattr(sys, "implementation") else "pypy"
    if hasattr(sys, "pypy_version_info") else "cpython",
    "%d.%d.%d" % sys.version_info[:3], sys.version, suffixes[0] if suffixes else "",
    libc or "", sys.platform, os.uname()[4] if hasattr(os, "uname") else "",
    str(sys.maxsize), str(sys.maxunicode),
    getattr(sys, "real_prefix", getattr(sys, "base_prefix", sys.prefix)),
    os.path.realpath(executable),
]
"""


def facts_of(python: str | None) -> list[str]:
    """Return what an interpreter reports about itself, None for the one that runs this.

    Raises OSError or ValueError if it does not run.
    """
    if python is None:
        namespace: dict[str, Any] = {}
        exec(compile(PROBE, "<execnet>", "exec"), namespace)
        return [text_of(fact) for fact in namespace["facts"]]
    import json
    import subprocess  # both take a while, and other interpreters are seldom asked

    code = PROBE + "\nimport json\nsys.stdout.write(json.dumps(['execnet', facts]))"
    environ = {name: os.environ[name] for name in os.environ if not name.startswith("PYTHON")}
    process = subprocess.Popen(
        [python, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ
    )
    answer = process.communicate()[0].decode("utf-8", "replace")
    start = answer.rfind(u'["execnet"')
    if process.returncode or start < 0:
        raise ValueError("it is not a working Python: %s" % python)
    facts: list[str] = json.loads(answer[start:])[1]
    return facts


def key_of(facts: list[str], digest: str) -> str:
    """Return the key of what is wanted, for an interpreter.

    It is the coordinator's name for it, and a checksum of the few facts that interpreters differ
    in: a real digest would take longer to import than everything else here.
    """
    text = u"\n".join(facts).encode("utf-8", "replace")
    return "%s%08x" % (native(digest)[:16], zlib.crc32(text) & 0xFFFFFFFF)


def find(request: FindRequest) -> tuple[FindAnswer, int | None]:
    """Return (answer, descriptor of the held environment or None)."""
    python, words = None, request["python_search"]
    if words:
        python = search(words)
        if python is None:
            python = fetched(request["root"], request["python"])
        if python is None:
            return {"error": u"no interpreter found", "key": text_of(machine_key())}, None
    facts = facts_of(python)
    key = key_of(facts, request["digest"])
    folder = key_folder(request["root"], "venvs", request["name"], key)
    answer: FindAnswer = {"facts": facts, "key": text_of(key), "found": False}
    answer["interpreter"] = text_of(python or sys.executable)
    core = core_path(request["root"], key_of(facts, request["core"]))
    answer["core"], answer["has_core"] = text_of(core), is_mine(core)
    start = start_path(request["root"], request["start"])
    answer["start"], answer["has_start"] = text_of(start), is_mine(start)
    if os.path.isdir(folder):  # what somebody else has put there is not run
        for path in (root_folder(request["root"]), os.path.dirname(folder), folder):
            check_owner(path)
    found = newest_venv(folder)
    answer["newest"] = found[0] if found else 0
    if found is None or request["recreate"]:
        return answer, None
    number, marker = found
    venv = os.path.join(folder, str(number))
    try:
        held = shared(venv + ".held")
    except NoLocks:
        held = None
    except (Busy, EnvironmentError):  # it is being removed
        return answer, None
    if read_marker(folder, number) is None:
        if held is not None:
            os.close(held)
        return answer, None
    answer["found"], answer["venv"] = True, text_of(venv)
    answer["python"], answer["tool"] = text_of(python_of(venv)), marker.get("tool", u"")
    return answer, held


def machine_key() -> str:
    """Return the key of interpreters fetched for this kind of machine: homes may be shared."""
    return key_of(facts_of(None)[4:7], "0" * 16)


def fetched(root: str, version: str) -> str | None:
    """Return the path of an interpreter that was fetched before as this version, or None."""
    if not is_name(native(version)):
        return None
    folder = key_folder(root, PYTHONS, version, machine_key())
    found = newest(folder)
    if found is None or not runs(folder, found):
        return None
    for path in (root_folder(root), os.path.dirname(folder), folder):
        check_owner(path)
    try:
        os.utime(os.path.join(folder, "%d.held" % found[0]), None)  # noted as its last use
    except OSError:
        pass
    return interpreter_of(folder, found)


def interpreter_of(folder: str, found: Found) -> str:
    """Return the path of a fetched interpreter, of which ``newest`` tells."""
    return os.path.join(folder, str(found[0]), native(found[1].get("path", u"")))


def runs(folder: str, found: Found) -> bool:
    """Whether a fetched interpreter is still there."""
    path = interpreter_of(folder, found)
    return os.path.isfile(path) and os.access(path, os.X_OK)


def is_mine(path: str) -> bool:
    """Whether a file is there, in a folder that only this user can write to."""
    try:
        check_owner(os.path.dirname(path))
        check_owner(path)
    except OSError:
        return False
    return True


def search(words: list[str]) -> str | None:
    """Return the path that a command prints, None if it finds none."""
    import subprocess

    process = subprocess.Popen(
        [native(word) for word in words], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    path = process.communicate()[0].decode("utf-8", "replace").strip()
    return native(path) if process.returncode == 0 and path else None


def main(channel: Channel) -> None:
    """Answer one request."""
    request = channel.receive()
    answer, held = find(request)
    if held is not None:

        def release(_: object) -> None:
            os.close(held)

        request["hold"].setcallback(release, endmarker=None)
    channel.send({text_of(name): value for name, value in answer.items()})
