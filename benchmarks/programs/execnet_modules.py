"""The first call of a worker that imports 200 modules from here over a slow link."""

from __future__ import annotations

from _measure import Result, Scaled, main
from _modules import NAME, first_call_ms, modules_and_slow_python

import execnet


def measure(scaled: Scaled) -> Result:
    with modules_and_slow_python() as (function, python):
        group = execnet.Group()
        gateway = group.makegateway(f"popen//python={python}//imports={NAME}")
        gateway.call("os:getpid")
        sample = first_call_ms(gateway.call, function)
        group.terminate(5)
    return {"samples": [sample]}


if __name__ == "__main__":
    main(measure)
