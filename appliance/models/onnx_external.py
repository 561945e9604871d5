"""Where an ONNX file says that its weights lie, read from the protobuf wire format without the onnx package.

A tensor of an ONNX file may live in another file, which the file names by a path; onnxruntime follows it. Inside a
package that path may only be `model.onnx.data`. `check` walks every place where a tensor can stand (initializers,
sparse initializers, attributes of nodes, subgraphs, functions, training graphs) and refuses any other location, ranges
beyond the end of the data, nodes that load a file by themselves, and bytes that are not well-formed.

Only an initializer of the main graph may lie in the data file at all: these, `initializers` lists, and the engine hands
each to onnxruntime as verified memory. A tensor elsewhere would make onnxruntime open the file by name.

What this does NOT protect against: it is no ONNX checker. Whether the graph makes sense is onnxruntime's to say, and
the signature is what keeps a hostile graph out in the first place.

Source: https://protobuf.dev/programming-guides/encoding/ (wire format) and onnx.proto of ONNX 1.19 (field numbers).
"""

from collections.abc import Iterator
from typing import NamedTuple

from appliance.errors import UnsafeFile, VerificationFailed

DATA_FILE = "model.onnx.data"

# Which fields of which message hold a message that has to be walked. What is not named here holds no tensor.
_CHILDREN: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},  # a leaf, read by _check_tensor
}
_NODE_OP_TYPE = 4
_MODEL_GRAPH, _GRAPH_INITIALIZER = 7, 5
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME = 1, 2, 8
_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 13, 14
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_EXTERNAL = 1

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# protobuf's own readers stop at 100; it also keeps the work linear in the size of the file.
_MAX_DEPTH = 100
# Model, Graph, Tensor: no other way through _CHILDREN reaches a tensor in two steps.
_INITIALIZER_DEPTH = 2
# "checksum" is ONNX's own optional key; the signature already covers the file.
_ENTRY_KEYS = frozenset({b"location", b"offset", b"length", b"checksum"})
# onnxruntime's node for a precompiled graph: its attribute is a file name.
_FILE_LOADING_OPS = frozenset({b"EPContext"})


class ExternalTensor(NamedTuple):
    """An initializer of the main graph whose bytes lie in the data file."""

    name: str
    dtype: int
    """ONNX's number of the element type."""
    shape: tuple[int, ...]
    offset: int
    length: int
    """In bytes, as the offset."""


class _Field(NamedTuple):
    number: int
    wire_type: int
    varint: int  # the value of a varint; 0 for every other wire type
    data: memoryview  # the content of a length-delimited field; empty for every other wire type


def check(model: bytes | memoryview, data_size: int) -> int:
    """Refuse a graph that names any file but the package's own data file.

    Args:
        model: the whole of `model.onnx`.
        data_size: of `model.onnx.data`, in bytes.
    Returns:
        How many tensors lie in the data file.
    Raises:
        UnsafeFile: a tensor or node names another file, or a tensor lies in the data file and is no initializer of
            the main graph.
        VerificationFailed: the bytes are no ONNX model, or a tensor reaches beyond the data file.
    """
    external = 0
    has_graph = False
    # A stack, not recursion: the depth is the file's to choose.
    todo: list[tuple[str, memoryview, int]] = [("Model", memoryview(model).cast("B"), 0)]
    while todo:
        kind, data, depth = todo.pop()
        if depth > _MAX_DEPTH:
            raise _malformed(f"messages nested deeper than {_MAX_DEPTH}")
        if kind == "Tensor":
            is_external = _check_tensor(data, data_size)
            if is_external and depth != _INITIALIZER_DEPTH:
                raise UnsafeFile(
                    f"cannot use model.onnx: a tensor in {DATA_FILE} that is no initializer of the main graph",
                    hint="build the package again with `skerry model build`",
                )
            external += is_external
            continue
        children = _CHILDREN[kind]
        for field in _fields(data):
            child = children.get(field.number)
            if child is not None:
                _expect(field, _BYTES)
                todo.append((child, field.data, depth + 1))
                has_graph |= child == "Graph"
            elif kind == "Node" and field.number == _NODE_OP_TYPE and bytes(field.data) in _FILE_LOADING_OPS:
                raise UnsafeFile(
                    f"cannot use model.onnx: a node of type {bytes(field.data).decode()} loads a file by itself",
                    hint="build the package again with `skerry model build`",
                )
    if not has_graph:
        raise _malformed("no graph")
    return external


def initializers(model: bytes | memoryview) -> Iterator[ExternalTensor]:
    """List the main graph's initializers that lie in the data file, in the file's order.

    Args:
        model: the whole of a `model.onnx` that `check` let pass.
    Raises:
        VerificationFailed: as `check`, or a tensor does not say how long it is.
    """
    for outer in _fields(memoryview(model).cast("B")):
        if outer.number == _MODEL_GRAPH:
            for field in _fields(outer.data):
                if field.number == _GRAPH_INITIALIZER and (tensor := _external_tensor(field.data)):
                    yield tensor


def _external_tensor(data: memoryview) -> ExternalTensor | None:
    name, dtype, shape = "", 0, list[int]()
    entries: dict[bytes, bytes] = {}
    for field in _fields(data):
        if field.number == _TENSOR_NAME:
            name = bytes(field.data).decode("utf-8", "replace")
        elif field.number == _TENSOR_TYPE:
            dtype = field.varint
        elif field.number == _TENSOR_DIMS and field.wire_type == _VARINT:
            shape.append(field.varint)
        elif field.number == _TENSOR_DIMS:  # packed
            at = 0
            while at < len(field.data):
                dim, at = _varint(field.data, at)
                shape.append(dim)
        elif field.number == _TENSOR_EXTERNAL_DATA:
            key, value = _entry(field.data)
            entries[key] = value
    if not entries:
        return None
    if b"length" not in entries:
        raise _malformed("external data without a length")
    return ExternalTensor(name, dtype, tuple(shape), _number(entries, b"offset"), _number(entries, b"length"))


def _check_tensor(tensor: memoryview, data_size: int) -> bool:
    """Check one TensorProto; return whether its data lies in the data file."""
    entries: dict[bytes, bytes] = {}
    external = False
    for field in _fields(tensor):
        if field.number == _TENSOR_EXTERNAL_DATA:
            _expect(field, _BYTES)
            key, value = _entry(field.data)
            if key in entries:
                raise _malformed(f"external data with {key.decode()} twice")
            entries[key] = value
        elif field.number == _TENSOR_DATA_LOCATION:
            _expect(field, _VARINT)
            external |= field.varint == _EXTERNAL
    # Entries without the flag are checked too: which of the two a reader believes is the reader's choice.
    if not entries and not external:
        return False
    location = entries.get(b"location")
    if location != DATA_FILE.encode():
        raise UnsafeFile(
            f"cannot use model.onnx: a tensor lies in {_shown(location)}, expected {DATA_FILE}",
            hint="build the package again with `skerry model build`",
        )
    offset, length = _number(entries, b"offset"), _number(entries, b"length")
    if offset + length > data_size:
        raise VerificationFailed(
            f"cannot use model.onnx: a tensor ends at byte {offset + length} of {DATA_FILE}, which has {data_size}",
            hint="build the package again with `skerry model build`",
        )
    return True


def _entry(data: memoryview) -> tuple[bytes, bytes]:
    """Read one key and value of external_data; both exactly once, and the key known."""
    found: dict[int, bytes] = {}
    for field in _fields(data):
        _expect(field, _BYTES)
        if field.number in found or field.number not in (_ENTRY_KEY, _ENTRY_VALUE):
            raise _malformed("external data that is not one key and one value")
        found[field.number] = bytes(field.data)
    key = found.get(_ENTRY_KEY, b"")
    if key not in _ENTRY_KEYS:
        raise _malformed(f"external data with the key {_shown(key)}")
    return key, found.get(_ENTRY_VALUE, b"")


def _number(entries: dict[bytes, bytes], key: bytes) -> int:
    """A decimal number of external_data; 0 if it is absent, which the format allows."""
    text = entries.get(key, b"0")
    # isdigit of bytes is ASCII only; twenty digits hold any file size.
    if not text.isdigit() or len(text) > 20:
        raise _malformed(f"external data whose {key.decode()} is {_shown(text)}")
    return int(text)


# --- the wire format --------------------------------------------------------------------------------------------------


def _fields(data: memoryview) -> Iterator[_Field]:
    """Split a message into its fields.

    Raises:
        VerificationFailed: the bytes do not end where a field ends, or a wire type is unknown.
    """
    at, end = 0, len(data)
    empty = data[:0]
    while at < end:
        tag, at = _varint(data, at)
        number, wire_type = tag >> 3, tag & 7
        if number == 0 or tag >> 32:
            raise _malformed(f"a field number of {number}")
        if wire_type == _VARINT:
            value, at = _varint(data, at)
            yield _Field(number, wire_type, value, empty)
            continue
        if wire_type == _BYTES:
            size, at = _varint(data, at)
        elif wire_type == _FIXED64:
            size = 8
        elif wire_type == _FIXED32:
            size = 4
        else:  # groups are not used by ONNX, and a walker that skips them could be led around a tensor
            raise _malformed(f"a wire type of {wire_type}")
        if size > end - at:
            raise _malformed(f"a field of {size} bytes where {end - at} are left")
        yield _Field(number, wire_type, 0, data[at : at + size] if wire_type == _BYTES else empty)
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Read a base-128 number at `at`; return it and where it ends."""
    value = 0
    for index in range(10):  # ten groups of seven bits hold 64
        if at + index >= len(data):
            raise _malformed("a number that is cut off")
        byte = data[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if value >> 64:
                break
            return value, at + index + 1
    raise _malformed("a number of more than 64 bits")


def _expect(field: _Field, wire_type: int) -> None:
    # protobuf treats a known field of another wire type as unknown and skips it; here that would be a blind spot.
    if field.wire_type != wire_type:
        raise _malformed(f"field {field.number} with wire type {field.wire_type}, expected {wire_type}")


def _shown(text: bytes | None) -> str:
    """Quote foreign bytes for an error: short, and without control characters."""
    return "no file" if text is None else ascii(text[:80].decode("utf-8", "replace"))


def _malformed(found: str) -> VerificationFailed:
    return VerificationFailed(
        f"cannot use model.onnx: found {found}, expected an ONNX model",
        hint="build the package again with `skerry model build`",
    )
