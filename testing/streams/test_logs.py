"""Loggers: silent unless they are listened to, and those of workers come here."""

from __future__ import annotations

import logging
import sys

import pytest
from tools import BOUND_S, find_python, run_python, wait_until
from workers import ask

from execnet import Group, RSync
from execnet._output.far_logs import TEXT_CHARACTERS
from execnet._specs import Settings
from execnet.xspec import XSpec

EVIL = "\x1b]0;title\x07"


class Records(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def texts(self, logger: str) -> list[str]:
        return [record.getMessage() for record in self.records if record.name == logger]


@pytest.fixture
def records() -> object:
    handler, logger = Records(), logging.getLogger("execnet")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def test_a_gateway_tells_of_its_life(group: Group, records: Records) -> None:
    good, bad = group.makegateways(["popen//id=good", "popen//id=bad"])
    with pytest.raises(EOFError):
        ask(bad, "import os; os._exit(3)")
    group.terminate(timeout=BOUND_S)
    texts = records.texts("execnet.gateway")
    assert good.describe().removesuffix("ended") + "live" in texts
    assert "bad executes 'import os; os._exit(3)'" in texts
    assert "good was ended" in texts
    (death,) = [record for record in records.records if record.levelno == logging.WARNING]
    assert death.getMessage().startswith("worker bad died, exit status 3")
    assert death.gateway == "bad"  # type: ignore[attr-defined]


def test_rsync_tells_what_it_has_sent(group: Group, records: Records, tmp_path: object) -> None:
    (tmp_path / "source").mkdir()  # type: ignore[operator]
    (tmp_path / "source" / "file").write_text("1234")  # type: ignore[operator]
    rsync = RSync(f"{tmp_path}/source", verbose=False)
    rsync.add_target(group.makegateway(), f"{tmp_path}/target")
    rsync.send()
    told = f"{tmp_path}/source to gw0:{tmp_path}/target: 1 files, 4 bytes sent"
    assert records.texts("execnet.rsync") == [told]


@pytest.mark.parametrize("imported", ["", "import logging\n"])
def test_a_program_that_does_not_listen_hears_nothing(imported: str) -> None:
    code = f"""\
{imported}import execnet, sys
gateway = execnet.makegateway()
try:
    gateway.remote_exec("import os; os._exit(3)").receive(30)
except EOFError:
    print("logging" in sys.modules)
"""
    result = run_python(code)
    assert (result.stdout, result.stderr) == (f"{bool(imported)}\n", "")


@pytest.mark.parametrize("version", ["", "2.7", "3.6"])
def test_records_of_a_worker_come_with_their_levels(
    group: Group, records: Records, version: str
) -> None:
    python = find_python(version) if version else sys.executable
    gateway = group.makegateway(f"popen//id=far//logging=INFO//python={python}")
    code = f"""
        import logging, os
        log = logging.getLogger("app.part")
        log.debug("not sent")
        log.info("%s of %d", "one", 2)
        try:
            1 / 0
        except ZeroDivisionError:
            log.exception({EVIL!r})
        log.warning("x" * 100000)
        log.info("%d", "no number")
        if not os.fork():
            log.error("of a child")
            os._exit(0)
        os.wait()
        channel.send(os.getpid())
        """
    pid = gateway.remote_exec(code).receive(BOUND_S)
    assert wait_until(lambda: len(records.texts("app.part")) >= 3)
    first, second, third = [one for one in records.records if one.name == "app.part"]
    assert (first.levelname, first.getMessage(), first.process) == ("INFO", "one of 2", pid)
    assert first.gateway == "far"  # type: ignore[attr-defined]
    assert second.levelno == logging.ERROR
    formatted = logging.Formatter().format(second)
    assert "\x1b" not in formatted
    assert formatted.endswith("division by zero") or "ZeroDivisionError: " in formatted
    assert len(third.getMessage()) == TEXT_CHARACTERS


def test_what_is_no_record_disturbs_nothing(group: Group, records: Records) -> None:
    gateway = group.makegateway("popen//logging=1")
    code = """
        import logging
        handler = logging.getLogger().handlers[-1]
        for item in [None, 1, {}, {"levelno": "x"}, b"y"]:
            handler._channel.send(item)
        logging.getLogger("after").info("well")
        channel.send(1)
        """
    assert gateway.remote_exec(code).receive(BOUND_S) == 1
    assert wait_until(lambda: records.texts("after") == ["well"])


@pytest.mark.parametrize(("value", "number"), [("INFO", 20), ("15", 15), ("CRITICAL", 50)])
def test_a_level_is_a_name_or_a_number(value: str, number: int) -> None:
    assert Settings(XSpec(f"popen//logging={value}")).logging_level == number


@pytest.mark.parametrize("value", ["info", "0", "-1", "x"])
def test_another_level_is_an_error(value: str) -> None:
    with pytest.raises(ValueError, match="one of DEBUG, INFO"):
        Settings(XSpec(f"popen//logging={value}"))
