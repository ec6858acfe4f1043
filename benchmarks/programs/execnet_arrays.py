"""64 MiB there and back, in milliseconds: as ``bytes``, as an array by a codec, or from buffers."""

from __future__ import annotations

from _measure import Result, Scaled, main, time_each

import execnet

ECHO = "for item in channel: channel.send(item)"
FROM_BUFFER = """
buffer = bytearray(channel.receive())
while True:
    channel.receive_into(buffer)
    channel.send_bytes(buffer)
"""
SIZE_BYTES = 64 << 20
SAMPLES = 9


def measure(scaled: Scaled, how: str) -> Result:
    count = scaled(SIZE_BYTES) // 8
    group = execnet.Group(["popen"])
    channel = group[0].remote_exec(FROM_BUFFER if how == "buffer" else ECHO)
    if how == "bytes":
        data = bytes(8 * count)

        def there_and_back() -> object:
            channel.send(data)
            return channel.receive()
    else:
        import numpy

        array = numpy.zeros(count)
        if how == "codec":
            channel.codec = execnet.codecs.numpy

            def there_and_back() -> object:
                channel.send(array)
                return channel.receive()
        else:
            back = numpy.ones(count)
            channel.send(8 * count)

            def there_and_back() -> object:
                channel.send_bytes(array)
                channel.receive_into(back)
                return back

    found = there_and_back()
    if bytes(memoryview(found).cast("B")) != bytes(8 * count):
        raise ValueError("other bytes came back")
    del found
    samples = time_each(there_and_back, SAMPLES, warm_up=2)
    group.terminate(5)
    return {"samples": [1e3 * sample for sample in samples]}


if __name__ == "__main__":
    main(measure)
