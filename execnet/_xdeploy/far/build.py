"""Makes an environment, at its final path, with the first tool that can.

It sends tuples to the coordinator: ("step", text), ("line", text), ("need", what), which is
answered, and finally ("done", tool) or ("failed", text, step, command, status, lines).
This file is shipped.  Start at ``main``.
"""

from __future__ import annotations

import os
import shutil
import time

from .commands import Commands, Failure
from .flocks import Busy, NoLocks, exclusive, shared
from .locks import Lock
from .places import PRIVATE, cache_lock, key_folder, newest_venv, numbers_in, text_of
from .quick import native, root_folder
from .reach import reaches
from .relay import Relay
from .tools import RUNGS, Environment, NotHere
from .writing import make_folder, remove, remove_if_free, write_marker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ...gateway_base import Channel
    from .places import BuildRequest, Found, Marker
    from .tools import Place, Rung


def main(channel: Channel) -> None:
    """Make the environment of one request."""
    make(channel, Build)


def make(channel: Channel, kind: type[Build]) -> None:
    """Make what one request wants, with a ``Build``."""
    request = channel.receive()
    commands = Commands(channel, time.time() + request["timeout"], root_folder(request["root"]))
    try:
        tool = kind(channel, request, commands).run()
    except Failure as exc:
        channel.send((u"failed", exc.text, exc.step, exc.command, exc.status, exc.lines))
    except Busy as exc:
        text = u"%s is making it, and did not finish in time" % text_of(str(exc))
        channel.send((u"failed", text, commands.step, [], None, []))
    except EnvironmentError as exc:
        channel.send((u"failed", text_of(str(exc)), commands.step, [], None, []))
    else:
        channel.send((u"done", tool))


class Build(object):
    """Makes one thing, from nothing to its marker: an environment, unless a subclass differs."""

    kind = "venvs"

    def __init__(self, channel: Channel, request: BuildRequest, commands: Commands) -> None:
        self._channel = channel
        self.request = request
        self.commands = commands
        self.root = root_folder(request["root"])
        self._folder = key_folder(request["root"], self.kind, request["name"], request["key"])
        self._offline = False

    def run(self) -> str:
        """Make it, unless another process just did; return which tool did."""
        request, commands = self.request, self.commands
        commands.begin(u"making the folder")
        for path in (self.root, os.path.dirname(self._folder), self._folder):
            make_folder(path)
        deadline = time.time() + request["timeout"]
        path = os.path.join(self._folder, "lock")
        caches = self._hold_caches()
        try:
            return self._run_alone(Lock(path, deadline, self._tell_wait, commands.check))
        finally:
            if caches is not None:
                os.close(caches)

    def _hold_caches(self) -> int | None:
        """Hold the caches of installers, so that they are not pruned; return a descriptor or None.

        If they are being pruned right now, nothing of them is there any more.
        """
        path = cache_lock(self.root)
        try:
            open(path, "ab").close()
            return shared(path)
        except (Busy, NoLocks, EnvironmentError):
            return None

    def _run_alone(self, lock: Lock) -> str:
        with lock:
            found = self.find(self._folder)
            if found is not None and found[0] > self.request["newer_than"]:
                return found[1].get("tool", u"")
            numbers = numbers_in(self._folder)
            number = max(numbers or [0]) + 1
            tool = self._make(number)
            for old in numbers:
                remove_if_free(self._folder, old)
            return tool

    def find(self, folder: str) -> Found | None:
        """Return (number, marker) of a complete one, or None."""
        return newest_venv(folder)

    def _tell_wait(self, holder: str) -> None:
        self.commands.begin(u"waiting for %s, which is making the same" % holder)

    def _make(self, number: int) -> str:
        venv = os.path.join(self._folder, str(number))
        held = None
        try:
            held = exclusive(venv + ".held")
        except NoLocks:
            pass
        try:
            os.mkdir(venv + ".tmp", PRIVATE)
            tool = self._fill(venv, held)
            shutil.rmtree(venv + ".tmp", True)
            write_marker(self._folder, number, self._marker(tool))
            return tool
        except BaseException:
            remove(self._folder, number)
            raise
        finally:
            if held is not None:
                os.close(held)

    def _marker(self, tool: str) -> Marker:
        request = self.request
        return {
            u"name": text_of(request["name"]), u"tool": tool, u"made": u"%d" % time.time(),
            u"python": u" ".join(text_of(fact) for fact in request["facts"][:2]),
            u"requirements": text_of(request["shown"]), u"base": text_of(request["interpreter"]),
        }  # fmt: skip

    def _fill(self, path: str, held: int | None) -> str:
        """Make and fill it with the first tool that can; return its name."""
        request = self.request
        environment = self.environment(path, held)
        environment.is_to_be_filled = bool(request["lines"])
        relay = self._open_relay()
        try:
            variables = self._index(relay, environment.temporary)
            missing = []
            for name in request["ladder"]:
                rung = self.rungs[native(name)](environment, variables)
                try:
                    rung.create()
                except (NotHere, Failure) as exc:
                    self.commands.check()
                    missing.append(u"%s: %s" % (text_of(name), text_of(str(exc))))
                    environment.clear()
                    continue
                self._install(rung, relay)
                self.finish(environment)
                return text_of(name)
            raise Failure(u"none of the tools can make it:\n" + u"\n".join(missing), u"making")
        finally:
            if relay is not None:
                relay.close()

    rungs: dict[str, type[Rung]] = RUNGS

    def place(self, path: str, held: int | None) -> Place:
        """Return what an ``Environment`` is made from."""
        interpreter = native(self.request["interpreter"])
        return path, interpreter, self.request["facts"], self.root, self.commands, self._ask, held

    def environment(self, path: str, held: int | None) -> Environment:
        """Return the object that the tools fill."""
        return Environment(*self.place(path, held))

    def finish(self, environment: Environment) -> None:
        """Finish it."""
        environment.add_holder()

    def _install(self, rung: Rung, relay: Relay | None) -> None:
        request = self.request
        if not request["lines"]:
            return
        self.commands.begin(u"installing")
        url = native(relay.url) if relay is not None else ""
        rung.install(
            written(rung.environment.temporary, "requirements.txt", request["lines"], url),
            written(rung.environment.temporary, "constraints.txt", request["constraints"], url),
        )

    def _open_relay(self) -> Relay | None:
        """Return the index on loopback if packages come through the coordinator, else None.

        With "auto", that depends on whether the index can be reached from here.
        """
        request = self.request
        offline = request["offline"]
        if offline == u"auto" and request["lines"]:
            self.commands.begin(u"looking for the index")
            offline = not reaches(request["index_url"], request["default_index"])
        self._offline = offline is True
        if not (self._offline or request["relays"]):
            return None
        kept = os.path.join(self.root, "files")
        make_folder(kept)
        return Relay(request["index"], kept)

    def _index(self, relay: Relay | None, temporary: str) -> dict[str, str]:
        """Return the environment variables that tell installers where packages are."""
        request = self.request
        found: dict[str, str] = {}
        url = request["index_url"]
        if relay is not None:
            hosts = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
            hosts = ",".join(filter(None, [hosts, "127.0.0.1"]))
            found.update(no_proxy=hosts, NO_PROXY=hosts)
            if request["links"]:
                links = relay.url + "links/"
                found.update(PIP_FIND_LINKS=links, UV_FIND_LINKS=links)
            if self._offline or request["asks_index"]:
                found.update(PIP_CONFIG_FILE=os.devnull, UV_NO_CONFIG="1")
                # Caches are keyed by address, and ours are new each time.
                # Versions of pip before 19 understand no value of PIP_NO_CACHE_DIR.
                found.update(PIP_CACHE_DIR=os.path.join(temporary, "cache"), UV_NO_CACHE="1")
                found.update(PIP_NO_INDEX="0", PIP_EXTRA_INDEX_URL="", UV_EXTRA_INDEX_URL="")
                url = relay.url + "simple/" if request["has_index"] else ""
                if not url:
                    found.update(PIP_NO_INDEX="1", UV_NO_INDEX="1")
        if url:
            found.update(PIP_INDEX_URL=url, UV_DEFAULT_INDEX=url, UV_INDEX_URL=url)
        return found

    def _ask(self, what: str, *more: object) -> object:
        """Ask the coordinator, and return its answer."""
        self._channel.send((u"need", text_of(what)) + more)
        return self._channel.receive()


def written(folder: str, name: str, lines: list[str], url: str) -> str | None:
    """Write lines to a file that only this user can read; return its path, None without lines."""
    if not lines:
        return None
    path = os.path.join(folder, name)
    text = u"".join(text_of(line) + u"\n" for line in lines).replace(u"{relay}", text_of(url))
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(text.encode("utf-8"))
    return path
