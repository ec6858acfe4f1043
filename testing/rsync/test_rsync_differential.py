"""What comes of trees that were changed by chance is what comes of them with the program rsync.

Known differences, which are left out of the comparison:

- Set-user-id and set-group-id bits, and sticky bits of files, which we drop.
- Links into the tree, which become links into the copy here and stay as they are there.
- Owners of what an ordinary user copies, which we report and rsync does not.
- A directory that cannot make way for something else, because it or what is in it is left out: here
  it stays as it was, and there all else in it has gone, or all of it.
- What has the name of a file that can't be read and is none itself: it stays here, and has gone
  there.

Where a directory can't be read, rsync deletes nothing in the whole tree.  It is compared with
``--ignore-errors``, and without what is in that directory, which stays only here.  ``python -m
benchmarks sync`` compares 2,000 trees, also as another user.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rsync_steps import STEPS, hard_link, take
from rsync_trees import NOBODY, make_tree, snapshot
from services import need

from execnet import Gateway, RSync

SEEDS = int(os.environ.get("EXECNET_RSYNC_SEEDS", "40"))
# sign and pattern of rules, of which some are taken in any order
RULES = [
    *(("-", "a"), ("-", "/b/*"), ("-", "x*"), ("-", "b/"), ("-", "/a/**"), ("-", "**/new*")),
    *(("-", "a/**/b"), ("-", " "), ("-", "*"), ("-", "**/"), ("+", "x*"), ("+", "*/")),
    *(("+", "/a/**"), ("+", "b/"), ("+", "a"), ("+", "/b/**/a")),
]
PARTIAL = 23  # what rsync ends with when something is not there
STAYS = "a directory that holds excluded entries", "Permission denied"


def by_chance(seed: random.Random, count: int, links: bool) -> list[Any]:
    """Return steps; without hard links in a target, of which each keeps what it can."""
    chosen = [number for number, step in enumerate(STEPS) if links or step is not hard_link]
    return [(seed.choice(chosen), *(seed.randrange(1000) for _ in range(3))) for _ in range(count)]


def give_some_away(roots: list[Path], seed: random.Random) -> None:
    """Have others own some of the trees; the second and third are alike and stay so."""
    for root, *more in [roots[:1], roots[1:]]:
        for path in [root, *sorted(root.rglob("*"))]:
            owner = seed.choice([(0, 0), (NOBODY, 0), (12345, 54321), (1, 2)])
            for one in [path, *(other / path.relative_to(root) for other in more)]:
                os.chown(one, *owner, follow_symlinks=False)


def owner_of(path: bytes) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_uid, found.st_gid


def outcome(root: Path, source: Path, *others: Path) -> Any:
    """Return what there is in a tree, without the known differences.

    A directory that the source does not have gets the time at which something in it is deleted.
    """
    found, others = snapshot(root), (source, *others)
    entries: dict[bytes, Any] = {}
    for name, (kind, mode, time_ns, content) in found.entries.items():
        kept = 0o1777 if kind == "directory" else 0o777
        if kind == "link" and content is not None:
            content = leads_to(name, content, [os.fsencode(one) for one in (root, *others)])
        if kind == "directory" and not os.path.isdir(os.path.join(os.fsencode(source), name)):
            time_ns = 0
        owner = owner_of(os.path.join(os.fsencode(root), name))
        entries[name] = kind, mode & kept, time_ns, content, owner
    return entries, found.hard_links


def differences(ours: Any, theirs: Any) -> list[Any]:
    """Return what is not the same in two outcomes, shortly."""
    names = sorted(ours[0].keys() | theirs[0].keys())
    pairs = [(name, ours[0].get(name), theirs[0].get(name)) for name in names]
    found: list[Any] = [
        (name[-30:], *[one and (*one[:3], one[3] and one[3][:20], one[4]) for one in pair])
        for name, *pair in pairs
        if pair[0] != pair[1]
    ]
    return found + ([(ours[1], theirs[1])] if ours[1] != theirs[1] else [])


def without(kept: set[bytes], found: Any) -> Any:
    """Return an outcome without some directories and what is in them."""
    entries, groups = found
    gone = {
        name for path in kept for name in entries if name == path or name.startswith(path + b"/")
    }
    entries = {name: entry for name, entry in entries.items() if name not in gone}
    left = (group - gone for group in groups)
    return entries, {group for group in left if len(group) > 1}


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


def trees_of(base: Path, seed: random.Random) -> tuple[Path, Path, Path]:
    """Return a source, and two targets alike: what it was once, with changes of their own."""
    source, dest, other = (make_tree(base / name, {}) for name in ("source", "dest", "other"))
    first = by_chance(seed, seed.randrange(25), links=True)
    ours, theirs = (by_chance(seed, seed.randrange(15), links=has) for has in (True, False))
    take(source, first, 0)
    take(source, ours, 10_000)
    for root in (dest, other):
        take(root, [step for step in first if STEPS[step[0]] is not hard_link], 0)
        take(root, theirs, 20_000)
        for number, path in enumerate(sorted(os.fsencode(path) for path in root.rglob("*"))):
            if os.path.islink(path) or os.path.isdir(path):
                os.utime(path, (number, number), follow_symlinks=False)
        os.utime(root, (1, 1))
    return source, dest, other


def hide_some(source: Path, seed: random.Random) -> Path | None:
    """Make a directory unreadable, for who is bound by modes; return it."""
    found = [path for path in source.rglob("*") if path.is_dir() and not path.is_symlink()]
    if os.geteuid() == 0 or not found or seed.random() < 0.8:
        return None
    hidden = seed.choice(sorted(found))
    hidden.chmod(0o311)
    return hidden


@pytest.mark.parametrize("part", range(4))
def test_the_outcome_is_that_of_rsync(gateway: Gateway, tmp_path: Path, part: int) -> None:
    rsync, broken = need("rsync", "rsync"), 0
    for number in range(part, SEEDS, 4):
        seed = random.Random(number)
        base = tmp_path / str(number)
        source, dest, other = trees_of(base, seed)
        hidden = hide_some(source, seed)
        deletes = seed.random() < 0.6
        rules = seed.sample(RULES, seed.randrange(1, 5)) if seed.random() < 0.5 else []
        excluded_too = deletes and seed.random() < 0.3
        words = ["--delete"] * deletes + ["--delete-excluded"] * excluded_too
        words += ["--ignore-errors"] * (hidden is not None)
        for sign, pattern in rules:
            words.append(f"--{'include' if sign == '+' else 'exclude'}={pattern}")
        owned = os.geteuid() == 0 and seed.random() < 0.5
        if owned:
            give_some_away([source, dest, other], seed)
        words += ["-og"] * owned
        command = [rsync, "-rlptH", "--modify-window=-1", *words, f"{source}/", f"{other}/"]
        try:
            done = subprocess.run(command, capture_output=True, timeout=20)
        except subprocess.TimeoutExpired:
            done = None
        if done is None or done.returncode not in (0, PARTIAL):
            broken += 1  # with some hard links its processes lose or wait for each other
            continue
        ours = RSync(source, verbose=False, rules=[" ".join(rule) for rule in rules])
        ours.add_target(gateway, dest, delete=deletes, delete_excluded=excluded_too, owners=owned)
        found = ours.send()
        assert found is not None
        stays = any(one.reason.startswith(STAYS[0]) for one in found.targets[0].skipped)
        assert (found.ok, number) == (done.returncode == 0 and not stays, number), (done, found)
        if hidden is not None:
            for root in (source, dest, other):
                path = root / hidden.relative_to(source)
                if path.is_dir():
                    path.chmod(0o755)
        skipped = found.targets[0].skipped
        kept = {os.fsencode(one.path) for one in skipped if one.reason.startswith(STAYS)}
        if hidden is not None and deletes:
            kept.add(os.fsencode(hidden.relative_to(source)))
        pair = outcome(dest, source), outcome(other, source, dest)
        assert differences(*(without(kept, one) for one in pair)) == [], number
        shutil.rmtree(base)
    assert broken <= SEEDS // 100
