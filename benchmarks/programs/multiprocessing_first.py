"""A fresh program's import and first process, to the process's answer, in milliseconds."""

from _fresh import measure_of
from _measure import main

TIMED = """
import multiprocessing
context = multiprocessing.get_context("spawn")
here, there = context.Pipe()
process = context.Process(target=there.send, args=(1,))
process.start()
here.recv()
"""
AFTERWARDS = "process.join()"

if __name__ == "__main__":
    main(measure_of(TIMED, AFTERWARDS))
