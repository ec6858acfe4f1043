"""One int to a gateway of another kind than popen and back, in microseconds.

Arguments: ``socket`` (a server on loopback, on a free port, which a popen gateway serves), or
``via`` (a popen gateway through another).
"""

from __future__ import annotations

from _measure import Result, Scaled, main
from execnet_roundtrip import measure_with

import execnet

SPECS = {"socket": "socket//installvia=first", "via": "popen//via=first"}


def measure(scaled: Scaled, how: str) -> Result:
    group = execnet.Group(["popen//id=first"])
    result = measure_with(group.makegateway(SPECS[how]), scaled, "int")
    group.terminate(5)
    return result


if __name__ == "__main__":
    main(measure)
