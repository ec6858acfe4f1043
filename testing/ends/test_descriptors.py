"""Descriptors of a coordinator: their numbers, how many there may be, and what is said of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from tools import IS_THOROUGH, Resources, run_python

from execnet import BootstrapError, Group, XSpec, gateway_base, gateway_io
from execnet._specs import Settings

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="it needs Linux")

SSH = """\
#!/bin/sh
for last; do :; done
echo "from ssh" >&2
exec sh -c "$last"
"""
BY_SOURCE = f"popen//python={sys.executable}"
SPECS = [
    *("popen", BY_SOURCE, "popen//output=forward", "popen//forkserver"),
    f"ssh=host//python={sys.executable}",
]


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Return a PATH with an ssh that runs its command here."""
    ssh = tmp_path / "ssh"
    ssh.write_text(SSH)
    ssh.chmod(0o755)
    return f"{tmp_path}:{os.environ['PATH']}"


class TestNumbers:
    @pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
    @pytest.mark.parametrize("spec", SPECS)
    def test_none_of_ours_is_that_of_a_standard_one(
        self, path: str, tmp_path: Path, closed: tuple[int, ...], spec: str
    ) -> None:
        """A program without those gets gateways that work, and prints nothing into them."""
        result = tmp_path / "result"
        run_python(
            f"""
import os, sys, time
for fd in {closed}:
    os.close(fd)
import execnet

def taken():
    # Those that stay so: the system gives them away for a moment, also for files to import.
    deadline = time.monotonic() + 1
    while True:
        found = [fd for fd in {closed} if os.path.lexists(f"/proc/self/fd/{{fd}}")]
        if "PyPy" in sys.version:  # it keeps those of libraries that it loads
            found = [fd for fd in found if ".so" not in os.readlink(f"/proc/self/fd/{{fd}}")]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.001)

execnet.default_group.on_output(lambda *args: None)
gateway = execnet.makegateway({spec!r})
found = [taken()]
channel = gateway.remote_exec('''
import os, sys
channel.send([os.isatty(fd) for fd in (0, 1, 2)])  # all are there
os.write(2, b"from the worker\\\\n" * 99)
sys.stderr.write("and more\\\\n" * 99)
for item in channel:
    channel.send(item)
''')
found.append(channel.receive(10))
for number in range(20):  # until items are read directly
    channel.send(number)
    found.append(channel.receive(10) == number)
    direct = gateway._channelfactory.direct
    found.append(direct is None or direct._wake_fd not in {closed})
time.sleep(0.1)  # until it listens for the end of a process that hides it
found.append(taken())
execnet.default_group.terminate(5)
found.append(taken())
with open({str(result)!r}, "w") as file:
    file.write(repr([item for item in found if item not in ([], True, [False] * 3)]))
""",
            PATH=path,
        )
        assert result.read_text() == "[]"

    def test_a_file_of_the_program_in_the_place_of_stderr_stays_as_it_is(
        self, path: str, tmp_path: Path
    ) -> None:
        file = tmp_path / "file"
        run_python(
            f"""
import os
os.close(2)
assert os.open({str(file)!r}, os.O_CREAT | os.O_RDWR) == 2
import execnet
for spec in {[spec for spec in SPECS if "forward" not in spec]!r}:
    code = "import os, sys; os.write(2, b'x'); sys.stderr.write('x'); channel.send(1)"
    assert execnet.makegateway(spec).remote_exec(code).receive(10) == 1
execnet.default_group.terminate(5)
""",
            PATH=path,
        )
        assert file.read_text() == ""


class TestTooFew:
    @pytest.mark.parametrize("spec", SPECS)
    def test_a_gateway_starts_or_fails_with_what_to_do(self, path: str, spec: str) -> None:
        """With any number of free descriptors; what fails leaves nothing behind."""
        result = run_python(
            f"""
import glob, os, resource, signal, time
import execnet
from execnet._forkserver import templates

def used():
    return sorted(map(int, os.listdir("/proc/self/fd")))[:-1]

def children():
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return True
    except ChildProcessError:
        return False
    except AttributeError:  # PyPy
        return any(open(path).read() for path in glob.glob("/proc/self/task/*/children"))

texts = []
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
execnet.default_group.on_output(lambda *args: None)
for free in range(0, 40, {1 if IS_THOROUGH else 3}):
    before = used()
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[-1] + 1 + free, hard))
    try:
        gateway = execnet.makegateway({spec!r})
    except execnet.BootstrapError as exc:
        texts.append(str(exc))
    else:
        texts.append("")
        gateway.remote_exec("channel.send(1)").receive(10)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    execnet.default_group.terminate(5)
    templates.shutdown()
    deadline = time.monotonic() + 10
    while (used() != before or children()) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert used() == before, (free, before, used(), texts[-1])
    assert not children(), (free, texts[-1])
assert texts[0] and not texts[-1], texts
for text in texts:
    assert not text or "raise the limit (ulimit -n, or resource.setrlimit)" in text, text
print("well")
""",
            PATH=path,
            timeout_s=120,
        )
        assert (result.stdout, result.returncode) == ("well\n", 0), result.stderr

    def test_several_are_refused_before_the_first_is_started(self) -> None:
        result = run_python(
            """
import os, resource, sys
import execnet

started = []
sys.addaudithook(lambda event, _: started.append(event) if event == "subprocess.Popen" else None)
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 12, hard))
try:
    execnet.default_group.makegateways(["popen"] * 4)
except execnet.BootstrapError as exc:
    print(started, len(execnet.default_group), exc)
"""
        )
        assert result.stderr == ""
        assert result.stdout.startswith("[] 0 4 gateways need 14 descriptors; ")
        assert "are in use: raise the limit (ulimit -n" in result.stdout

    @pytest.mark.parametrize(
        ("spec", "needed"),
        [("popen", 2), (f"ssh=host//python={sys.executable}", 3), ("sudo=root", 3)],
    )
    def test_as_many_are_counted_as_a_transport_takes(
        self, path: str, monkeypatch: pytest.MonkeyPatch, group: Group, spec: str, needed: int
    ) -> None:
        monkeypatch.setenv("PATH", path)
        assert gateway_io._needed(Settings(XSpec(spec))) == needed
        if spec == "sudo=root":
            return
        group.makegateway(spec)  # what all share is there now
        before = Resources.now()
        group.makegateway(spec)
        new = [word for word in before.new() if word.startswith("descriptor")]
        assert len([word for word in new if "eventfd" not in word]) == needed


class TestNoThread:
    @pytest.mark.parametrize(
        ("spec", "needed"), [("popen", 1), (SPECS[1], 2), (SPECS[4], 5), ("popen//heartbeat=9", 2)]
    )
    @pytest.mark.parametrize("started", range(6))
    def test_a_coordinator_that_can_start_none_says_so(
        self,
        path: str,
        monkeypatch: pytest.MonkeyPatch,
        group: Group,
        spec: str,
        needed: int,
        started: int,
    ) -> None:
        """At once, and leaves nothing; ``started`` is how many it still can."""
        if started > needed:
            return
        monkeypatch.setenv("PATH", path)
        left = [started]
        start = gateway_base._thread.start_new_thread

        def start_or_not(*args: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise RuntimeError("can't start new thread")
            return start(*args)

        monkeypatch.setattr(gateway_base._thread, "start_new_thread", start_or_not)
        if started == needed:
            group.makegateway(spec)
            return
        with pytest.raises(BootstrapError, match="can't start new thread"):
            group.makegateway(spec + "//connect_timeout=0")
