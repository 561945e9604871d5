"""A small builder of ONNX graphs that streams the weights to disk while it goes.

    with Graph(directory) as graph:
        x = graph.node("Gather", [graph.constant("table", table), "input_ids"])
        ...
        graph.save(inputs, outputs)

writes `model.onnx` and, beside it, `model.onnx.data` with every tensor of 1 KiB or more, the large ones first. A step
reads its small tensors from the mapped file, and for each page that is read the kernel maps sixteen: among the large
ones they would take ten times their size. At no time is more in memory than one chunk of weights and the small tensors.
The bytes are a function of the calls alone: no clock, no random names.

What this does NOT do: check that the graph makes sense; onnxruntime does when it is loaded.

Source: ONNX IR, section on external data (offset, length, location).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from appliance.models.package import DATA_FILE, MODEL_FILE

MS = "com.microsoft"
_INLINE_BYTES = 1024
_LARGE_BYTES = 64 * 1024
_PAGE, _LINE = 4096, 64  # alignment of large tensors (mapped pages) and of small ones (cache lines)
_OPSET, _MS_OPSET, _IR_VERSION = 21, 1, 10

Array = NDArray[Any]


class Graph:
    """A graph under construction. Names of values are strings, as in ONNX; every method returns the name it made."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._data: BinaryIO = (directory / DATA_FILE).open("wb")
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._small: list[tuple[onnx.TensorProto, bytes]] = []
        self._aliases: list[tuple[onnx.TensorProto, onnx.TensorProto]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._data.close()

    def constant(self, name: str, value: Array) -> str:
        """Add an initializer. The same name twice is the same initializer: the second value is ignored."""
        if name not in self._initializers:
            value = np.ascontiguousarray(value)
            if value.nbytes >= _INLINE_BYTES:
                self.stream(name, value.dtype, value.shape, [value])
            else:
                tensor = self._tensor(name, value.dtype, value.shape)
                tensor.raw_data = value.tobytes()
        return name

    def stream(self, name: str, dtype: np.dtype[Any] | type, shape: Sequence[int], chunks: Iterable[Array]) -> str:
        """Add an external initializer whose bytes come in pieces, in order.

        Raises:
            ValueError: the pieces are not as long together as the shape says.
        """
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        tensor, pieces = self._tensor(name, dtype, shape), (np.ascontiguousarray(chunk, dtype) for chunk in chunks)
        if size < _LARGE_BYTES:
            content = b"".join(piece.tobytes() for piece in pieces)
            written = len(content)
            self._small.append((tensor, content))
        else:
            offset = self._align(_PAGE)
            for piece in pieces:
                self._data.write(piece.data)
            written = self._data.tell() - offset
            _lies_at(tensor, offset, size)
        if written != size:
            raise ValueError(f"tensor {name} has {written} bytes, its shape needs {size}")
        return name

    def alias(self, name: str, of: str, shape: Sequence[int]) -> str:
        """Add an initializer with the very same bytes in the data file, under another shape.

        Raises:
            ValueError: it has not as many values, or `of` is so small that it stands in the graph.
        """
        original = self._initializers[of]
        if original.raw_data:
            raise ValueError(f"{of} has no place in the data file, expected {_INLINE_BYTES} bytes or more")
        dtype = helper.tensor_dtype_to_np_dtype(original.data_type)
        if int(np.prod(shape)) != int(np.prod(original.dims)):
            raise ValueError(f"an alias of {of} must have as many values")
        self._aliases.append((self._tensor(name, dtype, shape), original))
        return name

    def node(self, operator: str, inputs: Sequence[str], *, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output."""
        return self.node_with_outputs(operator, inputs, [self._fresh(operator)], domain=domain, **attributes)[0]

    def node_with_outputs(
        self, operator: str, inputs: Sequence[str], outputs: Sequence[str], *, domain: str = "", **attributes: Any
    ) -> list[str]:
        """Add a node whose outputs have given names; an empty name leaves an optional output out."""
        used = list(inputs)
        while used and not used[-1]:
            used.pop()
        name = f"n{len(self._nodes)}_{operator}"
        self._nodes.append(helper.make_node(operator, used, list(outputs), name=name, domain=domain, **attributes))
        return list(outputs)

    def save(self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]) -> None:
        """Write what is left of the data file, and the graph file.

        Raises:
            ValueError: an initializer is used by no node.
        """
        read = {i for n in self._nodes for i in n.input}
        if unused := sorted(set(self._initializers) - read):
            raise ValueError(f"initializers that no node reads: {', '.join(unused)}")
        for tensor, content in self._small:
            _lies_at(tensor, self._align(_LINE), len(content))
            self._data.write(content)
        for tensor, original in self._aliases:
            tensor.data_location = original.data_location
            tensor.external_data.extend(original.external_data)
        graph = helper.make_graph(self._nodes, "skerry", inputs, outputs, list(self._initializers.values()))
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(MS, _MS_OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="skerry")
        (self._directory / MODEL_FILE).write_bytes(model.SerializeToString(deterministic=True))

    def _fresh(self, operator: str) -> str:
        return f"v{len(self._nodes)}_{operator}"

    def _tensor(self, name: str, dtype: np.dtype[Any], shape: Sequence[int]) -> onnx.TensorProto:
        if name in self._initializers:
            raise ValueError(f"initializer {name} exists")
        tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(dtype), dims=[int(n) for n in shape])
        self._initializers[name] = tensor
        return tensor

    def _align(self, step: int) -> int:
        self._data.write(b"\0" * (-self._data.tell() % step))
        return self._data.tell()


def _lies_at(tensor: onnx.TensorProto, offset: int, size: int) -> None:
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", DATA_FILE), ("offset", str(offset)), ("length", str(size))):
        tensor.external_data.add(key=key, value=value)


def floats(name: str, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    """Describe a float32 input or output; strings are free dimensions."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def ints(name: str, shape: Sequence[int | str], *, bits: int) -> onnx.ValueInfoProto:
    """Describe an integer input; strings are free dimensions."""
    return helper.make_tensor_value_info(name, TensorProto.INT64 if bits == 64 else TensorProto.INT32, shape)
