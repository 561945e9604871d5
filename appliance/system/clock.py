"""Whether this machine's clock can be right. Nothing here tells the time to anybody: a box has no time server."""

import datetime

# Moves with every release. A clock that shows less has lost its battery or was never set.
RELEASED = datetime.date(2026, 11, 1)
MUCH_IN_THE_FUTURE = datetime.timedelta(days=20 * 365)


def doubt(now: datetime.datetime) -> str | None:
    """Say why this cannot be the time; None if it can."""
    if now.date() < RELEASED:
        return f"before this release of {RELEASED}"
    if now.date() > RELEASED + MUCH_IN_THE_FUTURE:
        return "20 years after this release"
    return None
