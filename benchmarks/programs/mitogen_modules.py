"""The first call of a context that imports 200 modules from here over a slow link."""

from __future__ import annotations

import os

from _measure import Result, Scaled, main
from _mitogen import Router
from _modules import first_call_ms, modules_and_slow_python


def measure(scaled: Scaled) -> Result:
    with modules_and_slow_python() as (function, python):
        router = Router()
        context = router.router.local(python_path=python, connect_timeout=60)
        context.call(os.getpid)
        sample = first_call_ms(context.call, function)
        router.stop()
    return {"samples": [sample]}


if __name__ == "__main__":
    main(measure)
