"""The station's side of the kit: what gathers it, and what goes with it onto a stick as it is.

`make kit` runs `build.py`. On the stick run `install.sh` and nothing else of this folder; the page
`docs/reference/kit.md` describes what it finds there.
"""
