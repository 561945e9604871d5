"""Make the golden vectors of this folder again, with other people's implementations.

    python tests/vectors/make_golden.py tiny                         # tiny_llama.json, tiny_gemma3.json, ...
    python tests/vectors/make_golden.py model smollm2 FILE.gguf      # smollm2.json, or: gemma3
    python tests/vectors/make_golden.py tokens smollm2 FILE.gguf     # smollm2_tokens.json, or: gemma3
    python tests/vectors/make_golden.py words                        # words.json

`tiny` and `model` need `torch`, `transformers` and, for GGUF, `accelerate`; `tokens` and `words` need
`llama-cpp-python`. None of them is a dependency of Skerry: the vectors are committed.

Logits and greedy tokens come from transformers reading the very weights that the recipe pins, in float32; tokens come
from llama.cpp, the implementation that the vocabulary in the file was written for.
"""

import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parents[1]))

TOP = 8
GREEDY = 24
WHOLE_WORD = "keyboard"  # a token that no merges lead to
PROMPTS = {
    "smollm2": [1, 4093, 198, 2683, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198],
    "gemma3": [2, 818, 5279, 529, 7001, 563],
}
TEXTS = [
    "",
    " ",
    "   ",
    "\n",
    "Hello world",
    "  two  spaces   three    ",
    "line\nline\n\n\nend\r\n\ttab\t\ttabs",
    "Gr\u00f6\u00dfe, na\u00efve caf\u00e9 \u2014 \u201cquotes\u201d \u2026",
    "\u6771\u4eac\u306f\u65e5\u672c\u306e\u9996\u90fd\u3067\u3059\u3002\u4eba\u53e3\u306f\u7d041400\u4e07\u4eba\u3002",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u0401\u043b\u043a\u0430.",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u092e\u0947\u0902",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 family \U0001f1e9\U0001f1ea \U0001f3f3\ufe0f\u200d\U0001f308",
    "e\u0301 vs \u00e9 and \ufb01",
    "12345 3.14159 1,000,000 0x1F \uff12\uff13 \u2177 \u00b2",
    "def f(x):\n    return x**2  # comment\n",
    '<html><div class="a">b</div></html>',
    "don't I'll we've it's THEY'RE don\u2019t",
    "a" * 50,
    "\u200b\u00a0\u3000 odd spaces\u2028line",
    "\x00\x01\x7f",
    "\U0001d518\U0001d52b\U0001d526 \U00010348 \U000130c0",
    "snake_case CamelCase kebab-case SHOUTING",
    "Ticket #4711: pump P-203 leaks 0.5 l/min @ 3 bar!",
    "\t\t\tindented\n\t\tless",
    "\ufdfa \u00bd \u2460 \ufeff",
    "\ud55c\uad6d\uc5b4 \ubb38\uc7a5\uc785\ub2c8\ub2e4",
    "mixed\u6f22\u5b57and\u304b\u306awithlatin123",
    "x" + " " * 40 + "y",
    "\n" * 40,
    "https://example.org/a?b=c&d=%20#e",
    "A\u030a\u0323 \ud7ff\ue000",
    "\u2581already visible\u2581",
    "<0x41> <bos",
]
# Beside those: where the rules about contractions, marks, line ends and blanks differ from each other.
BORDERS = [
    "da x'dab ma x'mab DA X'DAB MA X'MAB lx x'lxy x'llxy vex i'vexy REX I'REXY 'tis",
    "end.\n\nNext!?\r\n (a)\n\t{",
    "a \n  b\t\n\n   \n c",
    "#letters ##two _x .5 \u20ac5 1a2",
    "12 345 6789 \u0661\u0662\u0663\u0664",
    "keyboard keyboard keyboards",
]


def logits_of(model: Any, prompt: list[int]) -> dict[str, Any]:
    """The likeliest tokens at every position, and what greedy decoding adds."""
    import torch

    with torch.no_grad():
        tokens = list(prompt)
        for _ in range(GREEDY):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        logits = model(torch.tensor([tokens])).logits[0]
    values, ids = logits.topk(TOP)
    return {
        "tokens": tokens,
        "prompt_tokens": len(prompt),
        "top_ids": ids.tolist(),
        "top_logits": [[round(v, 5) for v in row] for row in values.tolist()],
    }


def make_tiny() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from tests.fakes.built_models import ARCHITECTURES, write_tiny

    for architecture in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            path = write_tiny(Path(folder), architecture)
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
            write(f"tiny_{architecture}", logits_of(model, [256, *range(40, 64)]))


def make_model(name: str, path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    write(name, logits_of(model, PROMPTS[name]))


def make_tokens(name: str, path: Path) -> None:
    from llama_cpp import Llama

    model = Llama(str(path), vocab_only=True, verbose=False)
    cases = [{"text": t, "tokens": model.tokenize(t.encode(), add_bos=False, special=False)} for t in TEXTS]
    write(f"{name}_tokens", cases)


def make_words() -> None:
    """What llama.cpp's pre-tokenizers make of a small vocabulary that knows nothing of words.

    Every two neighbouring bytes of the texts are a merge, so that a border in the wrong place changes the tokens.
    """
    from gguf import GGUFWriter
    from llama_cpp import Llama
    from tokenizers import pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    texts = [*TEXTS, *BORDERS]
    characters = ["".join(piece for piece, _ in byte_level.pre_tokenize_str(text)) for text in texts]
    pairs = list(dict.fromkeys(pair for text in characters for pair in itertools.pairwise(text)))
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, pairs), WHOLE_WORD]
    merges = [" ".join(pair) for pair in pairs]
    found: dict[str, Any] = {"tokens": tokens, "merges": merges}
    for pre in ("qwen2", "lfm2"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "words.gguf")
            w = GGUFWriter(path, "llama")
            w.add_tokenizer_model("gpt2")
            w.add_tokenizer_pre(pre)
            w.add_token_list(tokens)
            w.add_token_types([1] * len(tokens))
            w.add_token_merges(merges)
            w.write_header_to_file()
            w.write_kv_data_to_file()
            w.close()
            model = Llama(str(path), vocab_only=True, verbose=False)
            found[pre] = [
                {"text": t, "tokens": model.tokenize(t.encode(), add_bos=False, special=False)} for t in texts
            ]
    write("words", found)


def write(name: str, value: Any) -> None:
    (FOLDER / f"{name}.json").write_text(json.dumps(value, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["tiny"]:
            make_tiny()
        case ["words"]:
            make_words()
        case ["model", name, path]:
            make_model(name, Path(path))
        case ["tokens", name, path]:
            make_tokens(name, Path(path))
        case _:
            sys.exit(__doc__)
