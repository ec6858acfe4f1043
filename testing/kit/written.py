"""What tests of workers' output share; start at ``Written``."""

from __future__ import annotations

from tools import BOUND_S

from execnet import Gateway

FORWARD = "popen//output=forward"


class Written:
    """A callback; keeps (gateway's id, stream, line)."""

    def __init__(self) -> None:
        self.all: list[tuple[str, str, str]] = []

    def __call__(self, gateway: Gateway, stream: str, line: str) -> None:
        self.all.append((gateway.id, stream, line))

    def lines(self, stream: str = "stdout") -> list[str]:
        return [line for _, name, line in list(self.all) if name == stream]


def run_in(gateway: Gateway, code: str) -> None:
    gateway.remote_exec(code).waitclose(BOUND_S)
