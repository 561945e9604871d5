"""The peer's server: started, asked, ended; with a program that answers as llama-server does."""

import json
import sys
from pathlib import Path

import pytest

from bench.forms import Form
from bench.loops import llama_server
from bench.loops.llama_server import PEERS, LlamaServer, measure_peer
from bench.loops.prompts import PROMPTS, Prompt
from bench.loops.run import Setting
from bench.pipe import SideFailed

SERVER = """\
import json, socketserver, sys
from http.server import BaseHTTPRequestHandler

class Handler(BaseHTTPRequestHandler):
    def address_string(self):
        return "caller"

    def reply(self, status, value):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.reply(200, {"status": "ok"})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["prompt"] == [666]:
            return self.reply(400, {"error": {"message": "no"}})
        text = " ".join(f"{k}={body[k]}" for k in ("temperature", "dry_multiplier", "n_predict") if k in body)
        times = {"prompt_ms": 10.0, "predicted_ms": 200.0}
        self.reply(200, {"content": text, "tokens": body["prompt"], "stop_type": "eos", "timings": times})

class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

at = sys.argv[sys.argv.index("--host") + 1]
if "broken.gguf" in sys.argv[sys.argv.index("-m") + 1]:
    sys.exit("cannot load the model")
Server(at, Handler).serve_forever()
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "llama-server"
    path.write_text(f"#!{sys.executable}\n{SERVER}")
    path.chmod(0o755)
    return path


def silent(what: str, fraction: float) -> None:
    pass


def test_an_answer_comes_with_its_times(program: Path) -> None:
    """Tokens, text, the reason for the end; the settings are sent on."""
    server = LlamaServer(program, Path("model.gguf"))
    try:
        row = server.complete([1, 2], ["\n"], 7, {"temperature": 0.0})
    finally:
        server.close()

    assert (row["tokens"], row["text"], row["finish"]) == ([1, 2], "temperature=0.0 n_predict=512", "stop")
    assert row["decode_s"] == pytest.approx(0.2)


def test_what_the_server_says_of_its_failure_is_passed_on(program: Path) -> None:
    """A model that it cannot load, a request that it refuses, a program that is none."""
    with pytest.raises(SideFailed, match="cannot load the model"):
        LlamaServer(program, Path("broken.gguf"))
    with pytest.raises(SideFailed, match="expected a llama-server"):
        LlamaServer(program.with_name("nothing"), Path("model.gguf"))
    server = LlamaServer(program, Path("model.gguf"))
    try:
        with pytest.raises(SideFailed, match="400"):
            server.complete([666], [], 7, {})
    finally:
        server.close()


def test_every_prompt_is_asked_in_every_way(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy and by its own chances, without and with DRY; what was asked before is not asked again."""

    def render(setting: Setting, prompts: list[Prompt]) -> list[tuple[Prompt, list[int]]]:
        return [(p, [1, 2, 3]) for p in prompts]

    monkeypatch.setattr(llama_server, "_render", render)
    setting = Setting("smollm2", Form("Skerry", "q8", Path("python"), {}), True, 0.0, tmp_path / "rows")

    found = dict(measure_peer(program, Path("model.gguf"), setting, PROMPTS[:5], silent))
    again = dict(measure_peer(program.with_name("nothing"), Path("model.gguf"), setting, PROMPTS[:5], silent))

    assert found == again
    assert list(found) == list(PEERS)
    texts = {peer.name: {row["text"] for row in rows} for peer, rows in found.items()}
    assert texts == {
        "defaults, greedy": {"temperature=0.0 n_predict=512"},
        "DRY, greedy": {"temperature=0.0 dry_multiplier=0.8 n_predict=512"},
        "defaults, its own 0.8": {"n_predict=512"},
        "DRY, its own 0.8": {"dry_multiplier=0.8 n_predict=512"},
    }
    files = sorted((tmp_path / "rows").iterdir())
    assert [len(f.read_text().splitlines()) for f in files] == [5] * 4
    assert all(json.loads(line)["prompt"] for f in files for line in f.read_text().splitlines())
