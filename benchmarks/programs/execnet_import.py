"""Import of what a coordinator needs, in milliseconds."""

from _fresh import measure_of
from _measure import main

if __name__ == "__main__":
    main(measure_of("import execnet"))
