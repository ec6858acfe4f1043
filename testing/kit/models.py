"""Execution models: which there are, and which can be tested here."""

from __future__ import annotations

import functools
import importlib
import platform
import threading
import time
import warnings
from collections.abc import Callable

import pytest
from tools import missing

from execnet.gateway_base import ExecModel, get_execmodel

GREENLET_MODELS = ("gevent", "eventlet")
EXECMODELS = ("thread", "main_thread_only", *GREENLET_MODELS)


@functools.cache
def start_hub(model: str) -> None:
    """Have a greenlet library open the descriptors that it keeps for the rest of its life."""
    if importable(model):
        execmodel = get_execmodel(model)
        execmodel.sleep(0.001)
        execmodel.subprocess.Popen(["true"]).wait()


@functools.cache
def importable(module: str) -> bool:
    """Whether a library is there; a broken one counts as missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            importlib.import_module(module)
        except ImportError:
            return False
    return True


def need_model(model: str) -> None:
    """Report an execution model whose library is missing."""
    if model in GREENLET_MODELS and not importable(model):
        if platform.python_implementation() != "CPython":
            pytest.skip(f"{model} is tested on CPython")
        missing(f"{model} can't be imported")


def pause_of(model: ExecModel) -> Callable[[float], None]:
    """Return what sleeps in a way that lets greenlets of the main thread run meanwhile."""
    here = threading.get_ident()

    def pause(delay: float) -> None:
        (model.sleep if threading.get_ident() == here else time.sleep)(delay)

    return pause
