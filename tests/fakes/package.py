"""Small model packages: structurally valid, signed if wanted, and not meant to run.

The ONNX bytes are written here by hand in the protobuf wire format, so that the tests of the walker do not depend on
the library that they stand in for, and can write what that library would refuse to.
"""

import json
from pathlib import Path

import msgspec

from appliance.models.card import (
    Card,
    Figures,
    Generation,
    Licence,
    ParameterParts,
    Parameters,
    Provenance,
    Quantization,
    Source,
    Tokens,
    dump,
)
from appliance.models.package import sign_package
from appliance.trust.keys import PrivateKey

DATA = bytes(range(256)) * 16


def varint(value: int) -> bytes:
    """A base-128 number of the protobuf wire format."""
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def number(field: int, value: int) -> bytes:
    """A varint field."""
    return varint(field << 3) + varint(value)


def block(field: int, *contents: bytes) -> bytes:
    """A length-delimited field: text, bytes or a message."""
    content = b"".join(contents)
    return varint(field << 3 | 2) + varint(len(content)) + content


def external_tensor(location: str = "model.onnx.data", offset: int = 0, length: int = len(DATA)) -> bytes:
    """A TensorProto (uint8, one dimension) whose bytes lie in another file."""
    entries = [("location", location), ("offset", str(offset)), ("length", str(length))]
    return (
        number(1, length)
        + number(2, 2)
        + block(8, b"w")
        + b"".join(block(13, block(1, k.encode()), block(2, v.encode())) for k, v in entries)
        + number(14, 1)
    )


def node(op_type: str = "Identity", *attributes: bytes) -> bytes:
    """A NodeProto from `w` to `y`."""
    return block(1, b"w") + block(2, b"y") + block(4, op_type.encode()) + b"".join(block(5, a) for a in attributes)


def model(graph: bytes) -> bytes:
    """A ModelProto of IR version 10 and opset 21 around a GraphProto."""
    return number(1, 10) + block(8, block(1, b""), number(2, 21)) + block(7, graph)


def graph(*initializers: bytes, nodes: tuple[bytes, ...] = ()) -> bytes:
    """A GraphProto without inputs, with output `y` (uint8)."""
    shape = block(2, block(1, number(1, len(DATA))))
    value_type = block(2, block(1, number(1, 2), shape))
    return (
        b"".join(block(1, n) for n in nodes or (node(),))
        + block(2, b"tiny")
        + b"".join(block(5, i) for i in initializers)
        + block(12, block(1, b"y"), value_type)
    )


def tiny_model() -> bytes:
    """A whole model: one external initializer, handed out unchanged."""
    return model(graph(external_tensor()))


def tiny_card(name: str = "tiny", *, chat: bool = True) -> Card:
    """A card with every field filled."""
    return Card(
        format=1,
        name=name,
        version="1",
        summary="A package for tests",
        architecture="llama",
        parameters=Parameters(
            total=100,
            embedding=60,
            effective=40,
            parts=ParameterParts(embedding=60, attention=15, feed_forward=20, norms=5),
        ),
        quantization=Quantization(scheme="q8", bits=8, block_size=32, description="8 bits, blocks of 32"),
        context_length=64,
        vocabulary_size=256,
        tokens=Tokens(bos=None, add_bos=False, stop=(0,)),
        chat=chat,
        generation=Generation(temperature=0.7, top_p=1, top_k=0, min_p=0.0, repetition_penalty=1.0, max_tokens=16),
        licence=Licence(id="Apache-2.0", name="Apache License 2.0", terms=None, accepted=False),
        provenance=Provenance(
            recipe="tiny.yaml",
            recipe_sha256="1" * 64,
            sources=(Source(package="tiny", version="1", file="tiny.gguf", size_bytes=1, sha256="2" * 64),),
            source_sha256="2" * 64,
            builder="skerry 0.1.0",
        ),
        figures=Figures(
            text="evaluation.txt",
            text_sha256="3" * 64,
            tokens=512,
            perplexity=18.5,
            reference_perplexity=18.4,
            kl_divergence=0.004,
            top1_agreement=0.97,
        ),
    )


def make_tiny_package(directory: Path, name: str = "tiny", key: PrivateKey | None = None, *, chat: bool = True) -> Path:
    """Write a package.

    Args:
        directory: where the package's folder is made.
        name: of the folder and in the card.
        key: signs it; none leaves it unsigned.
        chat: whether it has a chat template.
    Returns:
        The package's folder.
    """
    package = directory / name
    package.mkdir(mode=0o755)
    # Legal names only, in tests that need a folder of another name it is renamed afterwards.
    files = {
        "model.onnx": tiny_model(),
        "model.onnx.data": DATA,
        "tokenizer.json": json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}).encode(),
        "card.yaml": dump(tiny_card(name, chat=chat)),
    }
    if chat:
        files["chat_template.jinja"] = b"{% for m in messages %}{{ m.content }}{% endfor %}"
    for file, data in files.items():
        write(package / file, data)
    if key is not None:
        sign_package(package, key)
    return package


def write(path: Path, data: bytes) -> None:
    """Write a file with a mode that does not depend on the umask."""
    path.write_bytes(data)
    path.chmod(0o644)


def with_card(package: Path, **changes: object) -> None:
    """Replace fields of a package's card, without signing again."""
    card = tiny_card(package.name)
    write(package / "card.yaml", dump(msgspec.structs.replace(card, **changes)))
