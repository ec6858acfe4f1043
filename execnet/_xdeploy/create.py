"""Environments on the far side: found in one round trip, made where they are not there.

What runs there is in ``far``.  Start at ``create``.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._clock import monotonic
from .._errors import BootstrapError
from .._ship.parts import run
from .._transports.pythons import search_words
from ..gateway_base import RemoteError, TimeoutError
from ..xspec import build as build_spec
from .answers import Answers
from .choose import choose
from .errors import DeployError, has_secret, hidden
from .output import Output
from .pips import pip_for
from .requirements import Wanted
from .sources import Sources, configured, default_index

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..gateway import Gateway
    from ..gateway_base import Channel

DEFAULT_S = 1800.0  # for finding, waiting for others and making
GRACE_S = 10.0  # how much longer than its time the far side may take to tell that it is over
TRIES = 3  # another process may remove what was found
LADDER = ["uv", "venv", "venv --without-pip", "virtualenv", "unpack"]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Venv:
    """An environment on the far side, as ``gateway.venv`` tells.

    name, key: what it is found by.  path, python: its folder and its interpreter there.
    tool: what made it, such as "uv" or "venv".  is_new: whether this call had it made.
    """

    name: str
    key: str
    path: str
    python: str
    tool: str
    is_new: bool


@dataclass
class Options:
    """What a user asks for beside the requirements."""

    python: str | None = None
    offline: bool | str = "auto"
    find_links: list[str] | None = None
    index_url: str = ""
    recreate: bool = False
    refresh: bool = False
    root: str = ""
    timeout_s: float = DEFAULT_S


def create(
    gateway: Gateway, name: str, wanted: Wanted, options: Options, output: Output
) -> Gateway:
    """Return a gateway to a worker of an environment's interpreter, in its folder."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of an environment")
    group: Any = gateway._group
    if group is None:
        raise ValueError(f"{gateway!r} belongs to no group, which starts workers")
    job = _Job(gateway, name, wanted, options, output)
    for attempt in range(TRIES):
        venv, hold = job.find_or_make()
        try:
            spec = build_spec(popen=True, via=gateway.id, python=[venv.python], chdir=venv.path)
            made: Gateway = group.makegateway(spec)
        except BootstrapError:
            if attempt == TRIES - 1 or gateway._error is not None or venv.is_new:
                raise
            job.is_broken = True  # it was complete, and is no more
            continue
        finally:
            hold.close()
        made.venv = venv  # type: ignore[attr-defined]
        return made
    raise DeployError(f"environment {name!r} is removed as soon as it is made", "finding")


class _Job:
    """One call; ``find_or_make`` is called again if what it found does not run."""

    def __init__(
        self, gateway: Gateway, name: str, wanted: Wanted, options: Options, output: Output
    ) -> None:
        self._gateway = gateway
        self._name = name
        self._wanted = wanted
        self._options = options
        self._output = output
        self._deadline = monotonic() + options.timeout_s
        self.is_broken = False
        self._is_made = False

    def find_or_make(self) -> tuple[Venv, Channel]:
        """Return an environment, and what holds it there until it is closed."""
        for _ in range(TRIES):
            again = self._options.recreate or self._options.refresh or self.is_broken
            found, hold = self._find(recreate=again and not self._is_made)
            if found["found"]:
                venv = Venv(
                    self._name, str(found["key"]), str(found["venv"]), str(found["python"]),
                    str(found["tool"]), self._is_made,
                )  # fmt: skip
                return venv, hold
            hold.close()
            _Making(self._gateway, self._name, self._wanted, self._options, self._output).run(
                found, again, self._left_s()
            )
            self._is_made = True
        raise DeployError(f"environment {self._name!r} is removed as soon as it is made", "finding")

    def _find(self, recreate: bool) -> tuple[dict[str, Any], Channel]:
        options, gateway = self._options, self._gateway
        hold = gateway.newchannel()
        channel = run(gateway, "_xdeploy.far.find")
        digest = self._wanted.digest(_without_secret(options.index_url), options.find_links)
        channel.send(
            {
                "name": self._name, "root": options.root, "digest": digest, "hold": hold,
                "recreate": recreate, "python_search": search_words(options.python),
            }
        )  # fmt: skip
        try:
            answer = channel.receive(self._left_s())
        except TimeoutError as exc:
            raise DeployError(f"{gateway.id} does not answer in time", "finding") from exc
        except RemoteError as exc:
            raise DeployError(f"environments can't be looked for: {exc}", "finding") from exc
        if "error" in answer:
            raise DeployError(
                f"there is no Python {options.python!r} on {gateway.id}: looked for in the PATH, "
                "/usr/bin, /usr/local/bin and among those of pyenv and uv", "finding"
            )  # fmt: skip
        return answer, hold

    def _left_s(self) -> float:
        left = self._deadline - monotonic()
        if left <= 0:
            raise DeployError("the time is up", "finding")
        return left


def _without_secret(url: str) -> str:
    return re.sub(r"://[^/@]*@", "://", url)


class _Making:
    """Has one environment made, and answers what is asked meanwhile."""

    def __init__(
        self, gateway: Gateway, name: str, wanted: Wanted, options: Options, output: Output
    ) -> None:
        self._gateway = gateway
        self._name = name
        self._wanted = wanted
        self._options = options
        self._output = output
        self._sources = self._make_sources()

    def _make_sources(self) -> Sources:
        """Return what is handed out from here."""
        options, wanted = self._options, self._wanted
        self._config = configured() if options.offline or has_secret(self._index_url()) else {}
        indexes: list[str] = []
        links = [*(options.find_links or ()), *wanted.find_links]
        if self._index_url():
            indexes = [self._index_url()]
        elif self._config.get("no-index", "0") in ("", "0", "false", "no", "off"):
            indexes = [self._config.get("index-url", "") or default_index()]
            indexes += self._config.get("extra-index-url", "").split()
            links += self._config.get("find-links", "").split()
        self._default_index = default_index()
        urls = [url for url in [*indexes, *wanted.extra_urls] if url]
        return Sources(wanted.files, links, urls, self._config.get("cert", ""))

    def _index_url(self) -> str:
        return self._options.index_url or self._wanted.index_url

    def run(self, found: dict[str, Any], again: bool, timeout_s: float) -> None:
        """Have it made; ``DeployError`` if that fails."""
        channel = run(self._gateway, "_xdeploy.far.build")
        index = self._gateway.newchannel()
        answers = Answers(index, self._sources)
        deadline = monotonic() + timeout_s + GRACE_S
        try:
            channel.send(self._request(found, again, timeout_s, index))
            while self._handle(channel, channel.receive(max(0.0, deadline - monotonic())), answers):
                pass
        except TimeoutError as exc:
            raise DeployError(f"{self._gateway.id} does not end in time", "making") from exc
        except RemoteError as exc:
            raise DeployError(f"environment {self._name!r} can't be made: {exc}", "making") from exc
        finally:
            with suppress(OSError, EOFError):
                channel.close()
            answers.close()

    def _request(
        self, found: dict[str, Any], again: bool, timeout_s: float, index: Channel
    ) -> dict[str, Any]:
        wanted, options = self._wanted, self._options
        url = self._index_url()
        asks_index = has_secret(url) or bool(wanted.extra_urls)
        links = [*(options.find_links or ()), *wanted.find_links]
        return {
            "name": self._name, "key": found["key"], "root": options.root,
            "interpreter": found["interpreter"], "facts": found["facts"],
            "newer_than": found["newest"] if again else 0,
            "lines": wanted.lines, "constraints": wanted.constraints, "shown": wanted.shown,
            "timeout": timeout_s, "ladder": LADDER, "index": index,
            "offline": options.offline, "default_index": self._default_index,
            "index_url": "" if asks_index else url, "asks_index": asks_index,
            "has_index": self._sources.has_index, "links": bool(links) or options.offline,
            "relays": asks_index or bool(links or wanted.files),
        }  # fmt: skip

    def _handle(self, channel: Channel, item: Any, answers: Answers) -> bool:
        """Act on what the far side says; False after its last word."""
        kind = item[0]
        if kind == "step":
            self._output.step(hidden(str(item[1])))
        elif kind == "line":
            self._output.line(hidden(str(item[1])))
        elif kind == "need":
            channel.send(self._answer(*item[1:]))
        elif kind == "failed":
            text, step, command, status, lines = item[1:]
            where = f"environment {self._name!r} on {self._gateway.id} was not made: "
            said = "".join(f"\nnot had from here: {line}" for line in answers.problems[-5:])
            raise DeployError(
                f"{where}{text}{said}", str(step), [str(word) for word in command],
                status if type(status) is int else None, [str(line) for line in lines],
            )  # fmt: skip
        return bool(kind != "done")

    def _answer(self, what: str, argument: Any) -> Any:
        if what == "pip":
            version = tuple(int(part) for part in argument)
            try:
                return pip_for(version, self._sources)
            except OSError as exc:
                self._output.line(hidden(f"no pip is to be had: {exc}"))
                return None
        try:
            return choose(self._wanted.lines, self._wanted.constraints, argument, self._sources)
        except (DeployError, OSError) as exc:
            return hidden(str(exc))


def links_of(
    find_links: str | os.PathLike[str] | list[str | os.PathLike[str]] | None,
) -> list[str]:
    """Return folders, absolute, and addresses; ValueError for a folder that is not there."""
    if find_links is None:
        return []
    listed = find_links if isinstance(find_links, (list, tuple)) else [find_links]
    found = []
    for given in listed:
        link = os.fspath(given)
        if "://" not in link:
            path = Path(link).expanduser()
            if not path.exists():
                raise ValueError(f"find_links: there is no {str(path)!r} here")
            link = str(path.absolute())
        found.append(link)
    return found
