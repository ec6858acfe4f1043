"""A fresh program's import and first bare interpreter, to its first byte, in milliseconds."""

from _fresh import measure_of
from _measure import main

TIMED = """
import subprocess, sys
command = [sys.executable, "-u", "-c", "import os; os.write(1, b'1')"]
process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
process.stdout.read(1)
"""
AFTERWARDS = "process.communicate()"

if __name__ == "__main__":
    main(measure_of(TIMED, AFTERWARDS))
