"""The tools that make an environment and install into it, as a ladder.

A rung that cannot be used here raises ``NotHere`` while it makes the environment, and the next one
is tried; a failure after that is final.  This file is shipped.  Start at ``RUNGS``.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from abc import abstractmethod

from .commands import Failure
from .places import PRIVATE, python_of, text_of
from .quick import native
from .wheels import check, unpack
from .writing import make_folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .commands import Commands

    Ask = Callable[..., Any]  # takes what it is about, and more; returns the coordinator's answer
    # Path, interpreter, facts, root, commands, ask, held; see ``Environment``.
    Place = tuple[str, str, list[str], str, Commands, Ask, int | None]

# Run by each interpreter of the environment: it takes a shared lock of that, and of the layers that
# it was started with, and notes that they are used.
# Whoever checks whether it is used takes an exclusive lock for a moment.
HOLDER = u"""\
import os, sys
def _hold(path):
    try:
        import errno, fcntl, time
        fd = os.open(path + ".held", os.O_RDWR)
        if fd < 3:
            fd = fcntl.fcntl(fd, fcntl.F_DUPFD, 3)
        fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        for _ in range(100):
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                break
            except (OSError, IOError) as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    break
                time.sleep(0.01)
        os.utime(path + ".held", None)
    except (ImportError, OSError, IOError):
        pass
for _path in [sys.prefix] + os.environ.get("PYTHONPATH", "").split(os.pathsep):
    if _path:
        _hold(_path)
"""


class NotHere(Exception):
    """A tool is not installed here, or can't be used with this interpreter."""


class Environment(object):
    """The environment being made: ``path``, from ``interpreter``.

    temporary: a folder for files needed meanwhile.  ask: asks the coordinator.  held: a descriptor
    that all commands inherit.
    """

    def __init__(
        self, path: str, interpreter: str, facts: list[str], root: str, commands: Commands,
        ask: Ask, held: int | None
    ) -> None:
        self.path = path
        self.interpreter = interpreter
        self.implementation = native(facts[0])
        self.version = tuple(int(part) for part in native(facts[1]).split(".")[:3])
        self.root = root
        self.commands = commands
        self.ask = ask
        self.held = held
        self.temporary = path + ".tmp"
        self.is_to_be_filled = True
        self.python = python_of(path)
        self._packages: str | None = None

    def run(self, words: list[str], **variables: str) -> list[str]:
        """Run a command; errors as for ``Commands.run``."""
        environ = self.commands.environ(self.temporary, variables)
        return self.commands.run(words, environ, self.held)

    def ask_python(self, expression: str) -> Any:
        """Return the value of an expression in the environment's interpreter."""
        code = "import json, os, platform, sys, sysconfig; print(json.dumps(%s))" % expression
        environ = self.commands.environ(self.temporary, {})
        lines = self.commands.run([self.python, "-c", code], environ, self.held, True)
        try:
            return json.loads(lines[-1])
        except (IndexError, ValueError):
            raise Failure(u"its interpreter did not answer", u"making", (), None, lines)

    def clear(self) -> None:
        """Remove what was left by a tool that could not go on."""
        shutil.rmtree(self.path, True)
        self._packages = None

    def packages(self) -> str:
        """Return the folder of its packages."""
        if self._packages is None:
            folder = native(self.ask_python("sysconfig.get_path('purelib')"))
            if not os.path.abspath(folder).startswith(os.path.abspath(self.path) + os.sep):
                text = u"its packages would go elsewhere: %s" % text_of(folder)
                raise Failure(text, u"making")
            self._packages = folder
        return self._packages

    def add_holder(self) -> None:
        """Make its interpreters hold it; this comes last."""
        folder = self.packages()
        files = [("_execnet_held.py", HOLDER), ("_execnet_held.pth", u"import _execnet_held\n")]
        for name, text in files:
            with io.open(os.path.join(folder, name), "w", encoding="ascii") as file:
                file.write(text)

    def sent_pip(self) -> str:
        """Return the folder of a pip that the coordinator sends once; ``NotHere`` if it has none.

        It is unpacked, since modules in an archive are compiled at every start.
        """
        tools = os.path.join(self.root, "tools")
        make_folder(tools)
        answer = self.ask(u"pip", list(self.version), [text_of(name) for name in os.listdir(tools)])
        if not answer:
            version = "%d.%d" % self.version[:2]
            raise NotHere("the coordinator has no pip for Python %s" % version)
        name, data = answer
        folder = os.path.join(tools, os.path.basename(native(name)))
        if data is not None:
            new = os.path.join(self.temporary, "pip")
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                for entry in archive.infolist():
                    check(entry)
                archive.extractall(new)
            try:
                os.rename(new, folder)
            except OSError:  # another process did it first
                if not os.path.isdir(folder):
                    raise
        return os.path.join(folder, "pip")


def find_program(name: str) -> str | None:
    """Return the path of a program in the PATH or where users install programs, or None."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    home = os.path.expanduser("~")
    folders += [os.path.join(home, ".local", "bin"), os.path.join(home, ".cargo", "bin")]
    for folder in folders:
        path = os.path.join(folder, name)
        if os.path.isabs(path) and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def options_of(requirements: str | None, constraints: str | None) -> list[str]:
    """Return the words that name the files."""
    words = ["-r", requirements] if requirements else []
    return words + (["-c", constraints] if constraints else [])


class Rung(object):
    """A tool; ``variables`` say where to find packages."""

    def __init__(self, environment: Environment, variables: dict[str, str]) -> None:
        self.environment = environment
        self.variables = variables

    @abstractmethod
    def create(self) -> None:
        """Make it; raise ``NotHere`` if another tool has to, ``Failure`` if this one fails."""

    def pip(self) -> list[str]:
        """Return the words that start the installer."""
        return [self.environment.python, "-m", "pip"]

    def install(self, requirements: str | None, constraints: str | None) -> None:
        """Install what is listed in two files, either of which may be None."""
        words = self.pip() + ["install"] + options_of(requirements, constraints)
        variables = dict(self.variables, PYTHONDONTWRITEBYTECODE="")
        self.environment.run(words, **variables)


class Uv(Rung):
    """``uv``, if it is installed and supports this Python."""

    def create(self) -> None:
        environment = self.environment
        uv = find_program("uv")
        if uv is None:
            raise NotHere("it is not installed")
        self._uv = uv
        if environment.version < (3, 8):
            raise NotHere("it does not support Python %d.%d" % environment.version[:2])
        environment.commands.begin(u"making it with uv")
        words = [self._uv, "venv", "--no-project", "--python", environment.interpreter]
        environment.run(words + [environment.path], UV_NO_CONFIG="1")

    def install(self, requirements: str | None, constraints: str | None) -> None:
        words = [self._uv, "pip", "install", "--python", self.environment.python]
        words += ["--index-strategy", "unsafe-best-match"] + options_of(requirements, constraints)
        variables = dict(self.variables)
        if variables.pop("UV_NO_INDEX", None):
            words.append("--no-index")
        self.environment.run(words, **variables)


class Venv(Rung):
    """The standard library's ``venv``, with the pip that comes with it."""

    needs_pip = True

    def create(self) -> None:
        environment = self.environment
        if environment.version < (3, 3):
            raise NotHere("Python 2 has no venv")
        environment.commands.begin(u"making it with venv")
        words = [environment.interpreter, "-m", "venv"]
        if not (self.needs_pip and environment.is_to_be_filled):
            words.append("--without-pip")  # that would take most of the time
        environment.run(words + [environment.path])


class VenvAndPip(Venv):
    """``venv`` where Python comes without pip, as on Debian; the coordinator sends a pip."""

    needs_pip = False

    def create(self) -> None:
        self._pip = self.environment.sent_pip()
        Venv.create(self)

    def pip(self) -> list[str]:
        return [self.environment.python, self._pip]


class Virtualenv(Rung):
    """``virtualenv``, for Python 2.7: the installed one, or one that a pip of ours installs."""

    def create(self) -> None:
        environment = self.environment
        if environment.version[:2] != (2, 7):
            raise NotHere("it is only for Python 2.7")
        words = [environment.interpreter, "-m", "virtualenv"]
        variables = {"VIRTUALENV_OVERRIDE_APP_DATA": os.path.join(environment.root, "virtualenv")}
        try:
            environment.commands.begin(u"looking for virtualenv")
            environment.run(words + ["--version"], **variables)
        except Failure:
            variables["PYTHONPATH"] = self._fetch()
        environment.commands.begin(u"making it with virtualenv")
        words += ["--no-periodic-update", "--no-setuptools", "--no-wheel", environment.path]
        environment.run(words, **variables)

    def _fetch(self) -> str:
        """Install the last version that supports Python 2.7 into a folder of ours."""
        environment = self.environment
        folder = os.path.join(environment.temporary, "virtualenv")
        pip = environment.sent_pip()
        environment.commands.begin(u"fetching virtualenv")
        words = [environment.interpreter, pip, "install", "--target", folder, "virtualenv==20.15.1"]
        environment.run(words, **self.variables)
        return folder


class Unpack(Rung):
    """No tool at all: an environment made by hand, and pure wheels that the coordinator chooses."""

    def create(self) -> None:
        environment = self.environment
        if environment.version < (3, 3) or os.name == "nt":
            raise NotHere("it works neither on Python 2 nor on Windows")
        environment.commands.begin(u"making it by hand")
        version = "python%d.%d" % environment.version[:2]
        kind = "pypy%d.%d" % environment.version[:2]
        name = kind if environment.implementation == "pypy" else version
        folder = os.path.join(environment.path, "bin")
        packages = os.path.join(environment.path, "lib", name, "site-packages")
        os.makedirs(packages, PRIVATE)
        os.makedirs(folder, PRIVATE)
        base = os.path.realpath(environment.interpreter)
        os.symlink(base, os.path.join(folder, "python"))
        for other in ("python3", version):
            os.symlink("python", os.path.join(folder, other))
        home = text_of(os.path.dirname(base))
        text = u"home = %s\ninclude-system-site-packages = false\n" % home
        with io.open(os.path.join(environment.path, "pyvenv.cfg"), "w", encoding="utf-8") as file:
            file.write(text)
        environment.packages()  # this shows that it runs

    def install(self, requirements: str | None, constraints: str | None) -> None:
        install_wheels(self.environment, os.path.dirname(self.environment.python))


def install_wheels(
    environment: Environment, scripts: str, installed: dict[str, str] | None = None
) -> None:  # fmt: skip
    """Unpack the wheels that the coordinator chooses; their commands go into a folder.

    installed: the versions of distributions that need not be chosen, by name.
    """
    answer = environment.ask(u"wheels", environment.ask_python(MARKERS), installed or {})
    if not isinstance(answer, list):
        raise Failure(answer, u"choosing wheels")
    for name, data in answer:
        path = os.path.join(environment.temporary, "wheel.zip")
        with open(path, "wb") as file:
            file.write(data)
        environment.commands.begin(u"unpacking %s" % name)
        unpack(path, environment.packages(), scripts, environment.python)


# What requirements can ask about an interpreter.
MARKERS = """{
    "os_name": os.name, "sys_platform": sys.platform, "platform_machine": platform.machine(),
    "platform_python_implementation": platform.python_implementation(),
    "platform_release": platform.release(), "platform_system": platform.system(),
    "platform_version": platform.version(), "python_version": "%d.%d" % sys.version_info[:2],
    "python_full_version": platform.python_version(),
    "implementation_name": sys.implementation.name,
    "implementation_version": "%d.%d.%d" % sys.implementation.version[:3]
}"""

# The distributions that an interpreter has, for Python 3.8 and later.
INSTALLED = """{
    found.metadata["Name"]: found.version
    for found in __import__("importlib.metadata").metadata.distributions()
}"""

RUNGS = {
    "uv": Uv,
    "venv": Venv,
    "venv --without-pip": VenvAndPip,
    "virtualenv": Virtualenv,
    "unpack": Unpack,
}
