"""What is handed to installers on the far side: nothing that no index and no folder has named."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from tools import BOUND_S, MakeGateway, run_python, threads, wait_until
from wheels import make_wheel

from execnet import XSpec
from execnet._transports.pythons import search_words
from execnet._transports.table import command
from execnet._xdeploy import pips
from execnet._xdeploy.answers import Answers
from execnet._xdeploy.far import relay
from execnet._xdeploy.far.relay import PATH
from execnet._xdeploy.sources import File, Sources, _files_of


class FakeChannel:
    """Keeps what is sent, and hands over what comes."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.receive: Any = None

    def setcallback(self, callback: Any) -> None:
        self.receive = callback

    def send(self, item: Any) -> None:
        self.sent.append(item)

    def close(self) -> None:
        pass


@pytest.fixture
def index(tmp_path: Path) -> str:
    """An index of files that has the project sid."""
    wheel = make_wheel(tmp_path / "files", "sid")
    page = tmp_path / "simple" / "sid" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text(
        f'<a href="../../files/{wheel.name}#sha256={"0" * 64}" data-requires-python="&gt;=3">s</a>'
        '<a href="../../secret.txt">x</a><a href="javascript:sid-2.0.tar.gz">y</a>'
    )
    (tmp_path / "secret.txt").write_text("geheim")
    return (tmp_path / "simple").as_uri()


def test_it_answers_for_what_is_listed_and_for_nothing_else(index: str) -> None:
    channel: Any = FakeChannel()
    answers = Answers(channel, Sources([], [], [index]))
    requests = [
        ("simple", "Sid"), ("file", "0"), ("content", "0" * 64), ("file", "1"), ("file", "-1"),
        ("content", "1" * 64), ("simple", "../.."), ("simple", "tom"), ("links", "/etc"),
        ("shell", "x"),
    ]  # fmt: skip
    for number, request in enumerate(requests):
        channel.receive((number, *request))
        wait_until(lambda number=number: (number, None) in channel.sent, BOUND_S)
    answers.close()
    heads = {item[0]: item[1] for item in channel.sent if len(item) == 4}
    assert [heads[n] for n in range(10)] == [200, 200, 200, 404, 502, 404, 502, 404, 502, 502]
    page = next(item[1] for item in channel.sent if len(item) == 2).decode()
    assert f'href="../../file/0/sid-1.0-py2.py3-none-any.whl#sha256={"0" * 64}"' in page
    assert 'data-requires-python="&gt;=3"' in page
    assert "secret" not in page
    with pytest.raises(ValueError, match="no request"):
        channel.receive("x")


def test_an_index_that_does_not_answer_keeps_nobody_from_ending() -> None:
    asked, answers_now = threading.Event(), threading.Event()

    class Silent(Sources):
        def project_files(self, name: str) -> list[File]:
            asked.set()
            answers_now.wait(BOUND_S)
            return []

    channel: Any = FakeChannel()
    answers = Answers(channel, Silent([], [], []))
    channel.receive((0, "simple", "sid"))
    assert asked.wait(BOUND_S)
    answers.close()
    assert not answers_now.is_set()
    answers_now.set()
    wait_until(lambda: "execnet-index" not in {thread.name for thread in threads()}, BOUND_S)


def test_a_page_from_elsewhere_names_no_file_of_this_machine() -> None:
    page = '<base href="file:///srv/"><a href="a-1.zip">a</a><a href="file:///b-1.zip">b</a>'
    assert list(_files_of(page, "https://host/simple/a/")) == []
    page = '<a href="https://other/a-1.zip">a</a><a href="/b-1.zip">b</a>'
    urls = [file.url for file in _files_of(page, "https://me:geheim@host/simple/a/")]
    assert urls == ["https://other/a-1.zip", "https://me:geheim@host/b-1.zip"]


@pytest.mark.parametrize("path", ["/simple/../x/", "/file/1/a/b", "/file/x/a", "/links", "/"])
def test_the_index_on_loopback_knows_three_kinds_of_paths(path: str) -> None:
    assert PATH.match(path) is None
    assert PATH.match("/simple/a.b-c/")


TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     {me}        0 1 1
   1: 0100007F:C350 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     {me}        0 2 1
   2: 0100007F:C351 0100007F:1F90 01 00000000:00000000 00:00000000 00000000 4000000        0 3 1
   3: 0100007F:C352 0100007F:1F91 01 00000000:00000000 00:00000000 00000000 4000000        0 4 1
"""


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="there are no such users there")
def test_the_index_on_loopback_is_for_this_user_alone(tmp_path: Path) -> None:
    table = tmp_path / "tcp"
    assert relay.is_ours(50001, 8080, str(table))  # where nobody knows
    table.write_text(TCP.format(me=os.geteuid()))
    mine = [relay.is_ours(port, 8080, str(table)) for port in (50000, 50001, 50002)]
    assert mine == [True, False, True]


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root can be another user as well"
)
def test_another_user_who_knows_its_path_is_refused(tmp_path: Path) -> None:
    channel: Any = FakeChannel()
    channel.setcallback = lambda *_, **__: None
    served = relay.Relay(channel, str(tmp_path))
    port = served.url.split(":")[2].split("/")[0]
    code = (
        "import os, socket, sys\nos.setuid(int(sys.argv[2]))\ns = socket.socket()\n"
        "s.connect(('127.0.0.1', int(sys.argv[1])))\n"
        "try:\n s.sendall(b'GET /nothing HTTP/1.0\\r\\n\\r\\n')\n print(s.recv(12).decode())\n"
        "except OSError: print('')"
    )
    try:
        said = [run_python(code, port, uid).stdout.strip() for uid in ("0", "65534")]
    finally:
        served.close()
    assert said == ["HTTP/1.0 404", ""]


def test_a_pip_is_chosen_for_the_far_python() -> None:
    for version, bounds in [((3, 6), ">=2.7, !=3.0.*, !=3.5.*"), ((3, 13), ">=3.9")]:
        wheel = make_pip(bounds)
        assert pips._runs_on(wheel, version)
    assert not pips._runs_on(make_pip(">=3.7"), (3, 6, 15))
    assert not pips._runs_on(make_pip(">=2.7, !=3.5.*"), (3, 5, 2))
    assert pips.pip_for((sys.version_info[0], sys.version_info[1], 0), Sources([], [], []))
    assert pips.pip_for((2, 7, 18), Sources([], [], [])) is None


def make_pip(bounds: str) -> bytes:
    import io
    import zipfile

    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("pip-1.dist-info/METADATA", f"Name: pip\nRequires-Python: {bounds}\n")
    return data.getvalue()


class TestSearch:
    def test_a_spec_may_ask_for_it(self, makegateway: MakeGateway) -> None:
        words = command(XSpec("ssh=host//python=auto"))
        assert not {"\n", "!"} & set(words[-1])
        gateway = makegateway("popen//python=auto")
        assert gateway._rinfo().version_info[0] == 3

    def run(self, wanted: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(search_words(wanted), capture_output=True, text=True)

    def test_auto_is_this_version_where_it_is_there(self) -> None:
        found = self.run("auto").stdout.strip()
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        asked = subprocess.run([found, "-c", code], capture_output=True, text=True, check=True)
        assert asked.stdout.split(".")[0] == "3"

    @pytest.mark.parametrize("wanted", ["3.99", "pypy3.99", "/no/such", "a'b;exit"])
    def test_what_is_not_there_is_not_found(self, wanted: str) -> None:
        result = self.run(wanted)
        assert (result.stdout, result.returncode) == ("", 1)

    def test_a_path_may_have_any_letters(self, tmp_path: Path) -> None:
        path = tmp_path / "it's $HOME"
        path.symlink_to(sys.executable)
        assert self.run(str(path)).returncode == 0
