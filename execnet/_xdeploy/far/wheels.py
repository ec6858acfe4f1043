"""Unpacks pure wheels on a host without an installer.

Whatever a wheel names, nothing is written outside the folder of packages: a hostile name ends it.
This file is shipped.  Start at ``unpack``.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import stat
import zipfile

from .commands import Failure
from .places import text_of

STEP = u"unpacking"
ENTRIES_MAX = 100000
BYTES_MAX = 4 << 30  # of all files of one wheel
SCRIPT = re.compile(
    r"^\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*=\s*([\w.]+)\s*:\s*([\w.]+)\s*(\[.*\])?\s*$"
)
START = u"""\
#!{python}
import sys
from {module} import {first}
if __name__ == "__main__":
    sys.exit({call}())
"""


def unpack(path: str, packages: str, scripts: str, python: str) -> None:
    """Unpack a pure wheel; ``Failure`` for anything else, or a wheel with a hostile name in it.

    packages: the folder that it goes into.  scripts: where its commands go.  python: the
    interpreter that they name.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        for entry in entries:
            check(entry)
        if len(entries) > ENTRIES_MAX or sum(entry.file_size for entry in entries) > BYTES_MAX:
            raise Failure(u"the wheel is too large", STEP)
        info = {e.filename.split("/")[0] for e in entries if ".dist-info/" in e.filename}
        if len(info) != 1:
            raise Failure(u"it is not a wheel", STEP)
        folder = info.pop()
        if b"Root-Is-Purelib: true" not in archive.read(folder + "/WHEEL"):
            raise Failure(u"it is not a pure wheel", STEP)
        if any(e.filename.split("/")[0].endswith(".data") for e in entries):
            raise Failure(u"the wheel has files for other places, which needs an installer", STEP)
        for entry in entries:
            if not entry.filename.endswith("/"):
                _write(packages, entry.filename, archive, entry)
        names = {entry.filename for entry in entries}
        if folder + "/entry_points.txt" in names:
            text = archive.read(folder + "/entry_points.txt").decode("utf-8", "replace")
            _write_scripts(text, scripts, python)
    with io.open(os.path.join(packages, folder, "INSTALLER"), "w", encoding="ascii") as file:
        file.write(u"execnet\n")


def check(entry: zipfile.ZipInfo) -> None:
    """Refuse an entry whose name leads out of the folder, or that is not an ordinary file."""
    name = entry.filename
    parts = name.rstrip("/").split("/")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    is_bad = (
        "\\" in name
        or ":" in name
        or any(part in ("", ".", "..") for part in parts)
        or any(ord(char) < 32 or ord(char) == 127 for char in name)
        or kind not in (0, stat.S_IFREG, stat.S_IFDIR)
    )
    if is_bad:
        raise Failure(u"the wheel has a file of a hostile name: %r" % (text_of(name),), STEP)


def _write(packages: str, name: str, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    path = os.path.join(packages, *name.split("/"))
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        os.makedirs(folder)
    if os.path.lexists(path):
        raise Failure(u"two packages have the same file: %s" % text_of(name), STEP)
    with archive.open(entry) as source, open(path, "wb") as file:
        shutil.copyfileobj(source, file)


def _write_scripts(text: str, folder: str, python: str) -> None:
    """Write the commands that a wheel brings."""
    section = u""
    for line in text.splitlines():
        if line.startswith(u"["):
            section = line.strip()
        match = SCRIPT.match(line)
        if section not in (u"[console_scripts]", u"[gui_scripts]") or match is None:
            continue
        name, module, call = match.group(1), match.group(2), match.group(3)
        path = os.path.join(folder, name)
        if os.path.lexists(path):
            raise Failure(u"two packages have the same command: %s" % name, STEP)
        with io.open(path, "w", encoding="utf-8") as file:
            file.write(
                START.format(
                    python=text_of(python), module=module, first=call.split(".")[0], call=call
                )
            )
        os.chmod(path, 0o755)
