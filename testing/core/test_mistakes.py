"""Slips in specs: an error on the command line, a warning in programs."""

from __future__ import annotations

import itertools
import warnings

import pytest

import execnet
from execnet import Group, SpecWarning, XSpec, _cli
from execnet._mistakes import meant
from execnet._specs import KEYS

names = (f"slip{number}" for number in itertools.count())


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("poepn", "did you mean 'popen'?"),
        ("dcoker=web//nice=1", "did you mean 'docker=web//nice=1'?"),
        ("user@host:/p", "did you mean 'ssh=user@host//chdir=/p'?"),
        ("host:2222", "did you mean 'ssh=-p 2222 host'?"),
        ("example.org//nice=1", "did you mean 'ssh=example.org//nice=1'?"),
        ("popen//chdri=/tmp", "'chdri' is no key: did you mean 'chdir'?"),
        ("popen//tag=1", "there is no key 'tag'"),
        ("popen//preload=os", "preload= needs forkserver"),
        ("popen//host=x", "host= means nothing with popen="),
        ("ssh=host:2222", "did you mean 'ssh=-p 2222 host'?"),
        ("ssh=u@host:/srv", "did you mean 'ssh=u@host//chdir=/srv'?"),
    ],
)
def test_the_command_line_asks_what_was_meant(
    word: str, told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _cli.main(["info", "popen", word]) == 2
    line = capfd.readouterr().err
    assert line.startswith("execnet info: ")
    assert told in line
    assert line.count("\n") == 1


@pytest.mark.parametrize("value", ["::1", "fe80::1", "u@fe80::1", "-p 22 u@host", "host"])
def test_addresses_are_no_slips(value: str) -> None:
    assert execnet._specs.Settings(XSpec(f"ssh={value}")).unknown == []  # type: ignore[attr-defined]


def test_a_program_is_warned_once_a_key(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("execnet._mistakes._looked_at", set())
    text = r"'hcdir' is no key: did you mean 'chdir'\? \(in spec 'popen//hcdir=/env:A=...'\)"
    with pytest.warns(SpecWarning, match=text.replace("=/env", "=//env")) as caught:
        group.makegateway("popen//hcdir=//env:A=secret")
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group.makegateway("popen//hcdir=")
        group.makegateway("popen//tag=1//rsyncdirs=3//number=2")  # a program's own


def test_no_key_is_taken_for_another() -> None:
    assert [key for key in KEYS if meant(key, KEYS) != key] == []
