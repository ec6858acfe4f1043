"""Whose the other end of a Unix socket is, as systems other than Linux tell it.

A stand-in for a socket returns what their headers describe: nothing of these systems runs here.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from execnet._service import far_find
from execnet.script import socketserver

USER = 4_000_000_501  # an unsigned number, as uid_t is
GROUP, PROCESS = 20, 77
SOL_LOCAL, LOCAL_PEERCRED = 0, 1  # <sys/un.h>


class Xucred(ctypes.Structure):
    """``<sys/ucred.h>`` of macOS."""

    _fields_ = (
        ("cr_version", ctypes.c_uint),
        ("cr_uid", ctypes.c_uint32),
        ("cr_ngroups", ctypes.c_short),
        ("cr_groups", ctypes.c_uint32 * 16),
    )


class FreeBsdXucred(Xucred):
    """``<sys/ucred.h>`` of FreeBSD, which has the process at the end."""

    _fields_ = (("cr_pid", ctypes.c_void_p),)


class Standin:
    """A connected socket of such a system."""

    def __init__(self, told: bytes, option: tuple[int, int] = (SOL_LOCAL, LOCAL_PEERCRED)) -> None:
        self._told, self._option = told, option

    def getsockopt(self, level: int, option: int, size: int = 0) -> bytes:
        """Return as much as there is room for, as the systems do."""
        assert (level, option) == self._option
        return self._told[:size]


@pytest.fixture
def becomes(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make this process believe that it runs on another system."""

    def become(platform: str) -> None:
        monkeypatch.setattr(sys, "platform", platform)
        monkeypatch.delattr(socket, "SO_PEERCRED", raising=False)

    return become


def told_by(kind: type[Xucred], version: int = 0) -> bytes:
    groups = (ctypes.c_uint32 * 16)(GROUP)
    return bytes(kind(cr_version=version, cr_uid=USER, cr_ngroups=1, cr_groups=groups))


def test_the_structure_has_its_documented_size() -> None:
    assert ctypes.sizeof(Xucred) == 76


@pytest.mark.parametrize(("platform", "kind"), [("darwin", Xucred), ("freebsd14", FreeBsdXucred)])
def test_both_ends_are_told_the_user(
    becomes: Callable[[str], None], tmp_path: Path, platform: str, kind: type[Xucred]
) -> None:
    becomes(platform)
    sock: Any = Standin(told_by(kind))
    assert far_find.peer_of(sock) == (0, USER)
    assert socketserver.owner_of(sock, f"{tmp_path}/socket") == USER


@pytest.mark.parametrize("told", [told_by(Xucred, version=1), bytes(4)], ids=["version", "flag"])
def test_without_an_answer_that_is_known_the_folder_decides(
    becomes: Callable[[str], None], tmp_path: Path, told: bytes
) -> None:
    becomes("netbsd10")
    tmp_path.chmod(0o700)
    sock: Any = Standin(told)
    assert far_find.peer_of(sock) == (0, os.geteuid())
    assert socketserver.owner_of(sock, f"{tmp_path}/socket") == tmp_path.stat().st_uid


@pytest.mark.parametrize(
    ("platform", "fields"),
    [("linux", (PROCESS, USER, GROUP)), ("openbsd7", (USER, GROUP, PROCESS))],
)
def test_the_user_is_found_in_either_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, platform: str, fields: tuple[int, ...]
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(socket, "SO_PEERCRED", 17, raising=False)
    sock: Any = Standin(bytes((ctypes.c_uint32 * 3)(*fields)), (socket.SOL_SOCKET, 17))
    assert far_find.peer_of(sock) == (PROCESS, USER)
    assert socketserver.owner_of(sock, f"{tmp_path}/socket") == USER
