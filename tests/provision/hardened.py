"""A box with the roles base, console and hardening alone, on a cable: what the tests of hardening and lockout share."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.hosts import nspawn, roots
from tests.provision.conftest import KIT_ON_BOX, Keys, Kit, install, site_file

SITE_NETWORK = "10.77.0.0/24"
"""Where the other end of a box's cable is."""

# The console's program is not on these boxes; what sshd runs in its place says what it was asked.
CONSOLE = """#!/bin/sh
echo "console of $(id -un), asked: ${SSH_ORIGINAL_COMMAND:-nothing}"
env | sort
"""


@dataclass
class Hardened:
    """A hardened box that is on, and who may log in."""

    box: nspawn.Box
    kit: Kit
    keys: Keys
    site: Path
    log: str
    waited_s: float
    """How long the guard would have waited for the first login, when the first run had ended."""
    confirmed: bool
    """Whether the first login then ended the waiting."""

    def install(self, *options: str, tags: str = "base,console,hardening", **changes: object) -> str:
        """Run the three roles again, or some of them, with other variables; gives what was printed."""
        if changes:
            site_file(self.keys, self.site, hardening_ssh_networks=[SITE_NETWORK], **changes)
            self.box.put(self.site, "/root/site.yaml")
        log, _ = install(self.box, self.kit, f"--site /root/site.yaml --tags {tags}", *options)
        return log

    def lockout(self, words: str, *, check: bool = True) -> str:
        """Call the guard; gives what it printed."""
        found = self.box.run(f"skerry-lockout {words}", check=check, timeout_s=30)
        return found.stdout + found.stderr

    def log_in(self, *, from_outside: bool = False) -> None:
        """Log in as the rescue account, and out; wait until the guard has seen that and the connection is all gone.

        Its last packet would otherwise leave the box in whatever a test begins to watch.
        """
        assert self.box.ssh("rescue", self.keys.rescue, "id -un", from_outside=from_outside).stdout == "rescue\n"
        end = time.monotonic() + 5
        while self.box.exists("/var/lib/skerry/lockout/armed") and time.monotonic() < end:
            time.sleep(0.1)
        self.wait_for_quiet()

    def wait_for_quiet(self, limit_s: float = 30) -> None:
        """Wait until no SSH connection of the box may send any more."""
        end = time.monotonic() + limit_s
        while still := self.box.run("ss -Htn sport = 22").stdout:
            assert time.monotonic() < end, f"still open after {limit_s:.0f} s: {still}"
            time.sleep(0.1)

    def door_is_open(self) -> bool:
        """Whether port 22 answers from the site's network."""
        return self.box.outside.open_ports([22]) == [22]

    def change_staged(self, path: str, old: str, new: str) -> None:
        """Change a file as a role would that wants it otherwise; the guard has still to put it into force."""
        staged = f"/etc/skerry/guarded{path}"
        text = self.box.read(staged)
        assert old in text
        self.box.put(text.replace(old, new), staged)


@contextlib.contextmanager
def provisioned_box(kit: Kit, keys: Keys, folder: Path, suite: str = "bookworm") -> Iterator[Hardened]:
    """Boot a bare box on a cable and run the three roles; nobody has logged in yet."""
    site = site_file(keys, folder / "site.yaml", hardening_ssh_networks=[SITE_NETWORK])
    with nspawn.boot(roots.debian(suite), binds={KIT_ON_BOX: kit.path}, veth=True) as box:
        box.put(site, "/root/site.yaml")
        box.put(CONSOLE, "/usr/local/bin/skerry", mode=0o755)
        log, _ = install(box, kit, "--site /root/site.yaml --tags base,console,hardening")
        left = int(box.read("/run/skerry-lockout.deadline")) - time.time()
        found = Hardened(box, kit, keys, site, log, left, False)
        found.log_in(from_outside=True)
        found.confirmed = found.lockout("status", check=False) == "in force\n"
        yield found
