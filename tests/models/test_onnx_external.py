"""The walker over ONNX's wire format: every place where a tensor can hide, and every way to be malformed."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import UnsafeFile, VerificationFailed
from appliance.models.onnx_external import ExternalTensor, check, initializers
from tests.fakes.package import DATA, block, external_tensor, graph, model, node, number, tiny_model, varint

SIZE = len(DATA)
EVIL = external_tensor("../evil")
OUTSIDE = external_tensor()


def attribute(field: int, content: bytes) -> bytes:
    return block(1, b"value") + block(field, content)


def entries(*pairs: tuple[str, str], location: int = 1) -> bytes:
    """A TensorProto with any external_data entries."""
    return (
        number(1, SIZE)
        + number(2, 2)
        + b"".join(block(13, block(1, k.encode()), block(2, v.encode())) for k, v in pairs)
        + number(14, location)
    )


def places(tensor: bytes) -> dict[str, bytes]:
    """A model for each place, other than an initializer, where a tensor can stand."""
    sub = graph(tensor)
    return {
        "sparse initializer's values": model(graph() + block(15, block(1, tensor))),
        "sparse initializer's indices": model(graph() + block(15, block(2, tensor))),
        "attribute": model(graph(nodes=(node("Constant", attribute(5, tensor)),))),
        "attribute's list": model(graph(nodes=(node("Constant", attribute(10, tensor)),))),
        "sparse attribute": model(graph(nodes=(node("Constant", attribute(22, block(1, tensor))),))),
        "sparse attribute's list": model(graph(nodes=(node("Constant", attribute(23, block(2, tensor))),))),
        "subgraph": model(graph(nodes=(node("If", attribute(6, sub)),))),
        "list of subgraphs": model(graph(nodes=(node("If", attribute(11, sub)),))),
        "subgraph in a subgraph": model(
            graph(nodes=(node("If", attribute(6, graph(nodes=(node("If", attribute(6, sub)),)))),))
        ),
        "function's node": model(graph()) + block(25, block(7, node("Constant", attribute(5, tensor)))),
        "function's default": model(graph()) + block(25, block(11, attribute(5, tensor))),
        "training graph": model(graph()) + block(20, block(1, sub)),
        "training algorithm": model(graph()) + block(20, block(2, sub)),
    }


def test_weights_in_the_packages_data_file_pass() -> None:
    """The one legal place is counted; tensors inside of the file are free."""
    inline = number(1, 1) + number(2, 2) + block(9, b"\x01")
    assert check(model(graph(OUTSIDE, OUTSIDE, inline)), SIZE) == 2
    assert check(memoryview(tiny_model()), SIZE) == 1
    for place, data in places(inline).items():
        assert check(data, SIZE) == 0, place


def test_initializers_are_listed_for_the_engine() -> None:
    """Name, type, shape and range of each, as the engine needs them to take its memory from the mapping."""
    packed = (
        block(1, varint(2), varint(8))
        + number(2, 1)
        + block(8, b"v")
        + entries(("location", "model.onnx.data"), ("offset", "64"), ("length", "64")).removeprefix(
            number(1, SIZE) + number(2, 2)
        )
    )
    assert list(initializers(model(graph(OUTSIDE, packed)))) == [
        ExternalTensor("w", 2, (SIZE,), 0, SIZE),
        ExternalTensor("v", 1, (2, 8), 64, 64),
    ]


@pytest.mark.parametrize("place", places(b""))
@pytest.mark.parametrize("tensor", [EVIL, OUTSIDE], ids=["another file", "the data file"])
def test_external_tensor_anywhere_else_is_refused(place: str, tensor: bytes) -> None:
    """Wherever onnxruntime would find a tensor, so does the walker; only main-graph initializers may be external."""
    with pytest.raises(UnsafeFile):
        check(places(tensor)[place], SIZE)


@pytest.mark.parametrize(
    "location",
    [
        "../model.onnx.data",
        "/etc/passwd",
        "./model.onnx.data",
        "sub/model.onnx.data",
        "model.onnx.data/",
        "model.onnx.data\x00",
        "model.onnx.data ",
        "MODEL.ONNX.DATA",
        "model.onnx",
        "",
        "*/_ORT_MEM_ADDR_/*",
        "file:///etc/passwd",
        "\\\\host\\share",
    ],
)
def test_other_locations_are_refused(location: str) -> None:
    """Only the exact bytes of the one name pass; there is no path logic that could be fooled."""
    with pytest.raises(UnsafeFile):
        check(model(graph(external_tensor(location))), SIZE)


LOCATION = ("location", "model.onnx.data")
BAD_ENTRIES: list[tuple[str, bytes, type[VerificationFailed]]] = [
    ("external without a location", entries(), UnsafeFile),
    ("location without the flag", entries(("location", "../evil"), location=0), UnsafeFile),
    ("location twice, the last one bad", entries(LOCATION, ("location", "../evil")), VerificationFailed),
    ("location twice, the first one bad", entries(("location", "../evil"), LOCATION), VerificationFailed),
    ("unknown key", entries(LOCATION, ("prepacked_0", "x")), VerificationFailed),
    ("offset past the end", entries(LOCATION, ("offset", str(SIZE)), ("length", "1")), VerificationFailed),
    ("length past the end", entries(LOCATION, ("length", str(SIZE + 1))), VerificationFailed),
    ("negative offset", entries(LOCATION, ("offset", "-1")), VerificationFailed),
    ("offset in hexadecimal", entries(LOCATION, ("offset", "0x0")), VerificationFailed),
    ("offset with a space", entries(LOCATION, ("offset", " 1")), VerificationFailed),
    ("offset in other digits", entries(LOCATION, ("offset", "\u0661")), VerificationFailed),
    ("offset of 2**64", entries(LOCATION, ("offset", str(2**64)), ("length", "0")), VerificationFailed),
    ("very long offset", entries(LOCATION, ("offset", "0" * 5000)), VerificationFailed),
]


@pytest.mark.parametrize(("tensor", "error"), [r[1:] for r in BAD_ENTRIES], ids=[r[0] for r in BAD_ENTRIES])
def test_bad_external_data_is_refused(tensor: bytes, error: type[VerificationFailed]) -> None:
    """Ranges stay inside the file, keys are known and stand once, numbers are plain."""
    with pytest.raises(error) as caught:
        check(model(graph(tensor)), SIZE)
    assert caught.value.message.isprintable()


def test_node_that_loads_a_file_is_refused() -> None:
    """A precompiled graph names a file in an attribute, where no tensor is."""
    with pytest.raises(UnsafeFile, match="EPContext"):
        check(model(graph(nodes=(node("EPContext"),))), SIZE)


def test_second_graph_of_a_model_is_walked_too() -> None:
    """protobuf merges a message that stands twice; both are looked at."""
    with pytest.raises(UnsafeFile):
        check(model(graph()) + block(7, graph(EVIL)), SIZE)


def nested(depth: int) -> bytes:
    inner = graph()
    for _ in range(depth):
        inner = graph(nodes=(node("If", attribute(6, inner)),))
    return model(inner)


WHOLE = model(graph())
MALFORMED: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("no graph", number(1, 10)),
    ("cut off", tiny_model()[:-1]),
    ("length beyond the end", WHOLE + varint(7 << 3 | 2) + varint(1000) + b"x"),
    ("length of 2**63", WHOLE + varint(7 << 3 | 2) + varint(1 << 63)),
    ("endless varint", WHOLE + b"\xff" * 20),
    ("varint of more than 64 bits", WHOLE + varint(99 << 3) + b"\xff" * 9 + b"\x7f"),
    ("field number 0", WHOLE + varint(0) + varint(0)),
    ("field number too large", WHOLE + varint((1 << 32) << 3) + varint(0)),
    ("group", WHOLE + varint(99 << 3 | 3) + varint(99 << 3 | 4)),
    ("wire type 7", WHOLE + varint(1 << 3 | 7)),
    ("graph as a number", WHOLE + number(7, 1)),
    ("initializer as a number", model(graph() + number(5, 1))),
    ("external data as a number", model(graph(number(13, 1)))),
    ("data location as bytes", model(graph(block(14, b"\x01")))),
    ("fixed 32 cut off", model(graph()) + varint(99 << 3 | 5) + b"abc"),
    ("fixed 64 cut off", model(graph()) + varint(99 << 3 | 1) + b"abc"),
    ("nested deeply", nested(1000)),
]


@pytest.mark.parametrize("data", [r[1] for r in MALFORMED], ids=[r[0] for r in MALFORMED])
def test_malformed_bytes_are_refused(data: bytes) -> None:
    """What a protobuf reader might skip or guess at is an error here."""
    with pytest.raises(VerificationFailed, match="expected an ONNX model"):
        check(data, SIZE)


def test_fields_without_tensors_are_skipped() -> None:
    """Unknown fields of every wire type are stepped over; newer ONNX versions add such."""
    extra = number(99, 1) + varint(99 << 3 | 1) + bytes(8) + varint(99 << 3 | 5) + bytes(4) + block(99, b"\xff\xff")
    assert check(tiny_model() + extra, SIZE) == 1


def test_walk_is_linear_in_the_size() -> None:
    """A megabyte of the smallest messages takes seconds at most, not minutes."""
    data = model(graph(*[b""] * 200_000))
    start = time.monotonic()
    assert check(data, SIZE) == 0
    assert time.monotonic() - start < 20


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_any_bytes_end_in_a_verdict(data: st.DataObject) -> None:
    """A model with any bytes replaced passes or fails verification; nothing else is ever raised."""
    original = model(graph(OUTSIDE, nodes=(node("If", attribute(6, graph())),)))
    at = data.draw(st.integers(0, len(original)))
    try:
        check(original[:at] + data.draw(st.binary(max_size=8)) + original[at + data.draw(st.integers(0, 8)) :], SIZE)
    except VerificationFailed as e:
        assert e.message.isprintable()  # noqa: PT017  not raising is fine, too


def test_onnx_itself_agrees(tmp_path: object) -> None:
    """What the onnx package writes, with its own external-data support, is walked to the same result."""
    onnx = pytest.importorskip("onnx", reason="not run: the station's packages are not installed")
    import numpy as np
    from onnx import helper, numpy_helper

    weights = numpy_helper.from_array(np.arange(1024, dtype=np.float32).reshape(32, 32), "w")
    x, y = (helper.make_tensor_value_info(n, 1, [32, 32]) for n in "xy")
    proto = helper.make_model(
        helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weights])
    )
    path = f"{tmp_path}/model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    with open(path, "rb") as f:
        data = f.read()
    assert check(data, 4096) == 1
    assert [(t.name, t.shape, t.length) for t in initializers(data)] == [("w", (32, 32), 4096)]
    with pytest.raises(VerificationFailed, match="which has 4095"):
        check(data, 4095)
