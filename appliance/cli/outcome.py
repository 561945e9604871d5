"""What a command ends with: errors become a message on standard error and an exit code, and nothing else comes out."""

import errno
import os
from collections.abc import Callable

from appliance.cli import output
from appliance.errors import SkerryError


def outcome(call: Callable[[], object]) -> int:
    """Run a command.

    Returns:
        the exit code.
    Raises:
        OSError: standard output cannot be written: the reader left, or its disk is full.
    """
    try:
        call()
    except SystemExit as e:  # how the parser reports usage errors, help and typer.Exit
        return e.code if isinstance(e.code, int) else 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        raise
    except SkerryError as e:
        _show_details()
        output.report(e)
        return e.exit_code
    except OSError as e:
        if e.filename is None and e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise  # from writing the result: files of ours have errors of their own
        return _defect(e)
    except Exception as e:  # noqa: BLE001  the last resort: a defect, told without a traceback
        return _defect(e)
    return 0


def _defect(error: Exception) -> int:
    _show_details()
    output.note(f"skerry: internal error: {type(error).__name__}: {error}")
    output.note("hint: run it again with SKERRY_DEBUG=1 set, and report what it prints")
    return 1


def _show_details() -> None:
    if os.environ.get("SKERRY_DEBUG") == "1":
        import traceback

        output.note(traceback.format_exc())
