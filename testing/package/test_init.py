"""The names of ``execnet``: all there, each from where it is at home, loaded when it is used."""

from __future__ import annotations

import inspect
import io
import re
import warnings
from typing import Any

import pytest
from tools import run_python

import execnet

# Name -> the module that programs know it from as well.
NAMES = {
    "Channel": "gateway_base",
    "DataFormatError": "gateway_base",
    "DeadlockError": "gateway_base",
    "DumpError": "gateway_base",
    "Gateway": "gateway",
    "Group": "multi",
    "HostNotFound": "gateway_io",
    "LoadError": "gateway_base",
    "MultiChannel": "multi",
    "RSync": "rsync",
    "RemoteError": "gateway_base",
    "TimeoutError": "gateway_base",
    "XSpec": "xspec",
    "default_group": "multi",
    "dump": "gateway_base",
    "dumps": "gateway_base",
    "load": "gateway_base",
    "loads": "gateway_base",
    "makegateway": "multi",
    "set_execmodel": "multi",
    # not in 2.1
    "AuthenticationError": "_errors",
    "BootstrapError": "gateway_io",
    "ChannelGateway": "service",
    "ExecnetError": "gateway_base",
    "freeze_support": "_frozen",
    "ProtocolError": "gateway_base",
    "SecurityWarning": "_errors",
    "SpecWarning": "_errors",
    "WorkerDied": "_errors",
    "WorkerGone": "_errors",
}
DEPRECATED = ["PopenGateway", "SocketGateway", "SshGateway"]


class TestNames:
    @pytest.mark.parametrize("name", NAMES)
    def test_it_is_there_and_is_that_of_its_module(self, name: str) -> None:
        module = __import__(f"execnet.{NAMES[name]}", fromlist=[name])
        assert getattr(execnet, name) == getattr(module, name)
        assert name in execnet.__all__
        assert name in dir(execnet)

    @pytest.mark.parametrize("name", DEPRECATED)
    def test_names_of_old_programs_are_there(self, name: str) -> None:
        assert callable(getattr(execnet, name))
        assert name in execnet.__all__

    def test_all_names_each_thing_once_and_nothing_else(self) -> None:
        assert sorted(execnet.__all__) == sorted({*NAMES, *DEPRECATED, "__version__"})

    def test_a_star_import_gives_them(self) -> None:
        namespace: dict[str, Any] = {}
        exec("from execnet import *", namespace)
        assert set(namespace) - {"__builtins__"} == set(execnet.__all__)

    def test_the_version_is_this_one(self) -> None:
        assert execnet.__version__ == "3.0.0"

    def test_other_names_are_attribute_errors(self) -> None:
        with pytest.raises(AttributeError, match=r"'execnet'.*'nonsense'"):
            execnet.nonsense  # noqa: B018
        assert not hasattr(execnet, "_nonsense")
        with pytest.raises(ImportError):
            from execnet import nonsense  # noqa: F401

    @pytest.mark.parametrize(
        "module", ["gateway_base", "gateway", "gateway_io", "gateway_bootstrap", "multi", "xspec"]
    )
    def test_modules_are_attributes_without_an_import(self, module: str) -> None:
        code = f"import execnet; print(execnet.{module}.__name__)"
        assert run_python(code).stdout == f"execnet.{module}\n"

    @pytest.mark.parametrize(
        ("name", "parameters"),
        [
            ("dump", "byteio, obj"),
            ("dumps", "obj"),
            ("load", "io, py2str_as_py3str=False, py3str_as_py2str=False"),
            ("loads", "bytestring, py2str_as_py3str=False, py3str_as_py2str=False"),
            ("makegateway", "spec=None"),
            ("set_execmodel", "execmodel, remote_execmodel=None"),
            ("PopenGateway", "python=None"),
            ("SocketGateway", "host, port"),
            ("SshGateway", "sshaddress, remotepython=None, identity=None, ssh_config=None"),
            ("XSpec", "string"),
            ("MultiChannel", "channels"),
            ("RSync", "sourcedir, callback=None, verbose=True"),
        ],
    )
    def test_a_function_takes_what_it_took(self, name: str, parameters: str) -> None:
        signature = inspect.signature(getattr(execnet, name))
        plain = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        shown = re.sub(r"<.*?>", "...", ", ".join(map(str, plain)))
        assert shown.startswith(parameters), "more may come behind what was there"

    def test_errors_are_what_callers_catch(self) -> None:
        assert issubclass(execnet.TimeoutError, OSError)
        assert issubclass(execnet.DumpError, execnet.DataFormatError)
        assert issubclass(execnet.LoadError, execnet.DataFormatError)
        assert issubclass(execnet.WorkerDied, EOFError)
        assert issubclass(execnet.ProtocolError, EOFError)
        for name in NAMES:
            value = getattr(execnet, name)
            if isinstance(value, type) and issubclass(value, Exception) and "Warning" not in name:
                assert issubclass(value, execnet.ExecnetError)


class TestDefaultGroup:
    def test_its_methods_are_the_functions_of_the_module(self) -> None:
        for function in execnet.makegateway, execnet.set_execmodel:
            assert function.__self__ is execnet.default_group

    def test_set_execmodel_holds_for_makegateway(self) -> None:
        code = """
import execnet
execnet.set_execmodel("thread", "main_thread_only")
gateway = execnet.makegateway()
print(gateway.execmodel.backend, gateway.remote_status().execmodel, execnet.default_group)
"""
        assert run_python(code).stdout == "thread main_thread_only <Group ['gw0']>\n"


class TestDumping:
    def test_dumps_and_loads_are_inverse(self) -> None:
        item = {"a": [1, (2.5, b"x", None)], 3: {True, "\u20ac"}}
        assert execnet.loads(execnet.dumps(item)) == item

    def test_dump_and_load_do_the_same_with_files(self) -> None:
        file = io.BytesIO()
        execnet.dump(file, [1])
        execnet.dump(file, "two")
        file.seek(0)
        assert [execnet.load(file), execnet.load(file)] == [[1], "two"]
        with pytest.raises(EOFError):
            execnet.load(file)

    def test_strings_of_python_2_are_read_as_asked_for(self) -> None:
        dumped = b"\x02M\x00\x00\x00\x01\xe9Q"
        assert execnet.loads(dumped) == b"\xe9"
        assert execnet.loads(dumped, py2str_as_py3str=True) == "\xe9"
        assert execnet.load(io.BytesIO(dumped), True, False) == "\xe9"


class TestLoading:
    """``import execnet`` costs little, and a worker loads what it needs only."""

    def loaded_by(self, code: str) -> set[str]:
        program = f"{code}\nimport sys\nprint(*sys.modules)"
        return set(run_python(program).stdout.split())

    def test_importing_it_loads_none_of_its_modules(self) -> None:
        loaded = self.loaded_by("import execnet")
        assert {name for name in loaded if name.startswith("execnet")} == {"execnet"}

    def test_a_name_loads_what_is_at_or_below_its_home(self) -> None:
        loaded = self.loaded_by("import execnet; execnet.dumps(1); execnet.XSpec('popen')")
        modules = {name for name in loaded if name.startswith("execnet.")}
        assert modules == {"execnet.gateway_base", "execnet.xspec"}

    def test_asking_what_is_there_loads_nothing(self) -> None:
        loaded = self.loaded_by("import execnet; dir(execnet); execnet.__all__")
        assert "execnet.gateway_base" not in loaded

    def test_a_name_is_looked_up_once(self) -> None:
        asks = "print('Group' in vars(execnet))"
        code = f"import execnet; {asks}; execnet.Group; {asks}"
        assert run_python(code).stdout.split() == ["False", "True"]

    def test_two_threads_may_be_the_first(self) -> None:
        code = """
import threading, execnet
got = []
start = threading.Barrier(8)
def use():
    start.wait()
    got.append(execnet.default_group)
threads = [threading.Thread(target=use) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(got), len(set(map(id, got))))
"""
        result = run_python(code)
        assert (result.stdout, result.stderr) == ("8 1\n", "")


class TestDeprecated:
    def test_popengateway_makes_one_and_says_what_to_use(self) -> None:
        with pytest.warns(DeprecationWarning, match=r"makegateway\('popen'\)") as caught:
            gateway = execnet.PopenGateway()
        try:
            assert gateway.remote_exec("channel.send(1)").receive(10) == 1
            assert gateway in execnet.default_group
            assert caught[0].filename == __file__
        finally:
            execnet.default_group.terminate(timeout=5)

    def test_popengateway_takes_a_python(self) -> None:
        with pytest.warns(DeprecationWarning, match="makegateway.*popen//python=/bin/false"):
            self.fails(execnet.PopenGateway, "/bin/false")
        with pytest.warns(DeprecationWarning, match="python=/bin/false"):
            self.fails(execnet.PopenGateway, python="/bin/false")

    @pytest.mark.parametrize(
        ("name", "arguments", "spec"),
        [
            ("SocketGateway", ("localhost", 1), "socket=localhost:1"),
            ("SshGateway", ("user@host",), "ssh=user@host"),
            ("SshGateway", ("h", "python2"), "ssh=h//python=python2"),
            ("SshGateway", ("h", None, "key"), "ssh=-i key h"),
            ("SshGateway", ("h", None, None, "conf"), "ssh=h//ssh_config=conf"),
            ("SshGateway", ("h", "p", "key", "c"), "ssh=-i key h//python=p//ssh_config=c"),
        ],
    )
    def test_the_others_make_what_they_say(
        self, monkeypatch: pytest.MonkeyPatch, name: str, arguments: tuple[Any, ...], spec: str
    ) -> None:
        import execnet._deprecated as deprecated

        made: list[str] = []
        monkeypatch.setattr(deprecated, "makegateway", made.append)
        with pytest.warns(DeprecationWarning, match="makegateway") as caught:
            getattr(execnet, name)(*arguments)
        assert made == [spec]
        assert spec in str(caught[0].message)
        assert caught[0].filename == __file__

    def test_naming_them_warns_nobody(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for name in DEPRECATED:
                getattr(execnet, name)

    def fails(self, function: Any, *args: Any, **kwargs: Any) -> None:
        with pytest.raises(execnet.BootstrapError):
            function(*args, **kwargs)
