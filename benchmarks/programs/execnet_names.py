"""Import of the names that a program uses, in milliseconds.

Beside the plain import this tells what is only put off by importing a name when it is used.
"""

from _fresh import measure_of
from _measure import main

if __name__ == "__main__":
    main(measure_of("from execnet import Channel, Group, RSync, dumps, loads, makegateway"))
