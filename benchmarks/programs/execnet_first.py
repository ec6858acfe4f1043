"""A fresh program's import and first popen gateway, to the gateway's answer, in milliseconds."""

from _fresh import measure_of
from _measure import main

TIMED = """
import execnet
group = execnet.Group(["popen"])
group[0].remote_exec("channel.send(1)").receive()
"""
AFTERWARDS = "group.terminate(5)"

if __name__ == "__main__":
    main(measure_of(TIMED, AFTERWARDS))
