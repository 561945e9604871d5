"""The other end of a box's cable: a network of one machine that answers as every address in the world.

With `nspawn.boot(..., veth=True)` the box has an interface with a default route, and at its other end is this network
namespace. It has no way on: nothing that a box sends leaves the machine. But it takes every IPv4 and IPv6 address for
its own, so a listener here is reached from the box under any address, until a firewall in the box forbids it. That is
the positive control: a closed route is only shown where the same route is seen open.

Source: ip-route(8), routes of type `local` (the kernel's AnyIP).
"""

import contextlib
import ctypes
import errno
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.hosts import process

CLONE_NEWNET = 0x40000000
ETH_P_ALL = 3
INSIDE, OUTSIDE = "host0", "outside0"
BOX_ADDRESS, OUTSIDE_ADDRESS = "10.77.0.2", "10.77.0.1"
BOX_ADDRESS_6, OUTSIDE_ADDRESS_6 = "fd77::2", "fd77::1"
SITE = f"""
address add {OUTSIDE_ADDRESS}/24 dev {OUTSIDE}
address add {OUTSIDE_ADDRESS_6}/64 dev {OUTSIDE} nodad
link set {OUTSIDE} up
route replace local 0.0.0.0/0 dev lo table main
route replace local ::/0 dev lo table main
"""
BOX = f"""
address add {BOX_ADDRESS}/24 dev {INSIDE}
link set {INSIDE} up
route add default via {OUTSIDE_ADDRESS}
"""
BOX_6 = f"""
address add {BOX_ADDRESS_6}/64 dev {INSIDE} nodad
route add default via {OUTSIDE_ADDRESS_6}
"""


def socket_in(pid: int, family: int = socket.AF_INET, type_: int = socket.SOCK_STREAM, proto: int = 0) -> socket.socket:
    """Open a socket that lives in the network namespace of a process; it may be used from anywhere."""
    return sockets_in(pid, 1, family, type_, proto)[0]


def sockets_in(pid: int, number: int, family: int, type_: int, proto: int = 0) -> list[socket.socket]:
    """Open several sockets in the network namespace of a process; entering it is the slow part."""
    made: list[socket.socket] = []
    failed: list[OSError] = []

    # A thread of its own, as joining a namespace cannot be taken back without another file to return to.
    def work() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            with Path(f"/proc/{pid}/ns/net").open() as namespace:
                if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), f"cannot enter the network of process {pid}")
            made.extend(socket.socket(family, type_, proto) for _ in range(number))
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failed:
        for opened in made:
            opened.close()
        raise failed[0]
    return made


def connect(keeper: int, leader: int) -> None:
    """Give both ends of the cable their addresses and routes; repeated after each boot, as the interfaces are new."""
    for pid, commands in ((keeper, SITE), (leader, BOX), (leader, BOX_6)):
        argv = ["nsenter", f"--target={pid}", "--net", "ip", "-batch", "-"]
        done = process.run(argv, stdin=commands.encode(), timeout_s=10, shown_as="ip -batch")
        # A hardened box has IPv6 switched off, and then its interface takes no such address.
        if commands is not BOX_6 or "IPv6 is disabled" not in done.stderr:
            done.check()


@dataclass
class Capture:
    """Frames that came out of the box, newest last, as raw bytes from the Ethernet header on."""

    frames: list[bytes] = field(default_factory=list)

    def ip_frames(self) -> list[bytes]:
        """Leave out ARP, which no nftables rule of family inet sees and which carries nothing."""
        return [frame for frame in self.frames if frame[12:14] != b"\x08\x06"]


@dataclass(frozen=True)
class Outside:
    """The network namespace at the other end, by the process that holds it."""

    pid: int
    address: str = OUTSIDE_ADDRESS
    box_address: str = BOX_ADDRESS
    address_6: str = OUTSIDE_ADDRESS_6
    box_address_6: str = BOX_ADDRESS_6

    def open_socket(self, family: int = socket.AF_INET, type_: int = socket.SOCK_STREAM) -> socket.socket:
        """Open a socket out here, to listen or to knock at the box."""
        return socket_in(self.pid, family, type_)

    def run(self, argv: list[str], timeout_s: float = 30) -> process.Result:
        """Run a command of this machine out here."""
        enter = ["nsenter", f"--target={self.pid}", "--net"]
        return process.run([*enter, *argv], timeout_s=timeout_s, where="the outside")

    @contextlib.contextmanager
    def listen(self, port: int, type_: int = socket.SOCK_STREAM) -> Iterator[list[bytes]]:
        """Listen on a port of every address, IPv4 and IPv6; yields the list that what arrives is added to.

        A TCP connection that carries nothing adds an empty entry; it is answered with `hello` and closed.
        """
        heard: list[bytes] = []
        with self.open_socket(socket.AF_INET6, type_) as server:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            server.bind(("::", port))
            if type_ == socket.SOCK_STREAM:
                server.listen()
            with _reading(server, lambda: _hear(server, heard)):
                yield heard

    @contextlib.contextmanager
    def capture(self) -> Iterator[Capture]:
        """Keep every frame that comes out of the box while the block runs, and a moment after."""
        caught = Capture()
        with socket_in(self.pid, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as wire:
            wire.bind((OUTSIDE, ETH_P_ALL))

            def keep() -> None:
                frame, (_, _, kind, *_) = wire.recvfrom(65536)
                if kind != socket.PACKET_OUTGOING:
                    caught.frames.append(frame)

            with _reading(wire, keep):
                yield caught
                time.sleep(0.2)

    def open_ports(self, ports: Iterable[int], limit_s: float = 1.0, source: str | None = None) -> list[int]:
        """Return the box's TCP ports that answer from out here within `limit_s`, knocking at a thousand at a time."""
        wanted, found = list(ports), []
        for start in range(0, len(wanted), 1000):
            found += self._knock(wanted[start : start + 1000], limit_s, source)
        return found

    def _knock(self, ports: list[int], limit_s: float, source: str | None) -> list[int]:
        found = []
        with contextlib.ExitStack() as stack:
            waiting = select.epoll()
            stack.callback(waiting.close)
            knocks = {}
            sockets = sockets_in(self.pid, len(ports), socket.AF_INET, socket.SOCK_STREAM)
            for port, knock in zip(ports, sockets, strict=True):
                stack.enter_context(knock)
                knock.setblocking(False)
                if source:
                    knock.bind((source, 0))
                if knock.connect_ex((self.box_address, port)) not in (0, errno.EINPROGRESS):
                    continue
                waiting.register(knock, select.EPOLLOUT | select.EPOLLERR)
                knocks[knock.fileno()] = (port, knock)
            end = time.monotonic() + limit_s
            while knocks and (left := end - time.monotonic()) > 0:
                for descriptor, _ in waiting.poll(left):
                    port, knock = knocks.pop(descriptor)
                    waiting.unregister(descriptor)
                    if knock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                        found.append(port)
        return sorted(found)


def _hear(server: socket.socket, heard: list[bytes]) -> None:
    if server.type == socket.SOCK_DGRAM:
        heard.append(server.recv(65536))
        return
    connection, _ = server.accept()
    with connection:
        connection.settimeout(1)
        with contextlib.suppress(OSError):
            connection.sendall(b"hello\n")
        data = b""
        with contextlib.suppress(OSError):
            data = connection.recv(65536)
        heard.append(data)


@contextlib.contextmanager
def _reading(source: socket.socket, step: Callable[[], None]) -> Iterator[None]:
    """Call `step` in a thread whenever the socket has something, until the block ends."""
    wake, stop = os.pipe()

    def work() -> None:
        while True:
            ready, _, _ = select.select([source.fileno(), wake], [], [])
            if wake in ready:
                return
            with contextlib.suppress(OSError):
                step()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        os.write(stop, b".")
        thread.join()
        os.close(wake)
        os.close(stop)
