"""``execnet sync``, run as its users run it."""

from __future__ import annotations

import importlib.util
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rsync_trees import assert_same, make_tree
from shell import Shell
from tools import missing, wait_until

from execnet._cli.session import CommandError
from execnet._cli.sync import parse_targets

SHOW_CURSOR, HIDE_CURSOR = b"\x1b[?25h", b"\x1b[?25l"
FILES = {"a": b"1", "d/b": b"22", "d/x.pyc": b"", "cache/y": b""}


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    shell.finish()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "source", FILES)


def test_a_tree_is_brought_to_all_targets_and_each_file_has_a_line(
    shell: Shell, source: Path
) -> None:
    done = shell.run("sync", "source", "popen:one", "popen:two/deep")
    assert (done.returncode, done.stderr) == (0, "")
    assert_same(source, shell.folder / "one")
    assert_same(source, shell.folder / "two/deep")
    lines = sorted(line for line in done.stdout.splitlines() if "sent" not in line)
    assert lines == sorted(f"[gw{number}] {name}" for number in (0, 1) for name in FILES)
    assert "[gw0] one: 4 files sent (3 bytes), 0 unchanged, 0." in done.stdout


def test_delete_removes_what_the_source_does_not_have(shell: Shell, source: Path) -> None:
    dest = make_tree(shell.folder / "dest", {"old": b"", "d/old": b""})
    shell.run("sync", "source", "popen:dest")
    assert (dest / "old").exists()
    done = shell.run("sync", "--delete", "source", "popen:dest")
    assert "4 unchanged, 2 deleted" in done.stdout
    assert_same(source, dest)


def test_what_is_replaced_by_another_kind_is_told(shell: Shell, source: Path) -> None:
    dest = make_tree(shell.folder / "dest", {"d": b"precious", "a/full": b"precious"})
    done = shell.run("sync", "-n", "source", "popen:dest")
    assert "[gw0] would delete d" in done.stdout.splitlines()
    said = "execnet sync: [gw0] a: a non-empty directory has its name\n"
    assert (done.stderr, (dest / "d").read_bytes()) == (said, b"precious")
    done = shell.run("sync", "source", "popen:dest")
    assert (", 1 deleted, " in done.stdout, done.stderr) == (True, said)


def test_a_dry_run_says_what_it_would_do(shell: Shell, source: Path) -> None:
    dest = make_tree(shell.folder / "dest", {"old": b""})
    done = shell.run("sync", "source", "popen:dest", "--dry-run", "--delete", "--exclude", "d")
    assert done.stdout.splitlines() == [
        "[gw0] would send a",
        "[gw0] would send cache",
        "[gw0] would send cache/y",
        "[gw0] would delete old",
    ]
    assert os.listdir(dest) == ["old"]


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        (["*.pyc"], ["a", "cache", "cache/y", "d", "d/b"]),
        (["d/*"], ["a", "cache", "cache/y", "d"]),
        (["a/", "cache/"], ["a", "d", "d/b", "d/x.pyc"]),
        (["b", "y", "[ad]"], ["cache"]),
        (["/d/b"], ["a", "cache", "cache/y", "d", "d/x.pyc"]),
    ],
)
def test_exclude_leaves_out_what_matches(
    shell: Shell, source: Path, patterns: list[str], left: list[str]
) -> None:
    options = [word for pattern in patterns for word in ("--exclude", pattern)]
    assert shell.run("sync", *options, "source", "popen:dest").returncode == 0
    found = (shell.folder / "dest").rglob("*")
    assert sorted(str(path.relative_to(shell.folder / "dest")) for path in found) == left


def test_rules_count_in_the_order_of_the_command_line(shell: Shell, source: Path) -> None:
    (shell.folder / "out").write_text("# comment\n\n+ d/b\nd/*\n")
    (shell.folder / "in").write_text("; comment\na\n")
    (shell.folder / "rules").write_text("- /cache/\n")
    make_tree(source, {".gitignore": b"*.log\n!keep.log\n", "x.log": b"", "keep.log": b""})
    make_tree(source, {"sub/.gitignore": b"/deep\n", "sub/deep": b"", "sub/e/deep": b""})
    words = [
        "--include-from", "in", "--exclude", "a", "--exclude-from", "out",
        "--exclude=sub", "--filter=!", "--include=a", "--exclude=a", "--exclude-from=out",
        "--filter=merge rules", "--gitignore",
    ]  # fmt: skip
    assert shell.run("sync", *words, "source", "popen:dest").returncode == 0
    dest = shell.folder / "dest"
    found = sorted(str(path.relative_to(dest)) for path in dest.rglob("*") if path.is_file())
    assert found == [".gitignore", "a", "d/b", "keep.log", "sub/.gitignore", "sub/e/deep"]


@pytest.mark.parametrize(
    "words",
    [["--filter", "x y"], ["--exclude", "/"], ["--filter", ". none"], ["--exclude-from", "none"]],
)
def test_a_bad_rule_starts_nothing(shell: Shell, source: Path, words: list[str]) -> None:
    done = shell.run("sync", *words, "source", "popen:dest")
    assert (done.returncode, words[0] in done.stderr) == (2, True)


def test_a_file_of_rules_that_is_changed_later_is_not_read_again(
    shell: Shell, source: Path
) -> None:
    rules = make_tree(shell.folder, {"rules": b"- /cache/\n"}) / "rules"
    process = shell.start("sync", "--watch", "--filter=merge rules", "source", "popen:dest")
    dest = shell.folder / "dest"
    wait_until(lambda: (dest / "d/b").exists())
    rules.write_text("no rule\n")
    (source / "new").write_bytes(b"1")
    wait_until(lambda: (dest / "new").exists())
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert (process.returncode, (dest / "cache").exists()) == (130, False)


def test_a_gitignore_that_cannot_be_read_starts_nothing(shell: Shell, source: Path) -> None:
    (source / "d/.gitignore").symlink_to(".gitignore")
    done = shell.run("sync", "--gitignore", "source", "popen:dest")
    text = "execnet sync: source/d/.gitignore: Too many levels of symbolic links\n"
    assert (done.returncode, done.stderr) == (2, text)
    assert not (shell.folder / "dest").exists()


def test_delete_leaves_alone_what_is_excluded_unless_told(shell: Shell, source: Path) -> None:
    dest = make_tree(shell.folder / "dest", {".env": b"secret", "old/.env": b"", "old/x": b""})
    done = shell.run("sync", "--delete", "--exclude", ".env", "source", "popen:dest")
    assert "1 deleted" in done.stdout
    assert ((dest / ".env").read_bytes(), os.listdir(dest / "old")) == (b"secret", [".env"])
    shell.run("sync", "--delete-excluded", "--exclude", ".env", "source", "popen:dest")
    assert_same(source, dest)


def test_an_unreadable_directory_does_not_keep_a_pattern_for_directories_from_being_used(
    shell: Shell, source: Path
) -> None:
    (source / "lock").mkdir(mode=0)
    done = shell.run("sync", "--exclude", "cache/", "source", "popen:dest")
    assert done.returncode in (0, 1)
    assert sorted(os.listdir(shell.folder / "dest"))[0::2] == ["a", "lock"]


def test_what_cannot_be_had_is_on_stderr_and_in_the_status(shell: Shell, source: Path) -> None:
    os.mkfifo(source / "fifo\n")
    done = shell.run("sync", "source", "popen:dest")
    assert done.returncode == 1
    assert done.stderr == "execnet sync: [gw0] fifo\\n: is a FIFO, left out\n"
    assert "1 left out" in done.stdout


def test_a_target_that_fails_is_on_stderr_and_in_the_status(shell: Shell, source: Path) -> None:
    done = shell.run("sync", "source", "popen:/dev/null/x", "popen:dest")
    assert done.returncode == 1
    assert done.stderr == "execnet sync: [gw0] gw0:/dev/null/x: Not a directory\n"
    assert_same(source, shell.folder / "dest")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["nowhere", "popen:dest"], "there is no 'nowhere'"),
        (["source", "popen"], "'popen' is not SPEC:DEST"),
        (["source", "popen:"], "'popen:' is not SPEC:DEST"),
        (["source", "popen//popen:x"], "popen"),
        (["source", "popen//id=a:x", "popen//id=a:y"], "id 'a' is taken"),
        (["--bwlimit=0", "source", "popen:x"], "'0' is not a rate above 0"),
        (["--modify-window=-1", "source", "popen:x"], "'-1' is not a number of seconds"),
        (["--mask=9", "source", "popen:x"], "'9' is not an octal number up to 777"),
    ],
)
def test_a_wrong_command_line_starts_nothing(
    shell: Shell, source: Path, arguments: list[str], error: str
) -> None:
    done = shell.run("sync", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert error in done.stderr
    assert os.listdir(shell.folder) == ["source"]


@pytest.mark.parametrize(
    ("word", "spec", "dest"),
    [
        ("popen:/tmp/x", "popen", "/tmp/x"),
        ("ssh=-p 22 user@host:dir", "ssh=-p 22 user@host", "dir"),
        ("socket=host:8888:/srv/x", "socket=host:8888", "/srv/x"),
        ("socket=[::1]:8888:x", "socket=[::1]:8888", "x"),
        ("ssh=win:C:\\x\\y", "ssh=win", "C:\\x\\y"),
        ("ssh=win//python=C:/python.exe:d:/x", "ssh=win//python=C:/python.exe", "d:/x"),
    ],
)
def test_dest_is_what_follows_the_last_colon(word: str, spec: str, dest: str) -> None:
    assert [(str(found), path) for found, path in parse_targets([word])] == [(spec, dest)]


def test_several_interpreters_of_one_word_share_its_path() -> None:
    assert [(str(spec), dest) for spec, dest in parse_targets(["2*popen:x"])] == [
        ("popen", "x")
    ] * 2
    with pytest.raises(CommandError, match="nothing to start"):
        parse_targets(["0*popen:x"])


def test_ctrl_c_ends_it_with_nothing_left(shell: Shell, source: Path) -> None:
    with open(source / "large", "wb") as file:
        file.truncate(1 << 40)
        file.seek(0)
        for _ in range(2000):
            file.write(b"x" * 4096)
            file.seek(1 << 26, os.SEEK_CUR)
    process = shell.start("sync", "source", "popen:dest")
    wait_until(lambda: list((shell.folder / "dest").glob(".execnet-rsync*")))
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert shell.nothing_is_left()
    assert not (shell.folder / "dest/large").exists()


class Terminal:
    """A command whose stderr is a terminal; ``drawn`` is what it has drawn there so far."""

    def __init__(self, shell: Shell, *arguments: str) -> None:
        if importlib.util.find_spec("rich") is None:
            missing("rich, of the extra cli")
        settings = {"PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm", "COLUMNS": "100"}
        self._fd, theirs = pty.openpty()
        self.drawn = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "execnet", "sync", *arguments],
            cwd=shell.folder,
            env={**os.environ, **settings},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=theirs,
        )
        os.close(theirs)

    def read(self) -> bytes:
        """Read once; b"" at the end."""
        try:
            chunk = os.read(self._fd, 4096)
        except OSError:  # how Linux tells that the other end is closed
            chunk = b""
        self.drawn += chunk
        return chunk

    def finish(self) -> str:
        """Read to the end; return what came on stdout."""
        while self.read():
            pass
        os.close(self._fd)
        assert self.process.stdout is not None
        with self.process.stdout as stdout:
            output = stdout.read().decode()
        self.process.wait()
        return output


def test_on_a_terminal_a_bar_shows_the_progress(shell: Shell, source: Path) -> None:
    (source / "large").write_bytes(os.urandom(3 << 20))
    terminal = Terminal(shell, "source", "popen:dest")
    stdout = terminal.finish()
    assert terminal.process.returncode == 0
    assert "3.1/3.1 MB" in terminal.drawn.decode()
    assert terminal.drawn.endswith(SHOW_CURSOR)
    assert stdout.startswith("[gw0] dest: 5 files sent (3.146 MB), 0 unchanged, ")
    assert stdout.count("\n") == 1


def test_verbose_prints_each_file_beside_the_bar(shell: Shell, source: Path) -> None:
    stdout = Terminal(shell, "-v", "source", "popen:dest").finish()
    lines = stdout.splitlines()
    assert sorted(lines[:-1]) == sorted(f"[gw0] {name}" for name in FILES)
    assert lines[-1].startswith("[gw0] dest: 4 files sent")


def test_after_ctrl_c_the_terminal_has_its_cursor_back(shell: Shell, source: Path) -> None:
    with open(source / "large", "wb") as file:
        for start in range(0, 1 << 34, 1 << 26):  # data here and there, for some time
            file.seek(start)
            file.write(b"x" * (1 << 20))
    terminal = Terminal(shell, "source", "popen:dest")
    while HIDE_CURSOR not in terminal.drawn:
        assert terminal.read()
    terminal.process.send_signal(signal.SIGINT)
    terminal.finish()
    assert terminal.process.returncode == 130
    assert SHOW_CURSOR in terminal.drawn


def test_names_are_printed_escaped_and_a_home_is_that_of_the_target(
    shell: Shell, source: Path
) -> None:
    Path(os.fsdecode(os.fsencode(source) + b"/b\xff\x1b[31m")).write_bytes(b"1")
    os.mkfifo(os.fsencode(source) + b"/pipe\xff\x1b")
    home = shell.folder / "home"
    done = shell.run("sync", "source", f"popen//env:HOME={home}:~/copy")
    assert r"[gw0] b\xff\x1b[31m" in done.stdout
    assert r"pipe\xff\x1b: is a FIFO" in done.stderr
    assert sorted(os.listdir(home / "copy")) == sorted(os.listdir(source))[:-1]
    assert not (shell.folder / "~").exists()


def test_what_a_worker_says_of_its_end_is_printed_escaped(shell: Shell) -> None:
    red = r"'\x1b[31mred\r'"
    done = shell.run("exec", "popen", "-c", f"raise ValueError({red})")
    assert r"ValueError: \x1b[31mred\r" in done.stderr.splitlines()[-1]
    done = shell.run("info", f"popen//chdir={shell.folder}/\x1b[31m")
    assert "\x1b" not in done.stdout + done.stderr


def test_modes_and_times_can_be_left_alone(shell: Shell, source: Path) -> None:
    (source / "a").chmod(0o600)
    os.utime(source / "a", (9, 9))
    shell.run("sync", "--no-perms", "--no-times", "source", "popen:dest")
    found = (shell.folder / "dest/a").stat()
    assert found.st_mtime > 1e9
    (shell.folder / "dest/a").chmod(0o640)
    done = shell.run("sync", "--no-perms", "--modify-window=1e10", "source", "popen:dest")
    assert "0 files sent" in done.stdout
    assert (shell.folder / "dest/a").stat().st_mode & 0o777 == 0o640
    assert shell.run("sync", "--modify-window=-1", "source", "popen:dest").returncode == 2
