"""Slow links: how often a start waits for one, and that many wait together.

``relay.py`` is the link. What is counted is what passed through it.
"""

from __future__ import annotations

import os
import random
import shlex
import sys
import time
from itertools import groupby
from pathlib import Path

import pytest
from services import script
from tools import BOUND_S, KIT, MakeGateway, find_python

from execnet import Group

RELAY = KIT / "relay.py"
DELAY_S = 0.2


def relay_as_ssh(folder: Path, monkeypatch: pytest.MonkeyPatch, options: str) -> None:
    """Put an ssh into the PATH that runs its command here, behind a relay."""
    words = shlex.join([sys.executable, "-S", "-E", str(RELAY)])
    script(folder / "ssh", f'exec {words} {options} --shell -- "$@"')
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


class Log:
    """What passed through a relay: pieces of (direction, time, bytes)."""

    def __init__(self, path: Path) -> None:
        lines = [line.split() for line in path.read_text().splitlines()]
        self.pieces = [(sign, float(when), int(size)) for sign, when, size in lines]

    def turns(self) -> str:
        """Return the directions in order, each as long as it lasted as one."""
        return "".join(sign for sign, _ in groupby(sign for sign, _, _ in self.pieces))

    def sent_at(self) -> float:
        """Return when the first piece was sent, by ``time.monotonic()``."""
        return self.pieces[0][1]

    def far_s(self) -> float:
        """Return how long the far side took to answer."""
        answered = next(when for sign, when, _ in self.pieces if sign == "<")
        return answered - self.sent_at() - DELAY_S


class TestRoundTrips:
    def spec(self, tmp_path: Path) -> str:
        python = shlex.quote(sys.executable)
        return f"ssh=host//python={python}//chdir={tmp_path}/new//env:WORD=a b//nice=1"

    def test_one_is_enough_for_chdir_env_and_nice(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, makegateway: MakeGateway
    ) -> None:
        relay_as_ssh(tmp_path, monkeypatch, f"--delay {DELAY_S} --log {tmp_path}/log")
        gateway = makegateway(self.spec(tmp_path))
        ready = time.monotonic()
        log = Log(tmp_path / "log")
        assert log.turns() in ("><", "><>")  # what is sent once it is ready is not waited for
        round_trip_s = 2 * DELAY_S
        assert round_trip_s <= ready - log.sent_at() - log.far_s() < 2 * round_trip_s
        channel = gateway.remote_exec("import os; channel.send([os.getcwd(), os.environ['WORD']])")
        assert channel.receive(BOUND_S) == [f"{tmp_path}/new", "a b"]

    def test_one_is_enough_for_the_default_interpreter(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, makegateway: MakeGateway
    ) -> None:
        relay_as_ssh(tmp_path, monkeypatch, f"--delay 0.05 --log {tmp_path}/log")
        makegateway("ssh=host")
        assert Log(tmp_path / "log").turns() in ("><", "><>")

    def test_the_first_line_fits_the_first_flight(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, makegateway: MakeGateway
    ) -> None:
        relay_as_ssh(tmp_path, monkeypatch, f"--delay 0.05 --log {tmp_path}/log")
        makegateway(self.spec(tmp_path))
        pieces = Log(tmp_path / "log").pieces
        assert [sign for sign, _, _ in pieces[:2]] == [">", "<"], "sent in one write"
        assert pieces[0][2] <= 14336


class TestTogether:
    """No link lets anything pass before all have started, so none is waited for alone."""

    @pytest.mark.parametrize(("kind", "count"), [("ssh", 8), ("popen", 16)])
    def test_all_of_a_group_start_at_once(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        group: Group,
        kind: str,
        count: int,
    ) -> None:
        (tmp_path / "crowd").mkdir()
        options = f"--crowd {tmp_path}/crowd {count}"
        if kind == "ssh":
            relay_as_ssh(tmp_path, monkeypatch, options)
            spec = f"ssh=host//python={shlex.quote(sys.executable)}"
        else:
            relay = shlex.join([sys.executable, "-S", "-E", str(RELAY), *options.split()])
            spec = f"popen//python={relay} -- {shlex.quote(sys.executable)}"
        gateways = group.makegateways([spec] * count)
        assert len({gateway._rinfo().pid for gateway in gateways}) == count


class TestModulesForSeveral:
    """Workers behind one link: each is forwarded the same modules, which cross it once."""

    SIZE = 300_000  # of what can't be packed, in more than one piece

    @pytest.mark.parametrize(("first", "version"), [("hop", "2.7"), ("one", "3.13")])
    def test_they_cross_the_link_once(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        group: Group,
        first: str,
        version: str,
    ) -> None:
        folder = tmp_path / "project"
        folder.mkdir()
        text = random.Random(version).randbytes(self.SIZE).hex()
        (folder / "large.py").write_text(f"from other import OTHER\nTEXT = {text!r}\n")
        (folder / "other.py").write_text("OTHER = 1\n")
        monkeypatch.syspath_prepend(folder)
        relay_as_ssh(tmp_path, monkeypatch, f"--log {tmp_path}/log")
        end = f"python={find_python(version)}//imports=large,other"
        ends = [f"popen//id={name}//via=hop//{end}" for name in ("one", "two")]
        group.makegateways([f"ssh=host//id=hop//{end}", *ends])
        crossed = [self._crossed(tmp_path)]
        for name in (first, "two", "one"):
            code = "import large; channel.send([len(large.TEXT), large.OTHER])"
            found = group[name].remote_exec(code).receive(BOUND_S)
            assert found == [2 * self.SIZE, 1]
            crossed.append(self._crossed(tmp_path))
        assert crossed[1] - crossed[0] > self.SIZE
        assert crossed[3] - crossed[1] < self.SIZE / 10

    def _crossed(self, folder: Path) -> int:
        return sum(size for sign, _, size in Log(folder / "log").pieces if sign == ">")
