"""Environments on the far side: found in one round trip, made if they do not exist.

The far half is in ``far``.  Start at ``create``.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from .._clock import monotonic
from .._errors import BootstrapError
from .._ship.parts import run
from .._transports.pythons import is_version, search_words
from ..gateway_base import RemoteError, TimeoutError
from ..xspec import XSpec
from ..xspec import build as build_spec
from . import quick
from .errors import DeployError, without_secret
from .making import Making, Options
from .output import Output
from .requirements import Wanted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..gateway import Gateway
    from ..gateway_base import Channel
    from .far.places import FindAnswer, FindRequest

ANSWERED = {
    "found", "key", "facts", "interpreter", "newest", "core", "has_core", "start", "has_start",
}  # fmt: skip
TRIES = 3  # another process may remove the one that was found
LADDER = ["uv", "venv", "venv --without-pip", "virtualenv", "unpack"]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Venv:
    """An environment on the far side, as in ``gateway.venv``.

    name, key: identify it.  path, python: its folder and its interpreter there.
    tool: what made it, such as "uv" or "venv".  is_new: whether this call had it made.
    """

    name: str
    key: str
    path: str
    python: str
    tool: str
    is_new: bool


def create(
    gateway: Gateway, name: str, wanted: Wanted, options: Options, output: Output
) -> Gateway:
    """Return a gateway to a worker of an environment's interpreter, in its folder."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of an environment")
    group: Any = gateway._group
    if group is None:
        raise ValueError(f"{gateway!r} belongs to no group, and only a group starts workers")
    job = _Job(gateway, name, wanted, options, output)
    place = XSpec("popen")
    group.allocate_id(place)  # which all tries share
    for attempt in range(TRIES):
        found = job.start_found(str(place.id))
        if found is not None:
            return found
        venv, hold = job.find_or_make()
        try:
            made: Gateway = group.makegateway(_spec_of(venv, gateway, str(place.id)))
        except BootstrapError:
            if attempt == TRIES - 1 or gateway.end_error is not None or venv.is_new:
                raise
            job.is_broken = True  # it was complete, and is gone now
            continue
        finally:
            hold.close()
        made.venv = venv  # type: ignore[attr-defined]
        job.keep_for_the_next(made)
        return made
    raise DeployError(f"environment {name!r} is removed as soon as it is made", "finding")


def _spec_of(venv: Venv, gateway: Gateway, id: str) -> XSpec:
    try:
        return build_spec(popen=True, via=gateway.id, id=id, python=[venv.python], chdir=venv.path)
    except ValueError as exc:
        raise DeployError(f"{gateway.id} names a path that no spec can say: {exc}") from exc


class _Job:
    """One call; ``find_or_make`` is called again if the environment found does not run."""

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
        self._is_fetched = False
        self._found: FindAnswer = {}  # what the far side said last
        self._has_bad_core = self._has_bad_start = False  # no worker came of what is kept

    def start_found(self, id: str) -> Gateway | None:
        """Return a worker of the environment if it is there, None if that needs more."""
        if self._is_made or self._again():
            return None
        request, timeout_s = self._request(recreate=False), self._left_s()
        made, found, hold = quick.start(self._gateway, id, request, timeout_s)
        if made is None or hold is None:
            if type(found) is dict:
                self._has_bad_core = bool(found.get("found") and found.get("has_core"))
                self._has_bad_start = not found  # nothing was looked for
            return None
        hold.close()
        try:
            self._check(found)
            venv = self._venv_of(found)
            spec = _spec_of(venv, self._gateway, id)
        except BaseException:
            made.exit()
            raise
        vars(made.spec).update(vars(spec))
        made.venv = venv  # type: ignore[attr-defined]
        return made

    def _again(self) -> bool:
        return bool(self._options.recreate or self._options.refresh or self.is_broken)

    def _venv_of(self, found: FindAnswer) -> Venv:
        return Venv(
            self._name, str(found["key"]), str(found["venv"]), str(found["python"]),
            str(found["tool"]), self._is_made,
        )  # fmt: skip

    def find_or_make(self) -> tuple[Venv, Channel]:
        """Return an environment, and what holds it there until it is closed."""
        for _ in range(TRIES):
            again = self._again()
            self._found, hold = self._find(recreate=again and not self._is_made)
            found = self._found
            if found["found"]:
                return self._venv_of(found), hold
            hold.close()
            more = {
                "name": self._name, "newer_than": found["newest"] if again else 0,
                "key": found["key"], "facts": found["facts"], "interpreter": found["interpreter"],
            }  # fmt: skip
            what = f"environment {self._name!r} on {self._gateway.id}"
            making = Making(self._gateway, what, self._wanted, self._options, self._output)
            making.run("_xdeploy.far.build", more, LADDER, self._left_s())
            self._is_made = True
        raise DeployError(f"environment {self._name!r} is removed as soon as it is made", "finding")

    def keep_for_the_next(self, made: Gateway) -> None:
        """Have what is missing kept there, so that the next calls take the quick way.

        That ends before this returns: the main threads are for the code of users, and the program
        may be about to end.
        """
        found = self._found
        keeping = []
        if not found["has_core"] or self._has_bad_core:
            keeping.append(quick.keep_core(made, str(found["core"])))
        if quick.keeps_start(self._gateway) and (not found["has_start"] or self._has_bad_start):
            keeping.append(quick.keep_start(self._gateway, str(found["start"])))
        for channel in filter(None, keeping):
            with suppress(OSError, EOFError, RemoteError, TimeoutError):
                channel.waitclose(quick.ANSWER_S)

    def _find(self, recreate: bool) -> tuple[FindAnswer, Channel]:
        options, gateway = self._options, self._gateway
        hold = gateway.newchannel()
        channel = run(gateway, "_xdeploy.far.find")
        channel.send({**self._request(recreate), "hold": hold})
        try:
            answer = channel.receive(self._left_s())
        except TimeoutError as exc:
            raise DeployError(f"{gateway.id} did not answer in time", "finding") from exc
        except (RemoteError, EOFError) as exc:
            raise DeployError(f"can't look for environments: {exc}", "finding") from exc
        self._check(answer)
        if "error" not in answer:
            return answer, hold
        hold.close()
        if options.fetch_python and not self._is_fetched:
            self._fetch(str(answer.get("key")))
            return self._find(recreate)
        text = (
            f"no Python {options.python!r} on {gateway.id}: looked in the PATH, "
            "/usr/bin, /usr/local/bin and the versions of pyenv and uv"
        )
        if is_version(options.python):
            text += "; with fetch_python=True, uv fetches one if it is installed there"
        raise DeployError(text, "finding")

    def _fetch(self, key: str) -> None:
        """Have uv fetch the interpreter, which is found from then on."""
        self._is_fetched = True
        version = str(self._options.python)
        what = f"Python {version!r} on {self._gateway.id}"
        options = replace(self._options, offline=False)  # that is about packages
        making = Making(self._gateway, what, Wanted(), options, self._output, "fetched")
        more = {"name": version, "key": key, "newer_than": 0, "facts": []}
        making.run("_xdeploy.far.fetch", more, [], self._left_s())

    def _check(self, answer: object) -> None:
        if type(answer) is not dict or not ("error" in answer or answer.keys() >= ANSWERED):
            raise DeployError(f"{self._gateway.id} broke the protocol", "finding")

    def _request(self, recreate: bool) -> FindRequest:
        options = self._options
        return {
            "name": self._name, "root": options.root, "recreate": recreate,
            "digest": self._wanted.digest(without_secret(options.index_url), options.find_links),
            "python": options.python or "", "python_search": search_words(options.python),
            "core": quick.core_digest(), "start": quick.start_digest(),
        }  # fmt: skip

    def _left_s(self) -> float:
        left = self._deadline - monotonic()
        if left <= 0:
            raise DeployError("the time is up", "finding")
        return left
