"""How often answers end in loops, what the breaker makes of them, and what it does to text that is in order.

    python -m bench.loops            # or make bench-loops; needs the packages that it builds itself

Never installed: run from the root of the repository.
"""
