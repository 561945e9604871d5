"""The pieces that the architectures share, as nodes of the graph contract between forge and engine.

A run is one forward of several sequences. Their tokens stand one after the other, without padding; only the attention
sees a row for each sequence, padded at its end.

Inputs:   input_ids int64 [tokens]
          query_seqlens int32 [batch]         how many of the tokens each sequence has; 0 leaves it as it is
          seqlens_k int32 [batch]             tokens in its cache after this run, less one
          total_sequence_length int32 []      the longest of them, after this run
          padded_rows int64 [batch, sequence] where in `input_ids` each token of a row stands; anything in the padding
          flat_rows int64 [tokens]            where in batch * sequence each token stands
          logit_rows int64 [rows]             which tokens get logits
          hidden_rows int64 [hidden_rows]     of which tokens the state before the head is told instead
          past_key_values.{i}.key, .value     float32 [batch, kv_heads, capacity, head_dim]
Outputs:  logits float32 [rows, vocabulary]
          hidden float32 [hidden_rows, hidden]
          present.{i}.key, .value             bound to the same buffers as the past: updated in place

A layer that convolves has no keys and values. Its kernel goes over the last tokens of a sequence, so it is told what
went into it for the tokens before this run, and says what goes into it for the tokens of this run:

Inputs:   conv_seqlens int32 [active + 1]     where in `input_ids` each sequence that has tokens begins, and their end
          conv_states.{i} float32 [active, hidden, kernel - 1]  the tokens before, the latest last; zeros where none is
Outputs:  conv_inputs.{i} float32 [tokens, hidden]

The embedding table is in the file once; the head reads the same bytes. The head's matrix is `output.weight`, or
`token_embd.weight` where the model has none of its own: `.q` and `.scale` of it in 8 bits, or itself in float32. The
engine finds it under these names (`engine.head`).
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from appliance.files import Progress, no_progress
from appliance.forge.graph import MS, Graph, floats, ints
from appliance.forge.quantize import (
    BITS,
    MIDDLE,
    Quantized,
    Scheme,
    exact_4,
    keeps_4,
    quantize,
    quantize_outputs,
    rotate,
)
from appliance.forge.weights import BLOCK, Affine4, Hyperparameters, Weights

_ACCURACY_INT8 = 4  # MatMulNBits: activations rounded to 8 bits a block; level 0 is many times slower


class Layers:
    """Writes layers of one model into a graph.

    Args:
        context_length: rows of the rotary tables, hence the longest sequence.
        scheme: of the linear layers; embedding and head have 8 bits, unless it is "f32".
    """

    def __init__(
        self, graph: Graph, weights: Weights, scheme: Scheme, context_length: int, progress: Progress = no_progress
    ) -> None:
        self.graph = graph
        self.weights = weights
        self.hyperparameters: Hyperparameters = weights.hyperparameters
        self._scheme = scheme
        self._context_length = context_length
        self._progress = progress
        self._written: set[str] = set()
        self.exact = 0  # matrices that were taken as the source's own 4-bit numbers
        self._vocabulary = weights.shapes["token_embd.weight"][0]

    def embedding(self) -> str:
        """Look the input tokens up: [tokens, hidden]."""
        name, g = "token_embd.weight", self.graph
        if self._scheme == "f32":
            self._report(name)
            g.stream(name, np.float32, self.weights.shapes[name], self.weights.chunks(name))
            return g.node("Gather", [name, "input_ids"])
        if "output.weight" in self.weights.shapes:
            self._store_quantized(name, [name], "q8", table=True)
            table = f"{name}.q"
        else:  # the head reads the same bytes, in blocks
            self._store_quantized(name, [name], "q8")
            table = g.alias("token_embd.table", f"{name}.q", self.weights.shapes[name])
        return g.node(
            "GatherBlockQuantized",
            [table, "input_ids", f"{name}.scale"],
            domain=MS,
            bits=8,
            block_size=BLOCK,
            gather_axis=0,
            quantize_axis=1,
        )

    def head(self, x: str) -> None:
        """Compute `logits` for the rows that are asked for, give `hidden` of others, and write the file."""
        g, hidden = self.graph, self.hyperparameters.hidden
        rows = g.node("Gather", [x, "logit_rows"])
        g.node_with_outputs("Gather", [x, "hidden_rows"], ["hidden"])
        name = "output.weight" if "output.weight" in self.weights.shapes else "token_embd.weight"
        if self._scheme == "f32":
            if name == "output.weight":
                g.stream(name, np.float32, self.weights.shapes[name], self.weights.chunks(name))
            g.node_with_outputs("Gemm", [rows, name], ["logits"], transB=1)
        else:
            if name == "output.weight":
                self._store_quantized(name, [name], "q8")
            self._matmul(rows, name, (self._vocabulary, hidden), "q8", output="logits")
        g.save(self._inputs(), self._outputs())

    def linear(self, x: str, *names: str, uneven: bool = False) -> str:
        """Multiply by one matrix, or by several that read the same input: their outputs stand side by side.

        Args:
            x: [tokens, inputs].
            names: of the matrices.
            uneven: single inputs stand far out from token to token: they are rotated where a token has one scale.
        """
        full = [f"{n}.weight" for n in names]
        joined = full[0] if len(full) == 1 else "+".join(names) + ".weight"
        outputs = sum(self.weights.shapes[n][0] for n in full)
        inputs = self.weights.shapes[full[0]][1]
        if self._scheme == "f32":
            self._report(*full)
            matrix = np.concatenate([self.weights.read(n) for n in full])
            return self.graph.node("MatMul", [x, self.graph.constant(joined, matrix.T)])
        if self._scheme == "q4x":
            return self._exact_or_8_bits(x, joined, full)
        if self._scheme == "w8a8":
            return self._integers(x, joined, full, rotated=uneven)
        self._store_quantized(joined, full, self._scheme)
        return self._matmul(x, joined, (outputs, inputs), self._scheme)

    def _exact_or_8_bits(self, x: str, joined: str, names: Sequence[str]) -> str:
        """Multiply by the source's own 4-bit numbers, or by 8 bits where it has none."""
        g, parts = self.graph, [self.weights.affine4(name) for name in names]
        exact = [part for part in parts if part is not None and keeps_4(part)]
        outputs, inputs = sum(self.weights.shapes[n][0] for n in names), self.weights.shapes[names[0]][1]
        if len(exact) < len(parts):
            self._store_quantized(joined, names, "q8")
            return self._matmul(x, joined, (outputs, inputs), "q8")
        self._report(*names)
        self.exact += len(names)
        q = exact_4(Affine4.stack(exact))
        g.stream(f"{joined}.q", np.uint8, q.packed.shape, [q.packed])
        g.constant(f"{joined}.scale", q.scales)
        assert q.zero_points is not None  # noqa: S101  it is asymmetric
        g.constant(f"{joined}.zero", q.zero_points)
        return self._matmul(self._with_block_sums(x, inputs), joined, (outputs, inputs + inputs // BLOCK), "q4")

    def _with_block_sums(self, x: str, width: int) -> str:
        """Append the sum of each block of x."""
        g, blocks = self.graph, width // BLOCK
        apart = g.constant(f"shape.{blocks}_blocks", np.array([0, blocks, BLOCK], np.int64))
        within = g.constant("axis.within_blocks", np.array([2], np.int64))
        sums = g.node("ReduceSum", [g.node("Reshape", [x, apart]), within], keepdims=0)
        return g.node("Concat", [x, sums], axis=-1)

    def _integers(self, x: str, joined: str, names: Sequence[str], *, rotated: bool) -> str:
        """Multiply inputs of 8 bits by weights of 8 bits: exact, in any order and whatever else is in the pass."""
        g = self.graph
        self._report(*names)
        chunks = (chunk for name in names for chunk in self.weights.chunks(name))
        parts = [quantize_outputs(rotate(chunk) if rotated else chunk) for chunk in chunks]
        values = np.concatenate([values for values, _ in parts])
        matrix = g.stream(f"{joined}.q", np.uint8, values.shape[::-1], [values.T])
        scales = g.constant(f"{joined}.scale", np.concatenate([scales for _, scales in parts]))
        rounded, largest = self._round_tokens(self._rotate(x, values.shape[1]) if rotated else x)
        step, middle = self._step(), self._middle()
        y = g.node("MatMulIntegerToFloat", [rounded, matrix, step, scales, middle, middle], domain=MS)
        return g.node("Mul", [y, largest])

    def _rotate(self, x: str, width: int) -> str:
        """Rotate each block of the inputs."""
        rotation = self.graph.constant("rotation", rotate(np.eye(BLOCK, dtype=np.float32)))
        return self._rows(self.graph.node("MatMul", [self._rows(x, BLOCK), rotation]), width)

    def _rows(self, x: str, width: int) -> str:
        """The same values in rows of `width`: [-1, width]."""
        return self.graph.node(
            "Reshape", [x, self.graph.constant(f"shape.{width}_flat", np.array([-1, width], np.int64))]
        )

    def _round_tokens(self, x: str) -> tuple[str, str]:
        """Round each token to 8 bits of its own largest value: (integers, the largest)."""
        g = self.graph
        largest = g.node("ReduceMax", [g.node("Abs", [x]), g.constant("axis.last", np.array([-1], np.int64))])
        # A token of zeros becomes 0 / 0: whatever that is rounded to is multiplied by its largest value, 0.
        fraction = g.node("Div", [x, largest])
        return g.node("QuantizeLinear", [fraction, self._step(), self._middle()]), largest

    def _step(self) -> str:
        return self.graph.constant("integers.step", np.array(1 / (MIDDLE - 1), np.float32))

    def _middle(self) -> str:
        return self.graph.constant("integers.zero", np.array(MIDDLE, np.uint8))

    def norm(self, x: str, name: str) -> str:
        """RMS norm over the last axis."""
        return self.graph.node(
            "SimplifiedLayerNormalization",
            [x, self._vector(name)],
            axis=-1,
            epsilon=self.hyperparameters.norm_epsilon,
            stash_type=1,
        )

    def add_norm(self, x: str, residual: str, name: str) -> tuple[str, str]:
        """Add to the residual stream and norm the sum: (normed, sum)."""
        normed, total = f"{name}.normed", f"{name}.residual"
        # The stream ends at the last norm: nobody reads its sum, and an output that nobody reads costs a buffer.
        outputs = [normed] if name == "output_norm" else [normed, "", "", total]
        self.graph.node_with_outputs(
            "SkipSimplifiedLayerNormalization",
            [x, residual, self._vector(name)],
            outputs,
            domain=MS,
            epsilon=self.hyperparameters.norm_epsilon,
        )
        return normed, total

    def split_heads(self, qkv: str) -> tuple[str, str, str]:
        """Cut the joined projections into Q, K and V."""
        h = self.hyperparameters
        widths = [h.heads * h.head_dim, h.kv_heads * h.head_dim, h.kv_heads * h.head_dim]
        sizes = self.graph.constant("split.qkv", np.array(widths, np.int64))
        names = [f"{qkv}.{part}" for part in "qkv"]
        q, k, v = self.graph.node_with_outputs("Split", [qkv, sizes], names, axis=-1)
        return q, k, v

    def norm_heads(self, x: str, heads: int, name: str) -> str:
        """RMS norm over every head: [tokens, heads * head_dim], before the rotation."""
        g, width = self.graph, self.hyperparameters.head_dim
        apart = g.constant(f"shape.{heads}_heads", np.array([0, heads, width], np.int64))
        joined = g.constant(f"shape.{heads}_joined", np.array([0, heads * width], np.int64))
        return g.node("Reshape", [self.norm(g.node("Reshape", [x, apart]), name), joined])

    def attention(self, layer: int, q: str, k: str = "", v: str = "") -> str:
        """Rotate, append to the cache, attend. With Q alone, Q is the three projections side by side."""
        h = self.hyperparameters
        local = h.is_local(layer)
        theta = h.rope_theta_local if local and h.rope_theta_local is not None else h.rope_theta
        cos, sin = self._rotary(theta)
        g, width = self.graph, h.heads * h.head_dim
        qkv = [g.node("Gather", [part, "padded_rows"]) if part else "" for part in (q, k, v)]
        past = [f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"]
        unused = [""] * 7  # from position_ids to the norms of Q and K
        outputs = [f"attention.{layer}", f"present.{layer}.key", f"present.{layer}.value"]
        g.node_with_outputs(
            "GroupQueryAttention",
            [*qkv, *past, "seqlens_k", "total_sequence_length", cos, sin, *unused, "query_seqlens"],
            outputs,
            domain=MS,
            num_heads=h.heads,
            kv_num_heads=h.kv_heads,
            do_rotary=1,
            scale=h.attention_scale or float(h.head_dim**-0.5),
            local_window_size=h.sliding_window if local and h.sliding_window else -1,
        )
        return g.node("Gather", [self._rows(outputs[0], width), "flat_rows"])

    def normed_attention(self, layer: int, x: str) -> str:
        """Project to Q, K and V, norm every head of Q and K, attend: [tokens, heads * head_dim]."""
        h, block = self.hyperparameters, f"blk.{layer}."
        q, k, v = self.split_heads(self.linear(x, block + "attn_q", block + "attn_k", block + "attn_v"))
        q = self.norm_heads(q, h.heads, block + "attn_q_norm")
        k = self.norm_heads(k, h.kv_heads, block + "attn_k_norm")
        return self.attention(layer, q, k, v)

    def short_convolution(self, layer: int, x: str) -> str:
        """Gate, convolve each channel over the last tokens, gate again: [tokens, hidden] of [tokens, 3 * hidden].

        Args:
            x: both gates and the values, side by side: B, C, x.
        """
        g, name = self.graph, f"blk.{layer}.shortconv.conv.weight"
        b, c, values = g.node_with_outputs("Split", [x], [f"{x}.{part}" for part in "bcx"], axis=-1, num_outputs=3)
        (inputs,) = g.node_with_outputs("Mul", [b, values], [f"conv_inputs.{layer}"])
        self._report(name)
        kernel = g.constant(name, self.weights.read(name)[:, None, :])
        # The operator's own state is that after the last token, too late for a rewind: it is never read.
        outputs = [f"convolved.{layer}", f"conv_end.{layer}"]
        g.node_with_outputs(
            "VarlenCausalConvWithState",
            [inputs, kernel, "conv_seqlens", "", f"conv_states.{layer}"],
            outputs,
            domain=MS,
            activation="none",
        )
        return g.node("Mul", [c, outputs[0]])

    def gate_and_up(self, x: str, block: str) -> tuple[str, str]:
        """Both projections of a gated network, from one product: [tokens, feed_forward] each."""
        both = self.linear(x, block + "ffn_gate", block + "ffn_up")
        names = [f"{both}.gate", f"{both}.up"]
        gate, up = self.graph.node_with_outputs("Split", [both], names, axis=-1, num_outputs=2)
        return gate, up

    def swiglu(self, x: str, block: str) -> str:
        """Feed forward through SwiGLU: [tokens, hidden]."""
        g = self.graph
        gate, up = self.gate_and_up(x, block)
        gate = g.node("QuickGelu", [gate], domain=MS, alpha=1.0)  # x * sigmoid(x): SiLU
        product = g.node("Mul", [gate, up])
        return self.linear(product, block + "ffn_down", uneven=True)

    def stack(self, mix: Callable[[int, str], str]) -> None:
        """Write a whole graph whose layers are a norm, something that mixes tokens, a norm and SwiGLU.

        Args:
            mix: of a layer's number and its normed input, [tokens, hidden] each.
        """
        residual = self.embedding()
        x = self.norm(residual, "blk.0.attn_norm")
        for i in range(self.hyperparameters.layers):
            block = f"blk.{i}."
            x, residual = self.add_norm(mix(i, x), residual, block + "ffn_norm")
            following = f"blk.{i + 1}.attn_norm" if i + 1 < self.hyperparameters.layers else "output_norm"
            x, residual = self.add_norm(self.swiglu(x, block), residual, following)
        self.head(x)

    def _rotary(self, theta: float) -> tuple[str, str]:
        """Tables of cosines and sines: [context_length, head_dim / 2] each; computed in float64."""
        width = self.hyperparameters.head_dim
        frequency = theta ** (-np.arange(0, width, 2, dtype=np.float64) / width)
        angle = np.arange(self._context_length, dtype=np.float64)[:, None] * frequency
        g, key = self.graph, f"{theta:g}"
        return (
            g.constant(f"cos.{key}", np.cos(angle).astype(np.float32)),
            g.constant(f"sin.{key}", np.sin(angle).astype(np.float32)),
        )

    def _report(self, *names: str) -> None:
        self._written.update(names)
        self._progress(f"writing weights ({self._scheme})", len(self._written) / len(self.weights.shapes))

    def _vector(self, name: str) -> str:
        self._report(f"{name}.weight")
        return self.graph.constant(f"{name}.weight", self.weights.read(f"{name}.weight"))

    def _store_quantized(self, joined: str, names: Sequence[str], scheme: Scheme, *, table: bool = False) -> None:
        """Write values, scales and zero points of one or several matrices, one under the other.

        The three go to different places of the file, so each chunk is quantized once and only its (small) scales and
        zero points are kept until its values are written.
        """
        outputs = sum(self.weights.shapes[n][0] for n in names)
        blocks = self.weights.shapes[names[0]][1] // BLOCK
        self._report(*names)
        rest: list[Quantized] = []

        def packed() -> Iterator[np.ndarray]:
            for name in names:
                for chunk in self.weights.chunks(name):
                    q = quantize(chunk, scheme)
                    rest.append(Quantized(q.packed[:0], q.scales, q.zero_points))
                    yield q.packed

        width = BLOCK * BITS[scheme] // 8
        shape = (outputs, blocks * width) if table else (outputs, blocks, width)
        self.graph.stream(f"{joined}.q", np.uint8, shape, packed())
        self.graph.constant(f"{joined}.scale", np.concatenate([q.scales for q in rest]))
        zero_points = [q.zero_points for q in rest if q.zero_points is not None]
        if zero_points:
            self.graph.constant(f"{joined}.zero", np.concatenate(zero_points))

    def _matmul(self, x: str, name: str, shape: tuple[int, int], scheme: Scheme, output: str | None = None) -> str:
        outputs, inputs = shape
        zero = [f"{name}.zero"] if scheme == "q4" else []
        attributes = {
            "N": outputs,
            "K": inputs,
            "bits": BITS[scheme],
            "block_size": BLOCK,
            "accuracy_level": _ACCURACY_INT8,
        }
        operands = [x, f"{name}.q", f"{name}.scale", *zero]
        if output is None:
            return self.graph.node("MatMulNBits", operands, domain=MS, **attributes)
        return self.graph.node_with_outputs("MatMulNBits", operands, [output], domain=MS, **attributes)[0]

    def _cache(self, prefix: str) -> list[str]:
        return [f"{prefix}.{i}.{part}" for i in self.hyperparameters.attention_layers for part in ("key", "value")]

    def _inputs(self) -> list[object]:
        h = self.hyperparameters
        shape = ("batch", h.kv_heads, "capacity", h.head_dim)
        return [
            ints("input_ids", ("tokens",), bits=64),
            ints("query_seqlens", ("batch",), bits=32),
            ints("seqlens_k", ("batch",), bits=32),
            ints("total_sequence_length", (), bits=32),
            ints("padded_rows", ("batch", "sequence"), bits=64),
            ints("flat_rows", ("tokens",), bits=64),
            ints("logit_rows", ("rows",), bits=64),
            ints("hidden_rows", ("hidden_rows",), bits=64),
            *(floats(name, shape) for name in self._cache("past_key_values")),
            *([ints("conv_seqlens", ("boundaries",), bits=32)] if h.conv_layers else []),
            *(floats(f"conv_states.{i}", ("active", h.hidden, h.conv_kernel - 1)) for i in sorted(h.conv_layers)),
        ]

    def _outputs(self) -> list[object]:
        h = self.hyperparameters
        shape = ("batch", h.kv_heads, "capacity", h.head_dim)
        return [
            floats("logits", ("rows", self._vocabulary)),
            floats("hidden", ("hidden_rows", h.hidden)),
            *(floats(name, shape) for name in self._cache("present")),
            *(floats(f"conv_inputs.{i}", ("tokens", h.hidden)) for i in sorted(h.conv_layers)),
        ]
