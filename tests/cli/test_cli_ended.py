"""A command that is ended from outside, or has nowhere to write, leaves nothing behind and says why."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fakes.built_models import ROOT, smollm2

SKERRY = str(Path(sys.executable).with_name("skerry"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_ended_build_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """A dropped line or a kill in the middle of a build takes the half package away."""
    smollm2()  # the weights are here
    recipe = str(ROOT / "models" / "smollm2-135m-instruct.yaml")
    process = subprocess.Popen([SKERRY, "model", "build", recipe, "--out", str(tmp_path), "--no-evaluate"])
    for _ in range(600):
        if any(tmp_path.rglob("model.onnx.data")):
            break
        time.sleep(0.05)
    else:
        raise AssertionError("the build did not begin")
    process.send_signal(number)
    assert process.wait(30) == 128 + number
    assert os.listdir(tmp_path) == []


def test_closed_stdout_is_no_traceback(tmp_path: Path) -> None:
    """`>&-` closes stdout; the command still ends in order."""
    run = subprocess.run(
        f"{SKERRY} --state-dir {tmp_path} model list >&-", shell=True, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in run.stderr
    assert "internal error" not in run.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="not run: there is no /dev/full")
def test_full_disk_is_named(tmp_path: Path) -> None:
    """A result that cannot be written is an error with the reason."""
    run = subprocess.run(f"{SKERRY} --version > /dev/full", shell=True, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "No space left" in run.stderr
    assert "internal error" not in run.stderr
    assert "Traceback" not in run.stderr
