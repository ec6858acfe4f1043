"""A fresh program's import and first local context, to the context's answer, in milliseconds."""

from _fresh import measure_of
from _measure import main

TIMED = """
import os, sys
import mitogen.master
broker = mitogen.master.Broker()
mitogen.master.Router(broker).local(python_path=sys.executable).call(os.getpid)
"""
AFTERWARDS = "broker.shutdown(); broker.join()"

if __name__ == "__main__":
    main(measure_of(TIMED, AFTERWARDS))
