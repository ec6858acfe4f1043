"""Patterns mean what they mean to the program rsync, and to git."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rsync_trees import make_tree
from tools import missing

from execnet._rsync.far.rules import Rules
from execnet._rsync.patterns import gitignore_rules, parse_rules

NAMES = ["a", "b", "ab", "foo", "a.o", ".h", "[z]", "x-y"]
ATOMS = [
    "a", "b", "ab", "foo", "*", "?", "**", "/", "/", "[ab]", "[!a]", "[a-c]", ".o", "\\*",
    "[[:alpha:]]", "[]z]", "x-y", "z",
]  # fmt: skip


def is_plain(pattern: str) -> bool:
    """Tell whether a pattern is one of which the documentation says what it means."""
    return bool(pattern.strip("/")) and "//" not in pattern and "****" not in pattern


PATTERNS = st.lists(st.sampled_from(ATOMS), min_size=1, max_size=5).map("".join).filter(is_plain)


def kept(root: Path, rules: Rules, path: str = "") -> set[str]:
    """Return the paths below a directory that take part, directories with a slash behind."""
    found = set()
    for entry in os.scandir(root / path):
        inner = f"{path}{entry.name}"
        if entry.name != ".git" and not rules.leaves_out(os.fsencode(inner), entry.is_dir()):
            found.add(inner + "/" * entry.is_dir())
            if entry.is_dir():
                found |= kept(root, rules, f"{inner}/")
    return found


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("patterns")
    for one in NAMES[:5]:
        make_tree(root / "tree" / one, {f"{name}.d/{name}": b"" for name in NAMES})
        make_tree(root / "tree" / one, dict.fromkeys(NAMES, b""))
        make_tree(root / "tree/d" / one, {"a/b/foo": b"", "b/a": b"", "foo": b""})
    return root / "tree"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("-+-"), PATTERNS), min_size=1, max_size=3))
def test_rules_leave_out_what_the_program_leaves_out(
    tree: Path, rules: list[tuple[str, str]]
) -> None:
    if shutil.which("rsync") is None:
        missing("rsync")
    words = [f"{sign} {pattern}" for sign, pattern in rules]
    command = ["rsync", "-rn", "--out-format=%n", *[f"--filter={word}" for word in words]]
    done = subprocess.run(
        [*command, f"{tree}/", f"{tree.parent}/none/"], capture_output=True, text=True, check=True
    )
    assert kept(tree, Rules(parse_rules(words))) == set(done.stdout.splitlines()) - {"./"}


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["", "", "!"]), PATTERNS), min_size=1, max_size=3), PATTERNS
)
def test_gitignore_leaves_out_what_git_does(
    tree: Path, lines: list[tuple[str, str]], deeper: str
) -> None:
    if shutil.which("git") is None:
        missing("git")
    subprocess.run(["git", "init", "-q", tree], check=True)
    (tree / ".gitignore").write_text("".join(f"{sign}{line}\n" for sign, line in lines))
    (tree / "ab/.gitignore").write_text(f"# comment\n\n{deeper}  \n!ab\n")
    done = subprocess.run(
        ["git", "-C", tree, "ls-files", "--others", "--exclude-per-directory=.gitignore"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = kept(tree, Rules(gitignore_rules(str(tree))))
    assert {path for path in found if path[-1] != "/"} == set(done.stdout.splitlines())
    for path in (tree / ".gitignore", tree / "ab/.gitignore"):
        path.unlink()


def test_a_gitignore_that_is_no_file_leaves_nothing_out(tmp_path: Path) -> None:
    make_tree(tmp_path, {"file/.gitignore": b"*.pyc\n"})
    for name in "dangling", "directory", "pipe":
        (tmp_path / name).mkdir()
    (tmp_path / "dangling/.gitignore").symlink_to("none")
    (tmp_path / "directory/.gitignore").symlink_to("..")
    os.mkfifo(tmp_path / "pipe/.gitignore")
    rules = Rules(gitignore_rules(str(tmp_path)))
    assert rules.leaves_out(b"file/x.pyc", False)
    assert not rules.leaves_out(b"dangling/x.pyc", False)


def test_a_gitignore_may_be_merged_and_means_what_it_means_to_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = "# compiled\n*.pyc\n!kept.pyc\na/b\n/cache/\n"
    make_tree(tmp_path, {".gitignore": lines.encode()})
    for kind in "merge .gitignore", ". .gitignore":
        rules = Rules(parse_rules(["+ own.pyc", kind]))
        left_out = [b"d/x.pyc", b"a/b", b"cache/"]
        kept_in = [b"own.pyc", b"d/kept.pyc", b"c/a/b", b"d/cache/", b"cache", b"#"]
        found = [rules.leaves_out(path.rstrip(b"/"), path[-1:] == b"/") for path in left_out]
        assert found == [True] * len(left_out)
        found = [rules.leaves_out(path.rstrip(b"/"), path[-1:] == b"/") for path in kept_in]
        assert found == [False] * len(kept_in)
    (tmp_path / ".gitignore").write_text("- /a\n!\n- /b/\n")
    assert parse_rules(["merge .gitignore"]) == parse_rules(["- /b/"])


def test_what_is_no_rule_in_a_merged_file_says_what_to_write(tmp_path: Path) -> None:
    make_tree(tmp_path, {"rules": b"- *.o\n*.pyc\n"})
    advice = r"'\*.pyc' in '.*rules': write '- \*.pyc', or 'merge,- .*rules' if each line is a"
    with pytest.raises(ValueError, match=advice):
        parse_rules([f"merge {tmp_path}/rules"])


@pytest.mark.parametrize(
    "rule", ["", "x", "- ", "-", "merge", ": .f", "-! a", "- /", "dir-merge f"]
)
def test_what_is_no_rule_is_refused(rule: str) -> None:
    with pytest.raises(ValueError, match=r"rule|pattern"):
        parse_rules([rule])


@pytest.mark.parametrize("line", ["merge rules", ". other"])
def test_a_file_that_merges_itself_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make_tree(tmp_path, {"rules": f"- a\n{line}\n".encode(), "other": b"merge rules\n"})
    with pytest.raises(ValueError, match="merge each other"):
        parse_rules(["merge rules"])


@pytest.mark.parametrize(
    ("pattern", "name"),
    [("*a*a*a*a*a*b", b"a" * 254), ("**a**a**a**b", b"a/" * 800),
     ("a/**/a/**/a/**/a/**/b", b"a/" * 800)],
)  # fmt: skip
def test_no_name_of_a_hostile_side_takes_long(tmp_path: Path, pattern: str, name: bytes) -> None:
    (tmp_path / ".gitignore").write_text(pattern)
    for rules in (gitignore_rules(str(tmp_path)), parse_rules([f"- {pattern}"])):
        assert not Rules(rules).leaves_out(name + b"c", False)
    assert Rules(rules).leaves_out(name + b"b", False)


@pytest.mark.parametrize("name", [b"caf\xc3\xa9", b"\xff\xfe"])
def test_names_of_any_bytes_match(name: bytes) -> None:
    rules = Rules(parse_rules([f"- {os.fsdecode(name)}"]))
    assert rules.leaves_out(b"d/" + name, False)
    assert not rules.leaves_out(b"d/" + name + b"x", False)
