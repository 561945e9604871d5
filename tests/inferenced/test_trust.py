"""What the daemon loads: packages signed by a key that is trusted at that moment, and nothing else."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.models.package import sign_package
from appliance.trust.keys import generate
from tests.fakes.box import Box, running

NAME = "tiny-llama-q8"


@pytest.fixture
def box(tiny_state: Path, tmp_path: Path) -> Iterator[Box]:
    """A box of the test's own, to be spoilt."""
    shutil.copytree(tiny_state, tmp_path / "b")
    with running(tmp_path / "b") as box:
        yield box
        assert box.process.poll() is None, box.log.read_text()


def spoil_byte(package: Path, keys: Path) -> None:
    with (package / "model.onnx.data").open("r+b") as f:
        f.seek(1000)
        byte = f.read(1)
        f.seek(1000)
        f.write(bytes([byte[0] ^ 1]))


def unsign(package: Path, keys: Path) -> None:
    (package / "model.sig").unlink()


def sign_by_stranger(package: Path, keys: Path) -> None:
    sign_package(package, generate())


def revoke(package: Path, keys: Path) -> None:
    for key in keys.glob("*.pub"):
        key.unlink()


def add_file(package: Path, keys: Path) -> None:
    (package / "extra.py").write_text("import os")


def link_weights(package: Path, keys: Path) -> None:
    (package / "model.onnx.data").rename(package.parent.parent / "elsewhere")
    (package / "model.onnx.data").symlink_to(package.parent.parent / "elsewhere")


SPOILT = [
    (spoil_byte, "digest_mismatch"),
    (unsign, "unsigned"),
    (sign_by_stranger, "unknown_key"),
    (revoke, "unknown_key"),
    (add_file, "unlisted_file"),
    (link_weights, "unsafe_file"),
]


@pytest.mark.parametrize(("spoil", "kind"), SPOILT, ids=[s[0].__name__ for s in SPOILT])
def test_spoilt_package_never_answers(box: Box, spoil: object, kind: str) -> None:
    """Loading, verifying and asking are all refused with the reason, and the list shows it."""
    spoil(box.state_dir / "models" / NAME, box.state_dir / "keys")  # type: ignore[operator]
    ask = {"model": NAME, "prompt": "hello", "max_tokens": 4}
    for reply in (
        box.post("/v1/completions", ask),
        box.post(f"/skerry/v1/models/{NAME}/load"),
        box.post(f"/skerry/v1/models/{NAME}/verify"),
    ):
        assert (reply.status, reply.kind) == (409, kind), reply.body
    listed = {m["name"]: m for m in box.get("/skerry/v1/models").json["models"]}[NAME]
    assert listed["state"] == "refused"
    assert listed["problem"]["kind"] == kind


def test_every_load_verifies(box: Box) -> None:
    """A package that was sound when it was first loaded is refused when it is spoilt before it is loaded again."""
    assert box.post(f"/skerry/v1/models/{NAME}/load").status == 200
    box.post(f"/skerry/v1/models/{NAME}/unload")
    spoil_byte(box.state_dir / "models" / NAME, box.state_dir / "keys")
    assert box.post(f"/skerry/v1/models/{NAME}/load").kind == "digest_mismatch"


def test_revoked_key_is_refused_from_the_next_load_on(box: Box) -> None:
    """The key directory is read at every load: a key that was removed meanwhile opens nothing."""
    assert box.post(f"/skerry/v1/models/{NAME}/load").status == 200
    box.post(f"/skerry/v1/models/{NAME}/unload")
    revoke(box.state_dir / "models" / NAME, box.state_dir / "keys")
    assert box.post(f"/skerry/v1/models/{NAME}/load").kind == "unknown_key"


def test_renamed_package_is_refused(box: Box) -> None:
    """A package under another name disagrees with its card."""
    models = box.state_dir / "models"
    (models / NAME).rename(models / "tiny-other-q8")
    assert box.post("/skerry/v1/models/tiny-other-q8/load").kind == "card_mismatch"


def test_key_directory_that_others_may_write_trusts_nothing(box: Box) -> None:
    """Policy is the key directory; one that anybody could add a key to is refused whole."""
    (box.state_dir / "keys").chmod(0o777)
    reply = box.post(f"/skerry/v1/models/{NAME}/load")
    assert reply.kind == "bad_config"


def test_model_in_use_is_unloaded_when_its_answer_is_complete(box: Box) -> None:
    """Unloading under a running answer lets the answer end and loses nothing."""
    import concurrent.futures

    ask = {"model": NAME, "prompt": "hello", "max_tokens": 200, "n": 8, "logit_bias": {"257": -100}}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(box.post, "/v1/completions", ask)
        while not box.status()["requests"]["running"]:
            assert not answer.done(), "the answer was complete before we could look"
        assert box.post(f"/skerry/v1/models/{NAME}/unload").json["state"] == "installed"
        assert answer.result().json["usage"]["completion_tokens"] == 8 * 200


def test_per_caller_limit_is_a_429_with_a_time(tiny_state: Path, tmp_path: Path) -> None:
    """More answers than the policy admits: 429, the figures in words, Retry-After in whole seconds."""
    from appliance.config import Limits

    shutil.copytree(tiny_state, tmp_path / "b")
    with running(tmp_path / "b", limits=Limits(per_caller=2)) as box:
        reply = box.post("/v1/completions", {"model": NAME, "prompt": "x", "n": 3})
        assert (reply.status, reply.kind) == (429, "too_many_requests")
        assert int(reply.headers["retry-after"]) >= 1
        assert box.post("/v1/completions", {"model": NAME, "prompt": "x", "n": 2, "max_tokens": 2}).status == 200


def test_answers_that_outlast_the_drain_end_with_the_reason(tiny_state: Path, tmp_path: Path) -> None:
    """After SIGTERM and the drain's time, answers are 503 and streams end with an error event."""
    import concurrent.futures

    from appliance.config import Limits
    from tests.fakes.wire import Reply

    shutil.copytree(tiny_state, tmp_path / "b")
    ask = {"model": NAME, "prompt": "x", "max_tokens": 200, "n": 8, "logit_bias": {"257": -100}}
    with running(tmp_path / "b", limits=Limits(drain_timeout_s=0.2, per_caller=64, queued=64)) as box:
        box.post(f"/skerry/v1/models/{NAME}/load")
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            whole = [pool.submit(box.post, "/v1/completions", ask) for _ in range(3)]
            streams = [pool.submit(box.post, "/v1/completions", ask | {"stream": True}) for _ in range(3)]
            while box.status()["requests"]["running"] < 4:
                pass
            assert box.terminate() == 0
            replies: list[Reply] = [f.result() for f in whole]
            assert {(r.status, r.kind) for r in replies} <= {(503, "shutting_down"), (200, None)}
            assert (503, "shutting_down") in {(r.status, r.kind) for r in replies}
            bodies = [f.result().body for f in streams]
        assert all(b"shutting_down" in b or b"[DONE]" in b for b in bodies)
        assert "Traceback" not in box.log.read_text()


def test_preloaded_model_that_is_spoilt_keeps_the_daemon_from_starting(tiny_state: Path, tmp_path: Path) -> None:
    """What the configuration wants loaded and cannot be trusted ends the start with the reason."""
    shutil.copytree(tiny_state, tmp_path / "b")
    spoil_byte(tmp_path / "b" / "models" / NAME, tmp_path / "b" / "keys")
    # It listens before it loads, so `running` may find it there or not.
    code = 5
    with contextlib.suppress(AssertionError), running(tmp_path / "b", preload=(NAME,)) as box:
        code = box.process.wait(60)
    log = (tmp_path / "b" / "log").read_text()
    assert code == 5
    assert "SHA-256" in log
    assert "listens on" not in log
    assert "Traceback" not in log
