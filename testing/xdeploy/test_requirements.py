"""What users ask for, in all its forms, becomes the lines of one requirements file."""

from __future__ import annotations

from pathlib import Path

import pytest
from wheels import make_wheel

from execnet._xdeploy.requirements import Requirements, Wanted, digest_of, read


def project(path: Path) -> Path:
    """Stand in for what builds a wheel of a project."""
    return make_wheel(path.parent / "built", path.resolve().name.replace("-", "_"))


def lines_of(requirements: Requirements) -> list[str]:
    return read(requirements, project).lines


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("numpy>=2 requests", ["numpy>=2", "requests"]),
        ("numpy >= 2, < 3 requests [socks, x] ~= 2.0", ["numpy>=2,<3", "requests[socks,x]~=2.0"]),
        ("a==1.0.* b", ["a==1.0.*", "b"]),
        ("a; python_version < '3.9'\nb c  # d", ["a; python_version < '3.9'", "b", "c"]),
        ("a @ https://host/a-1-py3-none-any.whl", ["a @ https://host/a-1-py3-none-any.whl"]),
        ("", []),
        (["a>1 b", "c"], ["a>1", "b", "c"]),
        ("--pre\na", ["--pre", "a"]),
    ],
)
def test_a_string_may_have_several(text: Requirements, lines: list[str]) -> None:
    assert lines_of(text) == lines


@pytest.mark.parametrize("text", ["a b!", "a=1", "-e https://x/y", "--target /x", "$(x)"])
def test_what_is_no_requirement_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"requirement|option|editable"):
        lines_of(text)


def test_a_file_with_all_that_it_includes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANTED", "tom")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "more.txt").write_text("sid \\\n  >= 1  # why\n-c c.txt\n../lib[x]\n")
    (tmp_path / "in" / "c.txt").write_text("sid<2\n")
    (tmp_path / "lib").mkdir()
    (tmp_path / "r.txt").write_text(
        "-r in/more.txt\n${WANTED}\n-i https://host/simple\n-f in\n--trusted-host host\n"
    )
    wanted = read(tmp_path / "r.txt", project)
    wheel = "lib-1.0-py2.py3-none-any.whl"
    digest = digest_of(wanted.files[0])  # without it, old versions of pip see the name of a file
    local = f"lib[x] @ {{relay}}file/0/{wheel}#sha256={digest}"
    assert [" ".join(line.split()) for line in wanted.lines] == ["sid >= 1", local, "tom"]
    assert (wanted.constraints, wanted.index_url) == (["sid<2"], "https://host/simple")
    assert wanted.find_links == [str(tmp_path / "in")]
    assert wanted.shown == f"{wanted.lines[0]} lib[x] @ {wheel} tom"


def test_files_that_include_each_other_end(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text("-r r.txt\n")
    with pytest.raises(ValueError, match="include each other"):
        lines_of(str(tmp_path / "r.txt"))


def test_a_pyproject_and_locks(tmp_path: Path) -> None:
    files = {
        "pyproject.toml": '[project]\nname = "x"\ndependencies = ["sid>=1", "tom"]\n',
        "pylock.toml": '[[packages]]\nname = "sid"\nversion = "1.0"\nmarker = "os_name == \'nt\'"\n'
        '[[packages]]\nname = "tom"\nversion = "2.0"\n',
        "uv.lock": '[[package]]\nname = "x"\nversion = "0"\nsource = { editable = "." }\n'
        'dependencies = [{ name = "sid", extra = ["y"], marker = "os_name == \'posix\'" }]\n'
        '[[package]]\nname = "sid"\nversion = "1.0"\nsource = { registry = "https://host" }\n'
        '[[package]]\nname = "tom"\nversion = "2.0"\nsource = { registry = "https://host" }\n',
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert lines_of(tmp_path / "pyproject.toml") == ["sid>=1", "tom"]
    assert lines_of(tmp_path / "pylock.toml") == ["sid==1.0 ; os_name == 'nt'", "tom==2.0"]
    wanted = read([tmp_path / "uv.lock"], project)
    assert wanted.lines == ["sid[y] ; os_name == 'posix'"]
    assert wanted.constraints == ["sid==1.0", "tom==2.0"]


def test_a_wheel_counts_by_its_content(tmp_path: Path) -> None:
    def digest(version: str) -> str:
        wheel = make_wheel(tmp_path, "sid", files={"more.py": version})
        return read(str(wheel), project).digest()

    assert digest("1") == digest("1") != digest("2")


def test_order_does_not_count_and_secrets_are_not_shown() -> None:
    assert read("a b", project).digest() == read("b a", project).digest()
    wanted = read("a @ https://sid:geheim@host/a-1-py3-none-any.whl", project)
    assert "geheim" not in wanted.shown
    assert Wanted().shown == ""
