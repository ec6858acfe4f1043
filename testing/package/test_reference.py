"""The reference is complete: what a program, a user or a peer may meet has a row.

Names of the package are looked after by ``doc/linked_names.py``, which fails the build.
"""

from __future__ import annotations

import re

from tools import ROOT

import execnet._resume.far_link  # it brings a code of its own  # noqa: F401
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
