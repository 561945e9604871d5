"""Comparisons with named peers, on the same weights, tokens and threads. `python -m bench`, or `make bench`.

Never installed: run from the root of the repository.
"""
