"""One int to a mitogen context through another and back, by a call, in microseconds."""

from __future__ import annotations

from _measure import Result, Scaled, main
from _mitogen import Router
from mitogen_roundtrip import measure_with


def measure(scaled: Scaled, _: str) -> Result:
    router = Router()
    result = measure_with(router.start(via=router.start()), scaled, "int")
    router.stop()
    return result


if __name__ == "__main__":
    main(measure)
