"""Chooses pure wheels for a host without an installer.

It takes the newest version of each project that the requirements read so far allow, and does not
backtrack: where that leads nowhere, it says so.  Start at ``choose``.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping
from email.parser import HeaderParser
from importlib import import_module
from typing import Any

from .errors import DeployError
from .sources import File, Sources

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from email.message import Message
    from types import ModuleType
    from typing import Protocol

    class Tag(Protocol):
        """What a wheel fits to, as the package packaging has it."""

        interpreter: str
        abi: str
        platform: str


PROJECTS_MAX = 1000
MARKER_NAMES = {
    "os_name", "sys_platform", "platform_machine", "platform_python_implementation",
    "platform_release", "platform_system", "platform_version", "python_version",
    "python_full_version", "implementation_name", "implementation_version",
}  # fmt: skip
_STEP = "choosing wheels"
_LOCAL = re.compile(r"\{relay\}file/(\d+)/([^\s#]+)\S*")


def _packaging(name: str) -> ModuleType:
    for package in ("packaging", "pip._vendor.packaging"):
        try:
            return import_module(f"{package}.{name}")
        except ImportError:
            continue
    raise DeployError("choosing wheels needs the package packaging, or pip, here", _STEP)


def choose(
    lines: list[str],
    constraints: list[str],
    markers: Mapping[object, object],
    sources: Sources,
    installed: Mapping[object, object],
) -> list[tuple[str, bytes]]:
    """Return the names and contents of the wheels that the requirements need.

    markers: the far interpreter's values for the markers of requirements.  installed: versions
    that are there, by name; they are left out where they do.
    Raises ``DeployError`` if a wheel is missing, or the requirements conflict.
    """
    if markers.keys() != MARKER_NAMES:
        raise DeployError("the far side did not describe its interpreter", _STEP)
    environment = {str(name): str(value)[:300] for name, value in markers.items()}
    chooser = _Chooser(environment, sources, installed)
    for line in constraints:
        chooser.constrain(line)
    for line in lines:
        if not line.startswith("-"):
            chooser.add(line, "the requirements")
    return chooser.run()


class _Chooser:
    def __init__(
        self, environment: dict[str, str], sources: Sources, installed: Mapping[object, object]
    ) -> None:
        self._requirements = _packaging("requirements")
        self._specifiers = _packaging("specifiers")
        self._utils = _packaging("utils")
        self._environment = environment
        self._sources = sources
        self._links = sources.link_files()
        self._installed = {
            self._utils.canonicalize_name(str(name)): str(version)[:100]
            for name, version in installed.items()
        }
        self._wanted: dict[str, Any] = {}  # by project: the versions allowed
        self._extras: dict[str, set[str]] = {}
        self._local: dict[str, File] = {}
        self._chosen: dict[str, tuple[Any, File, Any]] = {}  # version, file, metadata
        self._todo: list[str] = []

    def constrain(self, line: str) -> None:
        """Allow only some versions of a project, if it is needed."""
        wanted = self._parse(line)
        if wanted is not None:
            name = self._utils.canonicalize_name(wanted.name)
            before = self._wanted.get(name, self._specifiers.SpecifierSet())
            self._wanted[name] = before & wanted.specifier

    def add(self, line: str, whose: str, extra: str = "") -> None:
        """Add a requirement, if its marker holds."""
        wanted = self._parse(line, extra)
        if wanted is None:
            return
        name = self._utils.canonicalize_name(wanted.name)
        local = _LOCAL.fullmatch(wanted.url.replace("relay:///", "{relay}")) if wanted.url else None
        if local is not None:
            digest, url = self._sources.file(int(local[1]), False)
            self._local[name] = File(local[2], url, digest)
        elif wanted.url:
            raise DeployError(f"{name}: installing from an address needs an installer", _STEP)
        before = self._wanted.get(name, self._specifiers.SpecifierSet())
        self._wanted[name] = before & wanted.specifier
        new_extras = wanted.extras - self._extras.setdefault(name, set())
        self._extras[name] |= new_extras
        if name in self._chosen:
            version, _, metadata = self._chosen[name]
            if not self._wanted[name].contains(version, prereleases=True):
                text = f"{whose} need {line}, and {name} {version} was chosen for others"
                raise DeployError(f"{text}: say which version it is to be", _STEP)
            for one in new_extras:
                self._add_needs(name, metadata, one)
        elif name not in self._todo and not self._is_there(name):
            self._todo.append(name)

    def _is_there(self, name: str) -> bool:
        """Whether the environment has what is wanted; whether it has an extra is not known."""
        there = self._installed.get(name)
        if there is None or name in self._local or self._extras[name]:
            return False
        try:
            return bool(self._wanted[name].contains(there, prereleases=True))
        except ValueError:  # no version at all
            return False

    def _parse(self, line: str, extra: str = "") -> Any:
        """Return a requirement, None if its marker does not hold on the far side."""
        try:
            wanted = self._requirements.Requirement(line.replace("{relay}", "relay:///"))
        except ValueError as exc:
            raise DeployError(f"not a requirement: {exc}", _STEP) from exc
        environment = dict(self._environment, extra=extra)
        return wanted if wanted.marker is None or wanted.marker.evaluate(environment) else None

    def run(self) -> list[tuple[str, bytes]]:
        """Choose until nothing is missing."""
        contents: list[tuple[str, bytes]] = []
        while self._todo:
            name = self._todo.pop(0)
            try:
                version, file = self._newest(name)
                data = self._sources.content(file)
            except DeployError:
                raise
            except OSError as exc:
                raise DeployError(f"can't get {name}: {exc}", _STEP) from exc
            metadata = _metadata_of(data, file.name)
            self._chosen[name] = version, file, metadata
            contents.append((file.name, data))
            if len(contents) > PROJECTS_MAX:
                raise DeployError(f"more than {PROJECTS_MAX} packages are needed", _STEP)
            for extra in ["", *sorted(self._extras.get(name, ()))]:
                self._add_needs(name, metadata, extra)
        return contents

    def _add_needs(self, name: str, metadata: Message[str, str], extra: str) -> None:
        for line in metadata.get_all("Requires-Dist") or ():
            self.add(line, name, extra)

    def _newest(self, name: str) -> tuple[Any, File]:
        listed = [self._local[name]] if name in self._local else [
            *self._links, *self._sources.project_files(name)
        ]  # fmt: skip
        found = []
        for file in listed:
            try:
                project, version, _, tags = self._utils.parse_wheel_filename(file.name)
            except ValueError:
                continue
            if project == name and self._fits(tags) and self._python_fits(file):
                found.append((version, file))
        wanted = self._wanted[name]
        stable = [pair for pair in found if wanted.contains(pair[0])]
        allowed = stable or [pair for pair in found if wanted.contains(pair[0], prereleases=True)]
        if not allowed:
            raise DeployError(f"no pure wheel of {name}{wanted} for this Python", _STEP)
        return max(allowed, key=lambda pair: pair[0])

    def _fits(self, tags: Iterable[Tag]) -> bool:
        major, minor = (int(part) for part in self._environment["python_version"].split("."))
        pythons = {f"py{major}"} | {f"py{major}{older}" for older in range(minor + 1)}
        return any(
            tag.interpreter in pythons and tag.abi == "none" and tag.platform == "any"
            for tag in tags
        )

    def _python_fits(self, file: File) -> bool:
        wanted = dict(file.attributes).get("data-requires-python", "")
        try:
            versions = self._specifiers.SpecifierSet(wanted)
        except ValueError:
            return False
        version = self._environment["python_full_version"].rstrip("+")
        return bool(versions.contains(version, prereleases=True))


def _metadata_of(wheel: bytes, name: str) -> Message[str, str]:
    try:
        with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
            names = archive.namelist()
            inside = next(n for n in names if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
            text = archive.read(inside).decode("utf-8", "replace")
    except (StopIteration, zipfile.BadZipFile) as exc:
        raise DeployError(f"{name} is not a wheel", _STEP) from exc
    return HeaderParser().parsestr(text, headersonly=True)
