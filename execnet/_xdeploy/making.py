"""Has something made on the far side, and answers its questions meanwhile.

The far half is in ``far``, ``build`` first.  Start at ``Making``.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._clock import monotonic
from .._ship.parts import run
from ..gateway_base import RemoteError, TimeoutError
from .answers import Answers
from .choose import choose
from .errors import DeployError, has_secret, hidden
from .output import Output
from .pips import pip_for
from .requirements import Wanted
from .sources import Sources, configured, default_index

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..gateway import Gateway
    from ..gateway_base import Channel

DEFAULT_S = 1800.0  # for finding, waiting for others and making
GRACE_S = 10.0  # how much longer than its time limit the far side may take to say that it is over


@dataclass
class Options:
    """What the user asks for, apart from the requirements."""

    python: str | None = None
    offline: bool | str = "auto"
    find_links: list[str] = field(default_factory=list)
    index_url: str = ""
    recreate: bool = False
    refresh: bool = False
    fetch_python: bool = False
    root: str = ""
    timeout_s: float = DEFAULT_S


class Making:
    """Makes one thing; ``what`` names it in errors, and ``done`` is what happens to it."""

    def __init__(
        self, gateway: Gateway, what: str, wanted: Wanted, options: Options, output: Output,
        done: str = "made",
    ) -> None:  # fmt: skip
        self._gateway = gateway
        self._what = what
        self._done = done
        self._wanted = wanted
        self._options = options
        self._output = output
        self._sources = self._make_sources()

    def _make_sources(self) -> Sources:
        """Return the sources that packages are served from."""
        options, wanted = self._options, self._wanted
        self._config = configured() if options.offline or has_secret(self._index_url()) else {}
        indexes: list[str] = []
        links = [*options.find_links, *wanted.find_links]
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

    def run(
        self, part: str, more: Mapping[str, object], ladder: list[str], timeout_s: float
    ) -> None:
        """Have a shipped part make it; ``DeployError`` if that fails.

        more: what else that part has to know.  ladder: the tools that it may use.
        """
        for execmodel in (self._gateway.execmodel.backend, self._gateway.spec.execmodel):
            if execmodel in ("gevent", "eventlet"):
                text = f"{self._what} can't be {self._done} with greenlets"
                raise DeployError(f"{text}: use a gateway with threads", "making")
        channel = run(self._gateway, part)
        index = self._gateway.newchannel()
        answers = Answers(index, self._sources)
        self._sources.deadline = monotonic() + timeout_s
        deadline = self._sources.deadline + GRACE_S
        try:
            request = self._request(timeout_s, index)
            channel.send({**request, "ladder": ladder, **more})
            while self._handle(channel, channel.receive(max(0.0, deadline - monotonic())), answers):
                pass
        except TimeoutError as exc:
            raise DeployError(f"{self._gateway.id} did not finish in time", "making") from exc
        except (RemoteError, EOFError) as exc:
            raise DeployError(f"{self._what} can't be {self._done}: {exc}", "making") from exc
        finally:
            with suppress(OSError, EOFError):
                channel.close()
            answers.close()

    def _request(self, timeout_s: float, index: Channel) -> dict[str, object]:
        wanted, options = self._wanted, self._options
        url = self._index_url()
        asks_index = has_secret(url) or bool(wanted.extra_urls)
        links = [*options.find_links, *wanted.find_links]
        return {
            "root": options.root,
            "lines": wanted.lines, "constraints": wanted.constraints, "shown": wanted.shown,
            "timeout": timeout_s, "index": index,
            "offline": options.offline, "default_index": self._default_index,
            "index_url": "" if asks_index else url, "asks_index": asks_index,
            "has_index": self._sources.has_index, "links": bool(links) or options.offline,
            "relays": asks_index or bool(links or wanted.files),
        }  # fmt: skip

    def _handle(self, channel: Channel, item: Any, answers: Answers) -> bool:
        """Act on a message of the far side; False after the last one."""
        kind, told = self._checked(item)
        if kind == "step":
            self._output.step(hidden(told[0]))
        elif kind == "line":
            self._output.line(hidden(told[0]))
        elif kind == "need":
            channel.send(self._answer(*told))
        elif kind == "failed":
            text, step, command, status, lines = told
            where = f"{self._what} was not {self._done}: "
            said = "".join(f"\nnot found from here: {line}" for line in answers.problems)
            raise DeployError(f"{where}{text}{said}", step, command, status, lines)
        return bool(kind != "done")

    def _checked(self, item: Any) -> tuple[str, list[Any]]:
        """Return the kind of a message and what it tells; ``DeployError`` if it is malformed."""
        try:
            kind = item[0]
            if kind in ("step", "line"):
                return kind, [str(item[1])]
            if kind == "need":
                what, argument, known = (*item[1:], ())[:3]
                if what == "pip":
                    return kind, [what, tuple(int(part) for part in argument), list(known)]
                return kind, [what, dict(argument), dict(known)]
            if kind == "failed":
                text, step, command, status, lines = item[1:]
                status = status if type(status) is int else None
                words, lines = [str(word) for word in command], [str(line) for line in lines]
                return kind, [str(text), str(step), words, status, lines]
            if kind != "done":
                raise ValueError(f"an unknown message {str(kind)[:50]!r}")
            return kind, []
        except (TypeError, ValueError, LookupError) as exc:
            text = f"{self._gateway.id} broke the protocol: {exc}"
            raise DeployError(text, "making") from exc

    def _answer(self, what: str, argument: Any, known: Any) -> object:
        """Return the answer to a question; known: what need not be sent."""
        if what == "pip":
            try:
                found = pip_for(argument, self._sources)
            except OSError as exc:
                self._output.line(hidden(f"no pip found: {exc}"))
                return None
            if found is None:
                return None
            digest = hashlib.sha256(found[1]).hexdigest()[:12]
            name = f"{found[0].split('-py')[0]}-{digest}"
            return name, None if name in known else found[1]
        try:
            wanted = self._wanted
            return choose(wanted.lines, wanted.constraints, argument, self._sources, known)
        except (DeployError, OSError) as exc:
            return hidden(str(exc))


def links_of(
    find_links: str | os.PathLike[str] | list[str | os.PathLike[str]] | None,
) -> list[str]:
    """Return folders as absolute paths, and addresses; ValueError for a missing folder."""
    if find_links is None:
        return []
    listed = find_links if isinstance(find_links, (list, tuple)) else [find_links]
    found = []
    for given in listed:
        link = os.fspath(given)
        if "://" not in link:
            path = Path(link).expanduser()
            if not path.exists():
                raise ValueError(f"find_links: no folder {str(path)!r} here")
            link = str(path.absolute())
        found.append(link)
    return found
