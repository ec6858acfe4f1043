"""A pip for a far side that has none: one that runs on its Python.

It is one from this machine: a wheel in a folder of ``find_links``, the one bundled with Python, or
the installed one.  A Python that is too old for it gets the last one for it, from the index.
Start at ``pip_for``.
"""

from __future__ import annotations

import io
import re
import sys
import zipfile
from email.parser import HeaderParser
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from .sources import File, Sources

# The last pip that runs on a Python; newer Pythons take the newest one.
LAST = {(2, 7): "20.3.4", (3, 5): "20.3.4", (3, 6): "21.3.1", (3, 7): "24.0", (3, 8): "25.0.1"}
_WHEEL = re.compile(r"pip-(\d+(?:\.\d+)*)-[a-z0-9.]+-none-any\.whl")
_CLAUSE = re.compile(r"(>=|!=|<|==)\s*(\d+(?:\.\d+)*)(\.\*)?")
Version = tuple[int, ...]


def pip_for(version: Version, sources: Sources) -> tuple[str, bytes] | None:
    """Return the name and the content of a wheel of pip that runs on a Python, or None."""
    listed = [file for file in sources.link_files() if _WHEEL.fullmatch(file.name)]
    for file in _newest_first(listed):
        data = sources.content(file)
        if _runs_on(data, version):
            return file.name, data
    for path in _wheels_here():
        data = path.read_bytes()
        if _runs_on(data, version):
            return path.name, data
    packed = _packed()
    if packed is not None and _runs_on(packed[1], version):
        return packed
    last = LAST.get((version[0], version[1]))
    for file in _newest_first([f for f in sources.project_files("pip") if _is_wheel(f, last)]):
        return file.name, sources.content(file)
    return None


def _is_wheel(file: File, last: str | None) -> bool:
    match = _WHEEL.fullmatch(file.name)
    return match is not None and last in (None, match[1])


def _newest_first(files: list[File]) -> list[File]:
    def version_of(file: File) -> list[int]:
        match = _WHEEL.fullmatch(file.name)
        return [int(part) for part in match[1].split(".")] if match else []

    return sorted(files, key=version_of, reverse=True)


def _wheels_here() -> list[Path]:
    """Return the wheels bundled with this Python, or with its Linux distribution."""
    import sysconfig

    folders = [Path(sysconfig.get_path("stdlib"), "ensurepip", "_bundled")]
    if directory := sysconfig.get_config_var("WHEEL_PKG_DIR"):
        folders.append(Path(directory))
    folders.append(Path(sys.base_prefix, "share", "python-wheels"))
    return [path for folder in folders for path in sorted(folder.glob("pip-*.whl"), reverse=True)]


def _packed() -> tuple[str, bytes] | None:
    """Return the pip that is installed here, packed as a wheel again."""
    try:
        installed = distribution("pip")
    except PackageNotFoundError:
        return None
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in installed.files or ():
            name = file.as_posix()
            if name.startswith(("pip/", "pip-")) and not name.endswith(".pyc"):
                archive.write(str(installed.locate_file(file)), name)
    return f"pip-{installed.version}-py3-none-any.whl", packed.getvalue()


def _runs_on(wheel: bytes, version: Version) -> bool:
    """Whether a wheel says that it is for a Python."""
    try:
        with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
            name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
            text = archive.read(name).decode("utf-8", "replace")
    except (StopIteration, zipfile.BadZipFile):
        return False
    wanted = HeaderParser().parsestr(text, headersonly=True).get("Requires-Python", "")
    for comparison, number, star in _CLAUSE.findall(wanted):
        bound = tuple(int(part) for part in number.split("."))
        is_within = version[: len(bound)] == bound if star else version == bound
        holds = {
            ">=": version >= bound,
            "<": version < bound,
            "==": is_within,
            "!=": not is_within,
        }
        if not holds[comparison]:
            return False
    return True
