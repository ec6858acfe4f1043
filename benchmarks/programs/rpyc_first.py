"""A fresh program's import and first server, to the server's answer, in milliseconds."""

from _fresh import measure_of
from _measure import main
from _rpyc import SERVER

TIMED = f"""
import sys
import rpyc
connection = rpyc.connect_subproc([sys.executable, "-u", "-c", {SERVER!r}], rpyc.MasterService)
connection.eval("1")
"""
AFTERWARDS = "connection.close(); connection.proc.wait()"

if __name__ == "__main__":
    main(measure_of(TIMED, AFTERWARDS))
