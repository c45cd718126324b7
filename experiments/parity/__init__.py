"""Does the package compute what the original computed? Recorded fixtures, run through it and compared number by number.

python -m experiments.parity PATH…
"""
