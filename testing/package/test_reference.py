"""The reference is complete: what a program, a user or a peer may meet has a row.

That names of the package have entries is looked after by ``doc/linked_names.py``, which fails the
build; that there is something to say in them, here.
"""

from __future__ import annotations

import importlib
import inspect
import operator
import re
import sys

import pytest
from tools import ROOT

from execnet._cli import session
from execnet.gateway_base import Message, opcode


def rows(page: str, form: str) -> list[tuple[str, ...]]:
    text = (ROOT / "doc" / f"{page}.rst").read_text("utf-8")
    return re.findall(rf"^{form}", text, re.M)


def test_each_message_code_has_a_row() -> None:
    shown = {int(code): name for code, name in rows("protocol", r"(\d+) +``(\w+)``")}
    assert shown == {code: name for code, (name, _) in Message._types.items()}


def test_each_opcode_has_a_row() -> None:
    shown = {name: code.encode() for code, name in rows("protocol", r"``(.)`` +``(\w+)``")}
    assert shown == {name: code for name, code in vars(opcode).items() if name.isupper()}


def test_each_environment_variable_has_a_row() -> None:
    used = set()
    for path in (ROOT / "execnet").rglob("*.py"):
        used |= set(re.findall(r"EXECNET_[A-Z]+\b", path.read_text("utf-8")))
    assert set(rows("environment", r"``(EXECNET_\w+)``")) == used


def test_each_exit_status_has_a_row() -> None:
    named = {value for name, value in vars(session).items() if name.startswith("STATUS_")}
    named.remove(session.STATUS_SIGNAL)  # and the signals' numbers, which have rows of their own
    named |= {session.STATUS_SIGNAL + number for number in (1, 2, 15)}
    assert named <= {int(status) for status in rows("environment", r"(\d+) {3}")}


def test_what_people_look_for_is_found() -> None:
    pages = [path.read_text("utf-8").lower() for path in (ROOT / "doc").glob("*.rst")]
    for word in ("asyncio", "future", "pool", "pickle", "jupyter", "numpy", "upgrade", "slurm"):
        assert any(word in page for page in pages), word


def test_each_public_name_has_a_docstring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "doc"))
    public_names = importlib.import_module("public_names").public_names()
    assert {"execnet.Channel.send", "execnet.aio.Group.makegateway"} <= set(public_names)
    silent = []
    for name in public_names:
        module = max((one for one in sys.modules if name.startswith(f"{one}.")), key=len)
        owner, _, member = name.removeprefix(f"{module}.").rpartition(".")
        home = operator.attrgetter(owner)(sys.modules[module]) if owner else sys.modules[module]
        value = inspect.getattr_static(home, member, None) or getattr(home, member)
        has_text = callable(value) or isinstance(value, (property, classmethod, staticmethod))
        if has_text and not inspect.getdoc(getattr(home, member) if owner else value):
            silent.append(name)
    told_by_hand = {"execnet.Channel.codec", "execnet.Channel.next", "execnet.aio.Channel.codec"}
    assert set(silent) <= told_by_hand
