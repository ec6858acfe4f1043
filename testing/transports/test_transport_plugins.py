"""Transports of other distributions, through the entry point group ``execnet.transports``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tools import BOUND_S, MakeGateway

from execnet import Group, XSpec
from execnet._specs import Settings
from execnet._transports import table as transports_table

MODULE = """
def wrap(spec, words):
    options = ["LEVEL=" + spec.level] if spec.level else []
    return ["env", "BOX=" + spec.box, *options, *words]

wrap.options = ("level", "share")

def bare(spec, words):
    return words

bare.captures_stderr = False
bare.may_be_bare = True

def fails(spec, words):
    raise KeyError("nothing there")

no_function = 5
"""


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution that is found in the path for as long as the test runs."""
    (tmp_path / "boxes_of_a_test.py").write_text(MODULE)
    info = tmp_path / "boxes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: boxes\nVersion: 1.0\n")
    lines = [f"{name} = boxes_of_a_test:{name}" for name in ("bare", "fails", "no_function")]
    lines += ["box = boxes_of_a_test:wrap", "gone = no_such_module:f", "popen = no_such_module:f"]
    (info / "entry_points.txt").write_text("[execnet.transports]\n" + "\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "boxes_of_a_test", raising=False)


@pytest.mark.usefixtures("distribution")
class TestEntryPoints:
    def test_a_row_of_another_distribution_works(self, makegateway: MakeGateway) -> None:
        gateway = makegateway("box=wood//level=3//env:WORD=x")
        code = "import os; channel.send([os.environ[n] for n in ('BOX', 'LEVEL', 'WORD')])"
        assert gateway.remote_exec(code).receive(BOUND_S) == ["wood", "3", "x"]
        assert gateway.remoteaddress == "wood"

    def test_it_gets_the_words_that_start_an_interpreter(self) -> None:
        words = transports_table.command(XSpec("box=wood//python=p"))
        assert words == ["env", "BOX=wood", "p", "-u", "-c", transports_table.popen_bootstrapline]
        assert words.captures_stderr

    def test_attributes_of_its_function_say_more(self) -> None:
        assert not transports_table.command(XSpec("bare//python=p")).captures_stderr

    def test_its_options_need_values(self, group: Group) -> None:
        with pytest.raises(ValueError, match="level= needs a value"):
            group.makegateway("box=wood//level")

    def test_an_option_of_its_own_may_have_the_name_of_one_of_another_type(
        self, group: Group
    ) -> None:
        assert not Settings(XSpec("box=wood//share=all")).is_shared
        with pytest.raises(ValueError, match="share= needs a value"):
            group.makegateway("box=wood//share")
        with pytest.raises(ValueError, match="namespace= is for kubectl=, not box="):
            group.makegateway("box=wood//namespace=n")

    def test_a_value_is_needed_unless_it_says_otherwise(self, group: Group) -> None:
        with pytest.raises(ValueError, match="box= needs a value"):
            group.makegateway("box")

    @pytest.mark.parametrize(
        ("key", "words"),
        [
            ("gone", "'gone' .no_such_module:f of boxes. failed: ModuleNotFoundError"),
            ("no_function", "'no_function' .*boxes. failed: TypeError: 5 is no function"),
            ("fails", "'fails' .*boxes. failed: KeyError: 'nothing there'"),
        ],
    )
    def test_a_broken_one_is_named(self, group: Group, key: str, words: str) -> None:
        with pytest.raises(ValueError, match=words) as caught:
            group.makegateway(f"{key}=1")
        assert f"{key}=1" in str(caught.value)

    def test_it_shows_among_the_types_there_are(self, group: Group) -> None:
        with pytest.raises(ValueError, match=r"there are: .*box.*docker"):
            group.makegateway("id=a")

    def test_it_cannot_replace_what_is_in_the_table(self, makegateway: MakeGateway) -> None:
        assert makegateway("popen").remote_exec("channel.send(1)").receive(BOUND_S) == 1


def test_none_is_looked_for_when_the_type_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise AssertionError("entry points were read")

    monkeypatch.setattr(transports_table, "_plugins", fail)
    assert transports_table.types_of(XSpec("ssh=host")) == ["ssh"]
