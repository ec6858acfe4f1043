"""Reads what to install: strings, requirements files, ``pyproject.toml`` and lock files.

All of it is read on this machine: included files, variables and local paths are those of this
machine.  A local wheel or project becomes a file that is sent.  Start at ``read``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import hidden, without_secret

Requirements = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_EXTRAS = r"(?:\[[^\]]*\])?"
# One of several requirements in a string: a name, extras, and versions, perhaps with spaces.
_VERSION = r"\s*(?:===|[<>=!~]=|[<>])\s*[A-Za-z0-9.*+!_-]+"
_ONE = re.compile(rf"\s*({_NAME}\s*{_EXTRAS}(?:{_VERSION}(?:\s*,{_VERSION})*)?)(?:\s+|$)")
_OPTION = re.compile(r"(--[a-z-]+|-[a-zA-Z])(?:\s*=\s*|\s+|(?<=^-[a-zA-Z]))?(.*)$")
_VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)\}")
_DIRECT = re.compile(rf"\s*({_NAME})\s*({_EXTRAS})\s*@\s*(\S+)\s*(.*)$")
_WHEEL = re.compile(r"([A-Za-z0-9_.]+)-([A-Za-z0-9_.!+]+)(?:-\d[^-]*)?-[^-]+-[^-]+-[^-]+\.whl$")
_ADDRESS = re.compile(r"\{relay\}file/\d+/([^\s#]+)\S*")
_KEPT = ("--no-binary", "--only-binary", "--prefer-binary", "--pre", "--require-hashes")
_DROPPED = ("--trusted-host", "--use-feature", "--no-index")
FILES_MAX = 100  # that include each other


@dataclass
class Wanted:
    """What to install.

    lines: of the requirements file that is written there; ``{relay}`` stands for the index on
    loopback.  files: local ones that the lines name, in the same order.  index_url, find_links:
    as a file sets them.  shown: a description, for a list of environments.
    """

    lines: list[str] = field(default_factory=list)
    constraints: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    index_url: str = ""
    extra_urls: list[str] = field(default_factory=list)
    find_links: list[str] = field(default_factory=list)

    @property
    def shown(self) -> str:
        """What is wanted, in one line, without the secrets of addresses."""
        text = " ".join(line for line in self.lines if not line.startswith("-"))
        return hidden(_ADDRESS.sub(r"\1", text))[:500]

    def digest(self, *more: object) -> str:
        """Return a digest of what is wanted; files count by their content."""
        files = [(path.name, digest_of(path)) for path in self.files]
        urls = [without_secret(url) for url in [self.index_url, *self.extra_urls]]
        wanted = [sorted(self.lines), sorted(self.constraints), files, self.find_links, urls, *more]
        return hashlib.sha256(json.dumps(wanted, default=str).encode()).hexdigest()


def sent_file(name: str, number: int, path: Path) -> str:
    """Return the requirement for a file that is sent; number: which one of ``Wanted.files``.

    It has the digest, as old versions of pip take what ends like a file's name for a path.
    """
    return f"{name} @ {{relay}}file/{number}/{path.name}#sha256={digest_of(path)}"


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    seen = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            seen.update(piece)
    return seen.hexdigest()


def read(requirements: Requirements, build: Callable[[Path], Path]) -> Wanted:
    """Return what is wanted.

    requirements: a string of requirements, one or several in a line; a requirements file, a
    ``pyproject.toml``, a ``pylock.toml`` or a ``uv.lock``; or a list of all these.  build: makes a
    wheel of a local project.  Raises ValueError for anything else, and OSError for files that
    can't be read.
    """
    reader = _Reader(build)
    if isinstance(requirements, (str, os.PathLike)):
        reader.add(requirements)
    else:
        for item in requirements:
            reader.add(item)
    return reader.wanted


class _Reader:
    def __init__(self, build: Callable[[Path], Path]) -> None:
        self.wanted = Wanted()
        self._build = build
        self._files = 0

    def add(self, item: str | os.PathLike[str]) -> None:
        """Add a string or a file."""
        if not isinstance(item, str):
            self._add_path(Path(item))
            return
        is_path = os.path.sep in item or item.endswith((".txt", ".toml", ".lock", ".in", ".whl"))
        one_word = "\n" not in item and item.strip() and not re.search(r"[;@\s]|://", item.strip())
        if one_word and (is_path or item in (".", "..")) and os.path.exists(item):
            self._add_path(Path(item))
        elif one_word and item.endswith((".txt", ".toml", ".lock", ".whl")):
            raise FileNotFoundError(f"no file {item!r}")
        else:
            for line in item.splitlines():
                self._add_words(line)

    def _add_words(self, line: str) -> None:
        """Add a line of a string, which may hold several requirements."""
        line = _without_comment(line)
        if line.startswith("-") or ";" in line or "@" in line or "://" in line:
            self._add_line(line, Path(), self.wanted.lines)
            return
        rest = line
        while rest:
            match = _ONE.match(rest)
            if match is None:
                raise ValueError(f"not a requirement: {hidden(rest)!r}")
            self.wanted.lines.append(re.sub(r"\s+", "", match[1]))
            rest = rest[match.end() :]

    def _add_path(self, path: Path) -> None:
        if path.is_dir() or path.name == "setup.py":
            self._add_file(self._build(path), "", "")
        elif path.suffix == ".whl":
            self._add_file(path, "", "")
        elif path.name == "pyproject.toml":
            self._add_pyproject(path)
        elif re.fullmatch(r"pylock(\..+)?\.toml", path.name):
            self._add_pylock(path)
        elif path.name == "uv.lock":
            self._add_uv_lock(path)
        elif path.suffix in (".toml", ".lock"):
            raise ValueError(f"{path}: of lock files, pylock.toml and uv.lock are understood")
        else:
            self._add_requirements(path, self.wanted.lines)

    # requirements files

    def _add_requirements(self, path: Path, to: list[str]) -> None:
        self._files += 1
        if self._files > FILES_MAX:
            raise ValueError(f"{path}: these files include each other")
        text = path.read_text("utf-8-sig")
        for line in re.sub(r"\\\r?\n", " ", text).splitlines():
            try:
                self._add_line(_without_comment(line), path.parent, to)
            except ValueError as exc:
                raise ValueError(f"{path}: {exc}") from None

    def _add_line(self, line: str, folder: Path, to: list[str]) -> None:
        """Add a line of a requirements file in ``folder``."""
        line = _VARIABLE.sub(lambda found: os.environ.get(found[1], found[0]), line).strip()
        if not line:
            return
        if line.startswith("-"):
            self._add_option(line, folder, to)
            return
        direct = _DIRECT.match(line)
        if direct is not None and not direct[3].startswith("file:"):
            to.append(line)
        elif direct is not None:
            self._add_local(_path_of(direct[3]), direct[2], direct[4], folder)
        elif _is_local(line, folder):
            local, _, marker = line.partition(";")
            match = re.fullmatch(rf"(.*?)({_EXTRAS})", local.strip())
            assert match is not None
            self._add_local(_path_of(match[1]), match[2], marker and f"; {marker}", folder)
        else:
            to.append(line)

    def _add_option(self, line: str, folder: Path, to: list[str]) -> None:
        match = _OPTION.match(line)
        assert match is not None
        name, value = match[1], match[2].strip().strip("\"'")
        if name in ("-r", "--requirement"):
            self._add_requirements(folder / value, to)
        elif name in ("-c", "--constraint"):
            self._add_requirements(folder / value, self.wanted.constraints)
        elif name in ("-e", "--editable"):
            if "://" in value and not value.startswith("file:"):
                raise ValueError(f"can't install {hidden(value)!r} in editable mode: leave out -e")
            self._add_line(value if _is_local(value, folder) else f"./{value}", folder, to)
        elif name in ("-i", "--index-url"):
            self.wanted.index_url = value
        elif name == "--extra-index-url":
            self.wanted.extra_urls.append(value)
        elif name in ("-f", "--find-links"):
            here = "://" in value
            self.wanted.find_links.append(value if here else str((folder / value).absolute()))
        elif name in _KEPT:
            to.append(line)
        elif name not in _DROPPED:
            raise ValueError(f"option {name} of requirements files is not supported")

    def _add_local(self, text: str, extras: str, rest: str, folder: Path) -> None:
        path = folder / os.path.expanduser(text)
        self._add_file(path if path.suffix == ".whl" else self._build(path), extras, rest)

    def _add_file(self, path: Path, extras: str, rest: str) -> None:
        """Add a wheel of this machine; it is sent when the far side asks for it."""
        match = _WHEEL.fullmatch(path.name)
        if match is None:
            raise ValueError(f"{path} does not have the name of a wheel")
        if not path.is_file():
            raise FileNotFoundError(f"no file {str(path)!r}")
        number = len(self.wanted.files)
        self.wanted.files.append(path.absolute())
        self.wanted.lines.append(f"{sent_file(match[1] + extras, number, path)} {rest}".rstrip())

    # pyproject.toml and locks

    def _add_pyproject(self, path: Path) -> None:
        project = load_toml(path).get("project", {})
        if "dependencies" in project.get("dynamic", ()):
            raise ValueError(f"{path}: its dependencies are dynamic; give its folder instead")
        for line in _strings(project.get("dependencies", []), path):
            self._add_line(line, path.parent, self.wanted.lines)

    def _add_pylock(self, path: Path) -> None:
        lock = load_toml(path)
        for package in _tables(lock.get("packages"), path):
            name, version = package.get("name"), package.get("version")
            if not _is_name(name) or not _is_version(version):
                raise ValueError(f"{path}: {name!r} has no version, which is not supported")
            marker = package.get("marker")
            self.wanted.lines.append(f"{name}=={version}" + (f" ; {marker}" if marker else ""))

    def _add_uv_lock(self, path: Path) -> None:
        """Take what the lock's own projects need, and the versions of all others."""
        packages = _tables(load_toml(path).get("package"), path)
        versions: dict[str, set[str]] = {}
        for package in packages:
            source = package.get("source", {})
            name, version = package.get("name"), package.get("version")
            if not _is_name(name):
                raise ValueError(f"{path}: {name!r} is not the name of a package")
            if {"editable", "virtual", "directory"} & source.keys():
                for needed in _tables(package.get("dependencies", []), path):
                    extras = ",".join(_strings(needed.get("extra", []), path))
                    line = f"{needed.get('name')}[{extras}]" if extras else str(needed.get("name"))
                    pin = f"=={needed['version']}" if "version" in needed else ""
                    marker = f" ; {needed['marker']}" if "marker" in needed else ""
                    self._add_line(line + pin + marker, path.parent, self.wanted.lines)
            elif "registry" not in source:
                raise ValueError(f"{path}: the source of {name} is not supported: {source}")
            elif _is_version(version):
                versions.setdefault(str(name), set()).add(str(version))
        for name, found in versions.items():
            if len(found) == 1:  # the others differ by markers, which the requirements have
                self.wanted.constraints.append(f"{name}=={found.pop()}")


def _without_comment(line: str) -> str:
    return re.sub(r"(^|\s)#.*$", "", line).strip()


def _is_local(line: str, folder: Path) -> bool:
    path = line.partition(";")[0].strip()
    if path.startswith(("./", "../", "/", "~/", "file:")) or path in (".", ".."):
        return True
    if re.match(r"\.\.?\[", path) or path.endswith(".whl"):
        return "://" not in path
    return os.sep in path and "://" not in path and (folder / path).exists()


def _path_of(text: str) -> str:
    if not text.startswith("file:"):
        return text
    from urllib.parse import unquote, urlsplit

    return unquote(urlsplit(text).path)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(_NAME, value) is not None


def _is_version(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9.+!_-]+", value) is not None


def _tables(value: object, path: Path) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
        raise ValueError(f"{path}: not a lock file of a supported kind")
    return value


def _strings(value: object, path: Path) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{path}: expected a list of strings, not {value!r}")
    return value


def load_toml(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file; ValueError if it is malformed."""
    from importlib import import_module

    for name in ("tomllib", "tomli", "pip._vendor.tomli"):
        try:
            toml = import_module(name)
        except ImportError:
            continue
        try:
            loaded: dict[str, object] = toml.loads(path.read_text("utf-8"))
        except ValueError as exc:
            raise ValueError(f"{path}: {exc}") from exc
        return loaded
    raise ValueError(f"can't read {path}: Python 3.10 needs the package tomli for that")
