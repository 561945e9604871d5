"""From logits to text: what may be drawn, what is drawn, and when to stop.

`sampling` turns one row of logits into one token, `text` joins tokens' bytes into whole characters, `stop` finds stop
strings in that text. All of it is pure or holds only its own small state: no model, no clock, no disk.
"""
