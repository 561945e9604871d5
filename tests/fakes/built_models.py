"""Model packages for tests: the real SmolLM2, built once and kept, and tiny models of random weights.

    model = smollm2()            # skips the test when the weights cannot be had
    with Session(model.open()) as session: ...

`BuiltModel.state_dir` is laid out like a box: models/ and keys/. Tests must not write into it; `copy_to` gives one that
they may spoil.
"""

import fcntl
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pytest
from safetensors.numpy import save, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

import appliance.forge
from appliance.decoding.grammar import Vocabulary
from appliance.errors import BuildError, WrongSource
from appliance.forge import build as forge
from appliance.forge import recipe as recipes
from appliance.models import package
from appliance.models.tokenizer import Tokenizer as Tokens
from appliance.trust import keys

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "build" / "test-models"
TINY_VOCABULARY = 320

Architecture = Literal["llama", "gemma3", "qwen3", "lfm2"]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)


@dataclass(frozen=True)
class BuiltModel:
    """A signed package in a folder that is laid out like a box."""

    state_dir: Path
    name: str
    key: keys.PrivateKey

    @property
    def path(self) -> Path:
        return self.state_dir / "models" / self.name

    @property
    def keys(self) -> keys.KeySet:
        return keys.KeySet.of(self.key.public())

    def open(self) -> package.VerifiedModel:
        return package.open_verified(self.path, self.keys)

    def copy_to(self, state_dir: Path) -> "BuiltModel":
        shutil.copytree(self.state_dir, state_dir)
        return BuiltModel(state_dir, self.name, self.key)


def smollm2(quantization: str = "w8a8") -> BuiltModel:
    """SmolLM2 135M Instruct from its pinned package, without figures; built anew when forge or recipe change."""
    return _real("smollm2-135m-instruct", quantization)


def smollm2_vocabulary() -> Vocabulary:
    """The tokens of SmolLM2, for grammars."""
    with smollm2().open() as model:
        tokenizer = Tokens(bytes(model.files["tokenizer.json"]))
        tokenizer.cover(model.card.vocabulary_size)
        stop = model.card.tokens.stop
    return Vocabulary(tokenizer.token_bytes, tokenizer.control, stop, lambda text: tokenizer.encode(text, bos=False))


def gemma3(quantization: str = "w8a8") -> BuiltModel:
    """Gemma 3 270M, the base model."""
    return _real("gemma-3-270m", quantization)


def _real(name: str, quantization: str) -> BuiltModel:
    recipe = recipes.load(ROOT / "models" / f"{name}.yaml")
    state_dir = CACHE / f"{name}-{quantization}-{_digest_of_forge(recipe.sha256)}"
    key_file = state_dir / "private.pem"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run side by side: one builds, the others wait for it
        _build_real(recipe, name, quantization, state_dir, key_file)
    return BuiltModel(state_dir, f"{name}-{quantization}", keys.PrivateKey.load(key_file))


def _build_real(recipe: recipes.Recipe, name: str, quantization: str, state_dir: Path, key_file: Path) -> None:
    if not key_file.exists():
        shutil.rmtree(state_dir, ignore_errors=True)
        for older in CACHE.glob(f"{name}-{quantization}-*"):
            shutil.rmtree(older)
        try:
            forge.build(recipe, state_dir / "models", quantization=quantization, accept_licence=True, evaluate=False)
        except WrongSource:
            raise
        except BuildError as e:
            if "cannot fetch" in e.message:
                pytest.skip(f"not run: {e.message}")
            raise
        sign(state_dir, f"{name}-{quantization}", key_file)


def _digest_of_forge(recipe_sha256: str) -> str:
    hasher = hashlib.sha256(recipe_sha256.encode())
    forge_dir = Path(appliance.forge.__file__).parent
    for file in sorted([*forge_dir.glob("*.py"), Path(package.__file__), Path(package.__file__).with_name("card.py")]):
        hasher.update(file.read_bytes())
    return hasher.hexdigest()[:12]


def sign(state_dir: Path, name: str, key_file: Path) -> keys.PrivateKey:
    """Sign a package of a folder that is laid out like a box with a new key, and trust that key there."""
    key = keys.generate()
    package.sign_package(state_dir / "models" / name, key)
    trusted = state_dir / "keys"
    trusted.mkdir(mode=0o755, exist_ok=True)
    key.public().save(trusted / "test.pub")
    key.save(key_file)  # last: its presence says that the rest is complete
    return key


def tiny(
    state_dir: Path,
    architecture: Architecture = "llama",
    quantization: str = "q8",
    *,
    tensors: dict[str, np.ndarray] | None = None,
    **changes: Any,
) -> BuiltModel:
    """A working model of random weights, or of `tensors`, that talks nonsense: built in well under a second."""
    source = state_dir / "source"
    write_tiny(source, architecture, tensors=tensors)
    recipe = tiny_recipe(state_dir, architecture, **changes)
    forge.build(recipe, state_dir / "models", weights=source, quantization=quantization, evaluate=False)
    name = f"{recipe.name}-{quantization}"
    return BuiltModel(state_dir, name, sign(state_dir, name, state_dir / "private.pem"))


def tiny_recipe(directory: Path, architecture: Architecture = "llama", **changes: Any) -> recipes.Recipe:
    """A recipe for `write_tiny`'s weights; `changes` replace top-level keys."""
    content: dict[str, Any] = {
        "format": 1,
        "name": f"tiny-{architecture}",
        "version": "1",
        "summary": "random weights for tests",
        "architecture": architecture,
        "licence": {"id": "CC0-1.0", "name": "none", "terms": None, "must_accept": False},
        "source": {
            "file": "tiny.gguf",
            "size_bytes": 1,
            "sha256": "0" * 64,
            "pieces": [
                {"package": "no-such", "version": "1.0", "file": "x", "size_bytes": 1, "sha256": "0" * 64},
            ],
        },
        "quantization": "q8",
        "context_length": 256,
        "tokens": {"bos": "<s>", "add_bos": True, "stop": ["</s>"]},
        "chat": architecture == "llama",
        "generation": {
            "temperature": 0.7,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "max_tokens": 64,
        },
    }
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"tiny-{architecture}.yaml"
    path.write_text(json.dumps(content | changes))  # JSON is YAML
    return recipes.load(path)


TINY_TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


_LLAMA_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "vocab_size": TINY_VOCABULARY,
    "bos_token_id": 256,
    "eos_token_id": 257,
}
_TINY_CONFIGS: dict[Architecture, dict[str, Any]] = {
    "llama": _LLAMA_CONFIG,
    "gemma3": {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "query_pre_attn_scalar": 24,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        "tie_word_embeddings": True,
        "vocab_size": TINY_VOCABULARY,
        "bos_token_id": 256,
        "eos_token_id": 257,
    },
    # Heads that are wider together than the residual stream, and a head of its own: larger Qwen3 have both.
    "qwen3": _LLAMA_CONFIG
    | {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 32,
        "attention_bias": False,
        "use_sliding_window": False,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
    },
    # As LFM2-350M has it: the width of the feed-forward network is two thirds of block_ff_dim, rounded up.
    "lfm2": {
        "architectures": ["Lfm2ForCausalLM"],
        "model_type": "lfm2",
        "hidden_size": 64,
        "block_ff_dim": 160,
        "block_auto_adjust_ff_dim": True,
        "block_ffn_dim_multiplier": 1.0,
        "block_multiple_of": 32,
        "num_hidden_layers": 6,
        "full_attn_idxs": [1, 4],
        "conv_L_cache": 3,
        "conv_bias": False,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "tie_embedding": True,
        "vocab_size": TINY_VOCABULARY,
        "bos_token_id": 256,
        "eos_token_id": 257,
    },
}


def tiny_config(architecture: Architecture) -> dict[str, Any]:
    """The configuration of a tiny model, in the words of the transformers library."""
    return dict(_TINY_CONFIGS[architecture])


class _Random:
    """Random matrices and norms, the same everywhere for the same seed."""

    def __init__(self, seed: int, centre: float) -> None:
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._centre = centre

    def matrix(self, rows: int, columns: int) -> np.ndarray:
        return (self._rng.standard_normal((rows, columns)) * 1.5 / np.sqrt(columns)).astype(np.float32)

    def norm(self, width: int) -> np.ndarray:
        return (self._centre + self._rng.standard_normal(width) * 0.2).astype(np.float32)


def tiny_tensors(architecture: Architecture, seed: int = 7) -> dict[str, np.ndarray]:
    """Random float32 tensors under the names of the transformers library; the same everywhere for the same seed."""
    c, random = tiny_config(architecture), _Random(seed, 0.0 if architecture == "gemma3" else 1.0)
    if architecture == "lfm2":
        return _tiny_lfm2(c, random)
    hidden, feed = c["hidden_size"], c["intermediate_size"]
    q, kv = c["num_attention_heads"] * c["head_dim"], c["num_key_value_heads"] * c["head_dim"]
    matrix, norm = random.matrix, random.norm
    tensors = {"model.embed_tokens.weight": matrix(TINY_VOCABULARY, hidden), "model.norm.weight": norm(hidden)}
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}."
        tensors |= {
            f"{at}input_layernorm.weight": norm(hidden),
            f"{at}post_attention_layernorm.weight": norm(hidden),
            f"{at}self_attn.q_proj.weight": matrix(q, hidden),
            f"{at}self_attn.k_proj.weight": matrix(kv, hidden),
            f"{at}self_attn.v_proj.weight": matrix(kv, hidden),
            f"{at}self_attn.o_proj.weight": matrix(hidden, q),
            f"{at}mlp.gate_proj.weight": matrix(feed, hidden),
            f"{at}mlp.up_proj.weight": matrix(feed, hidden),
            f"{at}mlp.down_proj.weight": matrix(hidden, feed),
        }
        if architecture == "gemma3":
            tensors |= {
                f"{at}pre_feedforward_layernorm.weight": norm(hidden),
                f"{at}post_feedforward_layernorm.weight": norm(hidden),
            }
        if architecture in ("gemma3", "qwen3"):
            tensors |= {
                f"{at}self_attn.q_norm.weight": norm(c["head_dim"]),
                f"{at}self_attn.k_norm.weight": norm(c["head_dim"]),
            }
    if architecture == "qwen3":
        tensors["lm_head.weight"] = matrix(TINY_VOCABULARY, hidden)
    return tensors


def _tiny_lfm2(c: dict[str, Any], random: _Random) -> dict[str, np.ndarray]:
    hidden, feed, head_dim = c["hidden_size"], 128, 16
    kv, matrix, norm = c["num_key_value_heads"] * head_dim, random.matrix, random.norm
    tensors = {
        "model.embed_tokens.weight": matrix(TINY_VOCABULARY, hidden),
        "model.embedding_norm.weight": norm(hidden),
    }
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}."
        if i in c["full_attn_idxs"]:
            tensors |= {
                f"{at}self_attn.q_proj.weight": matrix(hidden, hidden),
                f"{at}self_attn.k_proj.weight": matrix(kv, hidden),
                f"{at}self_attn.v_proj.weight": matrix(kv, hidden),
                f"{at}self_attn.out_proj.weight": matrix(hidden, hidden),
                f"{at}self_attn.q_layernorm.weight": norm(head_dim),
                f"{at}self_attn.k_layernorm.weight": norm(head_dim),
            }
        else:
            tensors |= {
                f"{at}conv.in_proj.weight": matrix(3 * hidden, hidden),
                f"{at}conv.conv.weight": matrix(hidden, c["conv_L_cache"])[:, None, :],
                f"{at}conv.out_proj.weight": matrix(hidden, hidden),
            }
        tensors |= {
            f"{at}operator_norm.weight": norm(hidden),
            f"{at}ffn_norm.weight": norm(hidden),
            f"{at}feed_forward.w1.weight": matrix(feed, hidden),
            f"{at}feed_forward.w3.weight": matrix(feed, hidden),
            f"{at}feed_forward.w2.weight": matrix(hidden, feed),
        }
    return tensors


def tiny_tokenizer() -> Tokenizer:
    """One token a byte, and two control tokens."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = (b for b in range(256) if b not in printable)
    characters = {b: chr(b) for b in printable} | {b: chr(0x100 + n) for n, b in enumerate(rest)}
    tokenizer = Tokenizer(models.BPE(vocab={characters[b]: b for b in range(256)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<s>", "</s>")])
    tokenizer.add_tokens([AddedToken(f"<spare{n}>", normalized=False) for n in range(TINY_VOCABULARY - 258)])
    return tokenizer


def write_tiny(
    directory: Path,
    architecture: Architecture = "llama",
    *,
    bfloat16: bool = False,
    tensors: dict[str, np.ndarray] | None = None,
) -> Path:
    """Write a tiny model as people publish them: config.json, tokenizer.json, model.safetensors."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(tiny_config(architecture)))
    (directory / "tokenizer.json").write_text(tiny_tokenizer().to_str())
    if architecture == "llama":
        (directory / "chat_template.jinja").write_text(TINY_TEMPLATE)
    values = tensors or tiny_tensors(architecture)
    if bfloat16:
        halves = save({name: (v.view(np.uint32) >> 16).astype(np.uint16) for name, v in values.items()})
        size = int.from_bytes(halves[:8], "little")
        header = halves[8 : 8 + size].replace(b'"U16"', b'"BF16"')
        (directory / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + halves[8 + size :])
    else:
        save_file(values, directory / "model.safetensors")
    return directory
