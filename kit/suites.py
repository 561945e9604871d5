"""The Debian releases that a kit can carry packages for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Suite:
    """One release of Debian.

    Attributes:
        name: as Debian's archive calls it.
        release: the number in /etc/os-release.
        python: the version of its python3.
        glibc: the minor version of its C library, 2.x: newer wheels do not load there.
    """

    name: str
    release: int
    python: str
    glibc: int

    @property
    def tag(self) -> str:
        """The tag of its Python in the names of wheels."""
        return "cp" + self.python.replace(".", "")


SUITES = {s.name: s for s in (Suite("bookworm", 12, "3.11", 36), Suite("trixie", 13, "3.13", 41))}
ARCHITECTURE = "amd64"
