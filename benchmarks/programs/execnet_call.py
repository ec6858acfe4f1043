"""A call of a popen worker, in microseconds: by ``call``, by ``submit``, or over a channel."""

from __future__ import annotations

from _measure import Result, Scaled, main, microseconds, time_each

import execnet

ECHO = "for item in channel:\n    channel.send(item)"
NAME = "math:gcd"  # as it is sent


def measure(scaled: Scaled, how: str) -> Result:
    group = execnet.Group(["popen"])
    gateway = group[0]
    channel = gateway.remote_exec(ECHO) if how == "channel" else None

    def once() -> object:
        if channel is not None:
            channel.send((0, NAME, (12, 18)))
            return channel.receive()
        if how == "call":
            return gateway.call(NAME, 12, 18)
        return gateway.submit(NAME, 12, 18).result()

    if once() not in (6, (0, NAME, (12, 18))):
        raise ValueError("another result came back")
    samples = time_each(once, scaled(3000), warm_up=scaled(300))
    group.terminate(5)
    return microseconds(samples)


if __name__ == "__main__":
    main(measure)
