"""Benchmarks: this execnet beside its peers, measured in one run.

    python -m benchmarks                        all, in about half an hour
    python -m benchmarks roundtrip startup-one  some
    python -m benchmarks --list                 what there is
    python -m benchmarks aio                    asyncio: nothing is lost, 1,000 gateways
    python -m benchmarks faults                 10,000 seeded faults: no hang, no leak
    python -m benchmarks logins                 64 workers over ssh at once, ten times
    python -m benchmarks soak                   2,000 gateways: nothing of them stays
    python -m benchmarks window                 2 GB to a slow reader: memory stays low

The peers: the released execnet 2.1.2, mitogen, rpyc, ``multiprocessing`` (method "spawn"; as
``forkserver`` with that method), the pipe without anything around it (``pipe-1m``: with kernel
buffers of 1 MiB; ``tcp``: a connection on loopback), and for ``RSync`` the program rsync. With
pytest-xdist, ours and 2.1.2 have one more environment each. The first run makes a virtual
environment for each below ``.benchmarks/``, for which it needs the network; with ``--offline``
nothing is installed and the peers that are missing are skipped.

How it measures
    Each figure comes from a process of its own, with an environment of a few named variables,
    in an empty folder. That is in memory if the system offers it; ``--folder`` takes it elsewhere,
    such as to a disk for ``rsync``.
    The peers take turns, in several rounds (A B C A B C ...). Round trips run on one core.
    ``ours`` is imported from the folder that this package stands in; a first run that does not
    count leaves its ``.pyc`` files.

How to read the table
    ``median`` is the median over the rounds of each round's median; ``p99`` likewise, of the time
    that 99 of 100 round trips did not exceed. "ours is 4.00 times as fast" is the median of the
    rounds' ratios; below 1 ours is slower. Whether more or less is better is beside the unit.
    A peer that failed, or could not be installed, has a row that says why; the exit status is 1
    when one failed. The same, with each round's figures, is written as JSON (``--json``).
    Compare ratios, and figures of one run. Figures of different runs or machines say little.

What is shown, not measured
    ``aio``, ``faults``, ``logins``, ``soak``, ``sync`` and ``window`` stand alone, take options of
    their own (``--help``) and print what they found; the exit status is 1 when it did not hold.

Where to start reading
    ``_catalog`` has the tables of benchmarks and peers and says how to add to them, ``_rounds``
    takes the turns, ``programs/`` holds what is run: a small script per peer and kind of
    measurement. Standard library only; POSIX only.
"""
