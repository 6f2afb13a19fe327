"""What is done to an installation, and what was seen: run by tests and by `benchmarks/faults.py`.

A scenario does its harm while callers go on calling, and returns what happened as data. Tests say
what must have come out of it; the benchmark prints the figures.
"""
