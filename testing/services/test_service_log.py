"""Where what the code of a service prints goes, thread by thread."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from execnet._service.far_log import Route, Router

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no services there")


class Two:
    """A router, and the pipes of two connections; ``log`` is a third, in the place of stdout."""

    def __init__(self) -> None:
        self.pipes = [os.pipe() for _ in range(3)]
        self.routes: dict[int, Any] = {}
        self.noted: dict[int, Any] = {}
        self.router = Router(self.pipes[2][1], self.routes, self.noted)

    def write(self, route: Route | None, *texts: object) -> None:
        """Write in a thread of its own, which gets the number of the one before it."""
        thread = threading.Thread(target=self._write, args=(route, *texts))
        thread.start()
        thread.join()

    def _write(self, route: Route | None, *texts: object) -> None:
        ident = threading.get_ident()
        if route is not None:
            self.routes[ident], self.noted[ident] = route, True
        for text in texts:
            self.router.write(text)
        if route is not None:
            self.router.flush()
            del self.routes[ident], self.noted[ident]

    def route(self, number: int) -> Route:
        return Route(*[self.pipes[number][1]] * self.pipes[2][1])

    def read(self) -> list[bytes]:
        for _, fd in self.pipes:
            os.write(fd, b".")
        return [os.read(fd, 1000)[:-1] for fd, _ in self.pipes]


@pytest.fixture
def two() -> Iterator[Two]:
    two = Two()
    yield two
    for fd in sum(two.pipes, ()):
        os.close(fd)


def test_a_line_that_one_thread_has_begun_is_not_ended_by_another(two: Two) -> None:
    two.write(None, "begun")
    two.write(two.route(0), "a", "b\n", "c")
    two.write(two.route(1), "d\n")
    assert two.read() == [b"ab\nc", b"d\n", b"begun"]


def test_python_2_begins_a_line_with_a_space_only_where_its_own_thread_printed(two: Two) -> None:
    router, elsewhere = two.router, []
    router.softspace = 1
    thread = threading.Thread(target=lambda: elsewhere.append(router.softspace))
    thread.start()
    thread.join()
    assert (elsewhere, router.softspace) == ([False], True)
    router.end_code()
    assert not router.softspace


def test_bytes_and_strange_characters_are_written_as_well(two: Two) -> None:
    two.write(two.route(0), b"x", bytearray(b"y"), "\udc80\N{EURO SIGN}\n")
    assert two.read()[0] == b"xy\\udc80\xe2\x82\xac\n"


def test_what_comes_after_the_end_of_a_connection_goes_to_the_log(two: Two) -> None:
    route = two.route(0)
    route.close()
    two.write(route, "late\n")
    assert two.read() == [b"", b"", b"late\n"]
