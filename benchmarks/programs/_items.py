"""The data that is measured with, the same for every peer.

Only types that every peer can send: None, bool, int, float, str, list, tuple and dict.
``nested`` among ``SHAPES`` has more, because only serializers meet it.
"""

from __future__ import annotations

from _measure import Scaled

SMALL = {
    "int": 123456,
    "dict": {"id": 7, "name": "test_one", "passed": True},
}

# The size of one item, by the name it has in arguments.
BULK_BYTES = {"64k": 64 << 10, "1m": 1 << 20, "64m": 64 << 20}
BULK_TOTAL_BYTES = 64 << 20  # what one sample moves, in items of one of these sizes
BULK_SAMPLES = 5


def round_trips(kind: str) -> tuple[object, int]:
    """Return the item of this kind and how many of its round trips are enough."""
    return (nested_item(), 200) if kind == "nested" else (SMALL[kind], 5_000)


def nested_item(rows: int = 200) -> dict[str, object]:
    """Return a table of ``rows`` rows with 12 values each: 2,400 by default."""
    return {"title": "run", "rows": [_row(number) for number in range(rows)]}


def _row(number: int) -> dict[str, object]:
    return {
        "id": number,
        "name": f"test_number_{number}",
        "passed": number % 7 != 0,
        "reason": None,
        "seconds": number / 64,
        "counts": [number, number * 300, -number, number << 33],
        "tags": ("slow", "network", f"group-{number % 10}"),
    }


def report() -> dict[str, object]:
    """Return what a test runner's worker sends for one test."""
    return {
        "nodeid": "testing/test_channel.py::TestChannel::test_items_arrive_in_order[thread]",
        "location": ["testing/test_channel.py", 117, "TestChannel.test_items_arrive_in_order"],
        "keywords": {"testing": 1, "test_channel.py": 1, "TestChannel": 1, "thread": 1},
        "outcome": "passed",
        "longrepr": None,
        "when": "call",
        "user_properties": [],
        "sections": [["Captured stdout call", "first line\nsecond line\n"]],
        "duration": 0.00153,
        "start": 1700000000.25,
        "stop": 1700000000.25153,
        "item_index": 411,
        "worker_id": "gw1",
    }


def _ints(scaled: Scaled) -> list[object]:
    return [list(range(scaled(100_000)))]


def _dicts(scaled: Scaled) -> list[object]:
    count = scaled(10_000)
    return [[{"id": n, "name": f"item-{n}", "passed": n % 2 == 0} for n in range(count)]]


def _reports(scaled: Scaled) -> list[object]:
    return [report()] * scaled(2_000)


def _nested(scaled: Scaled) -> list[object]:
    # No set of str: its order, and so its bytes, differ from process to process.
    rows = nested_item(scaled(200))
    return [[rows, {1, 2, 3}, frozenset([4]), b"\x00" * 1000, 2 - 1j, 1 << 80, "naïve \u2713"]]


def _bytes(scaled: Scaled) -> list[object]:
    return [b"x" * scaled(100_000_000)]


# Shape -> the objects that one sample dumps or loads, one after the other.
SHAPES = {
    "ints": _ints,
    "dicts": _dicts,
    "reports": _reports,
    "nested": _nested,
    "bytes": _bytes,
}
