"""What comes of trees that were changed by chance is what comes of them with the program rsync.

Known differences, which are left out of the comparison: set-user-id and set-group-id bits, and
sticky bits of files, which we drop; links into the tree, which become links into the copy here and
stay as they are there.

``EXECNET_RSYNC_SEEDS=2000`` and ``-o timeout=0`` compare for long.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rsync_steps import STEPS, hard_link, set_time, take
from rsync_trees import make_tree, send, snapshot
from services import need
from tools import MakeGateway

from execnet import Gateway, RSync

SEEDS = int(os.environ.get("EXECNET_RSYNC_SEEDS", "40"))
EXCLUDED = ["a", "/b/*", "x*"]


@pytest.fixture
def gateway(makegateway: MakeGateway) -> Gateway:
    return makegateway()


def by_chance(seed: random.Random, count: int, links: bool) -> list[Any]:
    """Return steps; without hard links in a target, of which each keeps what it can."""
    chosen = [number for number, step in enumerate(STEPS) if links or step is not hard_link]
    return [(seed.choice(chosen), *(seed.randrange(1000) for _ in range(3))) for _ in range(count)]


def outcome(root: Path, *others: Path) -> Any:
    """Return what there is in a tree, without the known differences."""
    found = snapshot(root)
    entries: dict[bytes, Any] = {}
    for name, (kind, mode, time_ns, content) in found.entries.items():
        kept = 0o1777 if kind == "directory" else 0o777
        if kind == "link" and content is not None:
            content = leads_to(name, content, [os.fsencode(one) for one in (root, *others)])
        entries[name] = kind, mode & kept, time_ns, content
    return entries, found.hard_links


def differences(ours: Any, theirs: Any) -> list[Any]:
    """Return what is not the same in two outcomes, shortly."""
    names = sorted(ours[0].keys() | theirs[0].keys())
    pairs = [(name, ours[0].get(name), theirs[0].get(name)) for name in names]
    found: list[Any] = [
        (name[-30:], *[one and (*one[:3], one[3] and one[3][:20]) for one in pair])
        for name, *pair in pairs
        if pair[0] != pair[1]
    ]
    return found + ([(ours[1], theirs[1])] if ours[1] != theirs[1] else [])


def leads_to(name: bytes, text: bytes, roots: list[bytes]) -> bytes:
    """Return where a link leads: below its tree, or out of it, which is all the same."""
    for root in roots:
        if text == root or text.startswith(root + b"/"):
            return os.path.normpath(text[len(root) + 1 :] or b".")
    if os.path.isabs(text):
        return text
    inner = os.path.normpath(os.path.join(os.path.dirname(name), text))
    for root in roots:
        outer = os.path.normpath(os.path.join(root, inner))
        if outer.startswith(root + b"/"):
            return outer[len(root) + 1 :]
    return b"(out)" if inner.startswith(b"..") else inner


@pytest.mark.parametrize("part", range(4))
def test_the_outcome_is_that_of_rsync(gateway: Gateway, tmp_path: Path, part: int) -> None:
    rsync = need("rsync", "rsync")
    for number in range(part, SEEDS, 4):
        seed = random.Random(number)
        set_time.count = 0  # type: ignore[attr-defined]
        base = tmp_path / str(number)
        source, dest = make_tree(base / "source", {}), make_tree(base / "dest", {})
        first = by_chance(seed, seed.randrange(25), links=True)
        take(source, first)
        take(dest, [step for step in first if STEPS[step[0]] is not hard_link])
        take(source, by_chance(seed, seed.randrange(15), links=True))
        take(dest, by_chance(seed, seed.randrange(15), links=False))
        other = base / "other"
        subprocess.run(["cp", "-a", dest, other], check=True)
        deletes, excludes = seed.random() < 0.6, seed.random() < 0.4
        words = ["--delete"] * deletes
        words += [f"--exclude={pattern}" for pattern in EXCLUDED if excludes]
        done = subprocess.run(
            [rsync, "-rlptH", "--modify-window=-1", *words, f"{source}/", f"{other}/"],
            capture_output=True,
        )
        ours = RSync(source, verbose=False, rules=[f"- {one}" for one in EXCLUDED if excludes])
        ours.add_target(gateway, dest, delete=deletes)
        found = ours.send()
        assert found is not None
        assert (found.ok, number) == (done.returncode == 0, number), done.stderr
        assert differences(outcome(dest, source), outcome(other, source, dest)) == [], number
        again = send(gateway, source, source.with_name("fresh"))
        assert again.ok
        shutil.rmtree(base)
