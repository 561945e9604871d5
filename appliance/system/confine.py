"""A process denies itself the network, for ever and for all its threads.

    deny_network()

From then on `socket()` makes Unix sockets only; any other family fails with EAFNOSUPPORT. On a box systemd's
RestrictAddressFamilies and PrivateNetwork say the same from outside; this holds for a daemon that is run by hand too,
and against libraries that would phone home.

What this does NOT protect against: sockets that were open before, or are passed in; and x32 or io_uring as a way around
the system call (io_uring's set-up is denied with it).

Source: seccomp(2), prctl(2); the numbers are those of the kernel's uapi headers.
"""

import ctypes
import errno
import os
import platform
import struct

_PR_SET_NO_NEW_PRIVS, _SET_MODE_FILTER, _FLAG_TSYNC = 38, 1, 1
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # classic BPF: ld abs, jeq, jge, ret
_X32_BIT = 0x40000000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data (little-endian)

# machine -> audit architecture, numbers of socket(2), io_uring_setup(2) and seccomp(2)
_MACHINES = {"x86_64": (0xC000003E, 41, 425, 317), "aarch64": (0xC00000B7, 198, 425, 277)}


def deny_network() -> bool:
    """Deny this process every socket family but Unix.

    It binds all threads that there are (numpy starts some when it is imported) and all that will be.

    Returns:
        False where the kernel or the machine has no such filters; the caller should say so.
    """
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        return False
    *numbers, seccomp_number = machine
    program = _program(*numbers)
    libc = ctypes.CDLL(None, use_errno=True)

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]

    prog = Program(len(program) // 8, program)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    # With TSYNC the answer is 0, or the id of a thread that could not be bound.
    return bool(libc.syscall(seccomp_number, _SET_MODE_FILTER, _FLAG_TSYNC, ctypes.byref(prog)) == 0)


def _program(architecture: int, socket_number: int, io_uring_number: int) -> bytes:
    refuse = _ERRNO | errno.EAFNOSUPPORT
    unix = 1  # AF_UNIX
    # (code, value, jump if true, jump if false); jumps count instructions to leave out.
    steps = [
        (_LOAD, _ARCHITECTURE, 0, 0),
        (_EQUAL, architecture, 1, 0),
        (_RETURN, _KILL, 0, 0),  # system calls of another architecture have other numbers
        (_LOAD, _NUMBER, 0, 0),
        (_AT_LEAST, _X32_BIT, 4, 0),
        (_EQUAL, io_uring_number, 3, 0),
        (_EQUAL, socket_number, 0, 3),
        (_LOAD, _FIRST_ARGUMENT, 0, 0),
        (_EQUAL, unix, 1, 0),
        (_RETURN, refuse, 0, 0),
        (_RETURN, _ALLOW, 0, 0),
    ]
    return b"".join(struct.pack("=HBBI", code, true, false, value) for code, value, true, false in steps)


def silence_vendor_telemetry() -> None:
    """Tell onnxruntime, before it is imported, that it may not keep a device id or collect events."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
