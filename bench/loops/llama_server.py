"""The peer: llama-server, built by the user, asked the same prompts by their token ids.

Its settings are its own defaults, but for the length of the answer and, in the greedy runs, the temperature. With DRY
they are the values that llama.cpp documents for it, multiplier 0.8, base 1.75, allowed length 2, over the whole
context.
"""

import contextlib
import http.client
import json
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.files import Progress
from appliance.forge import source
from appliance.forge.recipe import Recipe
from bench.forms import Form, peer_file
from bench.loops.prompts import Prompt
from bench.loops.run import MAX_TOKENS, Row, Rows, Setting
from bench.pipe import Side, SideFailed, end_with_parent

SLOTS = 4
CONTEXT = 2048
READY_TIMEOUT_S = 120
ANSWER_TIMEOUT_S = 900
DRY = {"dry_multiplier": 0.8, "dry_base": 1.75, "dry_allowed_length": 2, "dry_penalty_last_n": CONTEXT}


@dataclass(frozen=True)
class Peer:
    """One way to run the peer: its name, and what is sent beside prompt and length."""

    name: str
    settings: dict[str, Any] = field(hash=False)


PEERS = (
    Peer("defaults, greedy", {"temperature": 0.0}),
    Peer("DRY, greedy", {"temperature": 0.0, **DRY}),
    Peer("defaults, its own 0.8", {}),
    Peer("DRY, its own 0.8", DRY),
)


class LlamaServer:
    """A llama-server on a Unix socket of its own.

    Args:
        program: the path of llama-server.
        model: a GGUF.
        slots: requests that it computes side by side.
        threads: that compute.
    Raises:
        SideFailed: it cannot be started, or is not ready in time.
    """

    def __init__(self, program: Path, model: Path, slots: int = SLOTS, threads: int = 2) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="skerry-bench-")
        self._socket = Path(self._folder.name) / "llama.sock"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the child
        command = [
            program,
            "-m",
            model,
            "--host",
            self._socket,
            "-np",
            slots,
            "-c",
            slots * CONTEXT,
            "--threads",
            threads,
        ]
        try:
            self._process = subprocess.Popen(
                [*map(str, command), "--poll", "0", "--no-webui", "--offline"],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env=_environment(),
                preexec_fn=end_with_parent,
            )
        except OSError as e:
            self._log.close()
            self._folder.cleanup()
            raise SideFailed(f"cannot start {program}: {e.strerror}, expected a llama-server") from e
        try:
            self._wait()
        except SideFailed:
            self.close()
            raise

    def _wait(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise SideFailed(f"cannot use llama-server: it ended with {self._process.returncode}: {self._last()}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self._ask("GET", "/health", None, 5)[0] == 200:
                    return
            time.sleep(0.2)
        raise SideFailed(f"cannot use llama-server: it was not ready in {READY_TIMEOUT_S} s: {self._last()}")

    def _last(self) -> str:
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 800))
        return self._log.read().decode("utf-8", "replace").strip()

    def complete(self, tokens: Sequence[int], stop: Sequence[str], seed: int, settings: dict[str, Any]) -> Row:
        """Get one answer.

        Raises:
            SideFailed: the server refuses or says nothing for too long.
        """
        body = {
            "prompt": list(tokens),
            "n_predict": MAX_TOKENS,
            "stop": list(stop),
            "seed": seed & 0x7FFFFFFF,
            "cache_prompt": False,
            "return_tokens": True,
            **settings,
        }
        started = time.monotonic()
        try:
            status, answer = self._ask("POST", "/completion", body, ANSWER_TIMEOUT_S)
        except (OSError, http.client.HTTPException) as e:
            raise SideFailed(f"cannot ask llama-server: {e}") from e
        if status != 200:
            raise SideFailed(f"cannot ask llama-server: {status} {str(answer)[:300]}")
        said = answer["tokens"]
        return {
            "prompt_tokens": len(tokens),
            "tokens": said,
            "text": answer["content"],
            "finish": "length" if answer.get("stop_type") == "limit" else "stop",
            "prompt_s": answer["timings"]["prompt_ms"] / 1000,
            "decode_s": answer["timings"]["predicted_ms"] / 1000,
            "wall_s": time.monotonic() - started,
        }

    def _ask(self, method: str, path: str, body: Any, timeout_s: float) -> tuple[int, Any]:
        connection = _UnixConnection(self._socket, timeout_s)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def close(self) -> None:
        """End the server and wait for it."""
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        self._folder.cleanup()


def _environment() -> dict[str, str]:
    """Keep the caller's settings out, and threads that wait from spinning: a busy machine would stand still."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("LLAMA_", "OMP_", "GOMP_"))}
    return {**own, "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def weights(recipe: Recipe, program: Path, folder: Path, progress: Progress) -> Path:
    """Give the GGUF for the peer: Q8_0 made of the pinned source, or that source if nothing here can convert it."""
    published = source.fetch(source.pinned(recipe), progress)
    target = peer_file(recipe, folder, "Q8_0")
    quantizer = program.with_name("llama-quantize")
    if target.exists() or not quantizer.exists():
        return target if target.exists() else published
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    progress("llama-quantize makes Q8_0", 0.0)
    done = subprocess.run(
        [quantizer, "--allow-requantize", published, partial, "Q8_0", "2"], capture_output=True, check=False
    )
    if done.returncode:
        partial.unlink(missing_ok=True)
        return published
    partial.replace(target)
    return target


def measure_peer(
    program: Path, model: Path, setting: Setting, prompts: Sequence[Prompt], say: Progress
) -> Iterator[tuple[Peer, list[Row]]]:
    """Ask the peer every prompt in every way; rows are kept and taken up again as `bench.loops.run` does.

    Raises:
        SideFailed: it does not run.
    """
    files = {p.name: Rows(setting.folder / f"{setting.model}-peer-{_slug(p.name)}.jsonl") for p in PEERS}
    if any(rows.get(q) is None for rows in files.values() for q in prompts):
        rendered = _render(setting, prompts)
        with contextlib.closing(LlamaServer(program, model)) as server:
            for peer in PEERS:
                _ask_all(server, peer, files[peer.name], setting, rendered, say)
    for peer in PEERS:
        yield peer, [files[peer.name].rows[p.id] for p in prompts]


def _ask_all(
    server: LlamaServer,
    peer: Peer,
    rows: Rows,
    setting: Setting,
    rendered: Sequence[tuple[Prompt, list[int]]],
    say: Progress,
) -> None:
    missing = [(prompt, tokens) for prompt, tokens in rendered if rows.get(prompt) is None]
    done = 0
    lock = threading.Lock()

    def ask(job: tuple[Prompt, list[int]]) -> None:
        nonlocal done
        prompt, tokens = job
        answer = server.complete(tokens, setting.stop, prompt.seed, peer.settings)
        about = {"prompt": prompt.id, "family": prompt.family, "model": setting.model, "asked": prompt.seal}
        rows.add({**about, "peer": peer.name, **answer})
        with lock:
            done += 1
            say(f"{setting.model}, llama-server, {peer.name}", done / len(missing))

    with ThreadPoolExecutor(SLOTS) as pool:
        list(pool.map(ask, missing))


def _render(setting: Setting, prompts: Sequence[Prompt]) -> list[tuple[Prompt, list[int]]]:
    """Tokenize the prompts as our engine does: both engines read the same."""
    form: Form = setting.form
    with Side(form.python, "bench.loops.worker") as side:
        side.ask("open", **form.arguments)
        return [(p, side.ask("render", text=setting.text(p))) for p in prompts]


def _slug(name: str) -> str:
    return name.replace(",", "").replace(" ", "-").lower()
