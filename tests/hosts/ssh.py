"""OpenSSH's client towards a host that no network reaches: the connection is made inside the host's own network.

What answers is the host's own sshd with its own configuration, PAM, firewall and login shells; nothing is replaced.
Keys are made per test; the host's key is kept on first sight and must be the same afterwards.
"""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest


def require() -> None:
    """Skip the test when the tools are missing."""
    missing = [tool for tool in ("ssh", "ssh-keygen", "socat") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not run: {', '.join(missing)} missing, install openssh-client and socat")


def make_key(path: Path, comment: str = "test") -> Path:
    """Make an Ed25519 key without a passphrase; `path` is the secret, `path`.pub the public half."""
    require()
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)]
    subprocess.run(argv, check=True, timeout=30, stdin=subprocess.DEVNULL)
    return path


def client(
    user: str, key: Path, *, proxy: str, known_hosts: Path, host: str, tty: bool = False, options: Sequence[str] = ()
) -> list[str]:
    """Return the client's command line; append the remote command.

    Args:
        proxy: a shell command whose stdin and stdout are the connection.
        host: the name under which the host's key is kept.
        tty: ask for a terminal even when stdin is none.
        options: further `Name=value` options.
    """
    settings = [
        f"ProxyCommand={proxy}",
        f"UserKnownHostsFile={known_hosts}",
        "GlobalKnownHostsFile=/dev/null",
        "StrictHostKeyChecking=accept-new",
        "IdentitiesOnly=yes",
        "BatchMode=yes",
        "ConnectTimeout=15",
        "LogLevel=ERROR",
        *options,
    ]
    argv = ["ssh", "-F", "none", "-i", str(key), "-tt" if tty else "-T"]
    for setting in settings:
        argv += ["-o", setting]
    return [*argv, "-l", user, host]
