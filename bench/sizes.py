"""Architectures whose weights no package carries, at their true size: `python -m bench.sizes`.

Random weights cost as much time and memory as trained ones. So LFM2 350M and Qwen3 0.6B are made of noise, built by
their recipes as an operator's own weights would be, and measured like the others: decode at 128 and 1,024 tokens,
prefill of 512, and memory. What they say is noise.

What this does NOT show: quality, a peer, or what guesses and forms gain.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from appliance.forge import recipe as recipes
from bench import machine
from bench.figures import summarize_speed
from bench.forms import signed_package, throwaway_key
from bench.markdown import markdown_table
from bench.pipe import ROOT, Side

CONTEXTS, PREFILL, DECODE = (128, 1024), 512, 48
SCHEME = "q8"
"""What is built: for the recipes' own a reference in float32 would have to read first, and noise has no outliers."""

CONFIGS: dict[str, dict[str, Any]] = {
    "lfm2-350m": {
        "model_type": "lfm2",
        "architectures": ["Lfm2ForCausalLM"],
        "hidden_size": 1024,
        "block_ff_dim": 6656,
        "block_auto_adjust_ff_dim": True,
        "block_ffn_dim_multiplier": 1.0,
        "block_multiple_of": 256,
        "num_hidden_layers": 16,
        "full_attn_idxs": [2, 5, 8, 10, 12, 14],
        "conv_L_cache": 3,
        "conv_bias": False,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "max_position_embeddings": 128_000,
        "norm_eps": 1e-5,
        "rope_theta": 1e6,
        "tie_embedding": True,
        "vocab_size": 65_536,
    },
    "qwen3-0.6b": {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "hidden_act": "silu",
        "attention_bias": False,
        "use_sliding_window": False,
        "max_position_embeddings": 40_960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
        "vocab_size": 151_936,
    },
}
_LFM2_FEED = 4608
"""Two thirds of block_ff_dim, rounded up to a multiple of 256."""


def tensors(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published tensors, in the words of the transformers library."""
    c = CONFIGS[name]
    hidden, layers = c["hidden_size"], c["num_hidden_layers"]
    lfm2 = c["model_type"] == "lfm2"
    width = c.get("head_dim", hidden // c["num_attention_heads"])
    q, kv = c["num_attention_heads"] * width, c["num_key_value_heads"] * width
    feed = _LFM2_FEED if lfm2 else c["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (c["vocab_size"], hidden)}
    shapes["model.embedding_norm.weight" if lfm2 else "model.norm.weight"] = (hidden,)
    up, down = (feed, hidden), (hidden, feed)
    for i in range(layers):
        one: dict[str, tuple[int, ...]] = {}
        if lfm2 and i not in c["full_attn_idxs"]:
            one = {"conv.in_proj": (3 * hidden, hidden), "conv.conv": (hidden, 1, 3), "conv.out_proj": (hidden, hidden)}
        else:
            out, norm = ("out_proj", "layernorm") if lfm2 else ("o_proj", "norm")
            one = {f"self_attn.{part}_proj": (size, hidden) for part, size in (("q", q), ("k", kv), ("v", kv))}
            one |= {f"self_attn.{out}": (hidden, q)} | {f"self_attn.{part}_{norm}": (width,) for part in "qk"}
        if lfm2:
            one |= {"feed_forward.w1": up, "feed_forward.w3": up, "feed_forward.w2": down}
            one |= {"operator_norm": (hidden,), "ffn_norm": (hidden,)}
        else:
            one |= {"mlp.gate_proj": up, "mlp.up_proj": up, "mlp.down_proj": down}
            one |= {"input_layernorm": (hidden,), "post_attention_layernorm": (hidden,)}
        shapes |= {f"model.layers.{i}.{part}.weight": shape for part, shape in one.items()}
    return shapes


def write(name: str, recipe: recipes.Recipe, folder: Path) -> Path:
    """Write a folder of safetensors of noise, with a tokenizer of bytes that has the recipe's tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    made = {tensor: _noise(rng, shape) for tensor, shape in tensors(name).items()}
    (folder / "config.json").write_text(json.dumps(CONFIGS[name]))
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    tokens = {byte: i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(tokens, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    named = [*([recipe.tokens.bos] if recipe.tokens.bos else []), *recipe.tokens.stop]
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in named])
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file(made, folder / "model.safetensors")
    return folder


def _noise(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float16]:
    if len(shape) == 1:
        return np.ones(shape, np.float16)
    return (rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[-1]))).astype(np.float16)


def main() -> int:
    """Make, build, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m bench.sizes", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(CONFIGS), default=list(CONFIGS), help="(all)")
    parser.add_argument("--rounds", type=int, default=3, help="(3)")
    parser.add_argument("--threads", type=int, default=2, help="(2)")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench", help="where packages are kept")
    options = parser.parse_args()
    print(f"machine: {machine.line(machine.describe())}\n")
    measures = ["decode at 128", "decode at 1,024", "prefill 512, tok/s"]
    rows = [[f"random weights, {SCHEME}", "MB", *measures, "resident, MB"]]
    rows += [_measure(name, options.work.absolute(), options.threads, options.rounds) for name in options.models]
    print(markdown_table(rows))
    return 0


def _measure(name: str, work: Path, threads: int, rounds: int) -> list[str]:
    recipe = recipes.load(ROOT / "models" / f"{name}.yaml")
    weights = work / "random" / name
    if not (weights / "model.safetensors").exists():  # what is written last
        write(name, recipe, weights)
    models, key = work / "random" / "models", throwaway_key(work)
    package = signed_package(recipe, SCHEME, models, key, weights=weights, accept_licence=True)
    text = np.random.default_rng(4).integers(0, 256, CONTEXTS[-1] + DECODE).tolist()
    with Side(Path(sys.executable), "bench.skerry_side") as side:
        capacity = -(-(CONTEXTS[-1] + DECODE) // 128) * 128
        opened = side.ask("open", path=str(package), keys=str(work / "keys"), threads=threads, capacity=capacity)
        side.ask("warm", tokens=text[:256])
        asked = {"tokens": text, "prefills": [PREFILL], "contexts": list(CONTEXTS), "decode": DECODE}
        found = [side.ask("speed", **asked) for _ in range(rounds)]
        memory = side.ask("memory", tokens=text, prefill=CONTEXTS[-1], decode=1)
    speeds = [
        summarize_speed([one[measure] for one in found], count).per_s
        for measure, count in (("decode_128", DECODE), ("decode_1024", DECODE), (f"prefill_{PREFILL}", PREFILL))
    ]
    sizes = (opened["package_bytes"], memory["resident"])
    return [name, f"{sizes[0] / 1e6:.0f}", *(f"{speed:.1f}" for speed in speeds), f"{sizes[1] / 1e6:.0f}"]


if __name__ == "__main__":
    sys.exit(main())
