"""The memory of a bare interpreter that waits for input, in MiB."""

from __future__ import annotations

import time

import _proc
from _measure import Result, Scaled, main
from _pipe import Interpreter

SETTLE_S = 0.5


def measure(scaled: Scaled, _: str) -> Result:
    interpreter = Interpreter("input()")
    time.sleep(SETTLE_S)
    memory = _proc.kib(interpreter.process.pid, "Pss") / 1024
    interpreter.write(b"\n")
    interpreter.stop()
    return {"samples": [memory]}


if __name__ == "__main__":
    main(measure)
