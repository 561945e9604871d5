"""From a recipe to a model package: take the weights, write graph, tokenizer and card, measure, publish.

    build(recipe, Path("packages"), weights=None, quantization=None, accept_licence=False)

gives the path of `packages/<recipe>-<quantization>`, unsigned; `skerry model sign` comes next. The package appears
whole or not at all. The same source and recipe give the same bytes.

What this does NOT do: sign, and judge the weights. It builds what the recipe pins or what the operator brings.
"""

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import tokenizers

from appliance import __version__
from appliance.engine.session import Session
from appliance.errors import BuildError, LicenceNotAccepted
from appliance.files import Progress, no_progress, publish_directory, read_limited
from appliance.forge import evaluate as measuring
from appliance.forge import gemma3, lfm2, llama, qwen3, source
from appliance.forge.evaluate import portion
from appliance.forge.graph import Graph
from appliance.forge.layers import Layers
from appliance.forge.quantize import BITS, DESCRIPTIONS, SCHEMES, Scheme
from appliance.forge.recipe import Recipe
from appliance.forge.smooth import smooth
from appliance.forge.tokenizer import make_tokenizer
from appliance.forge.weights import BLOCK, Weights, open_weights
from appliance.models import card as cards
from appliance.models.package import (
    CARD_FILE,
    SIGNATURE_FILE,
    TEMPLATE_FILE,
    TOKENIZER_FILE,
    open_verified,
    sign_package,
)
from appliance.trust import keys

ARCHITECTURES: dict[str, ModuleType] = {"llama": llama, "gemma3": gemma3, "qwen3": qwen3, "lfm2": lfm2}
_MAX_TEXT_BYTES = 1 << 20


@dataclass(frozen=True)
class Material:
    """Everything that the packages of one model have in common, whatever their quantization."""

    recipe: Recipe
    weights: Weights
    tokenizer: bytes
    template: str | None
    tokens: cards.Tokens
    provenance: cards.Provenance
    licence_accepted: bool


def build(
    recipe: Recipe,
    out: Path,
    *,
    weights: Path | None = None,
    quantization: str | None = None,
    accept_licence: bool = False,
    evaluate: bool = True,
    force: bool = False,
    progress: Progress = no_progress,
) -> Path:
    """Build one model package, without a signature.

    Args:
        recipe: what to build.
        out: folder to put the package into.
        weights: a .gguf file or a folder of safetensors to use instead of the pinned source.
        quantization: instead of the recipe's.
        accept_licence: the operator accepts the weights' terms.
        evaluate: compare with the float32 reference, and write the figures to the card.
        force: replace an existing package.
    Raises:
        BuildError: and its kinds WrongSource, LicenceNotAccepted; nothing is left behind.
        FileProblem: the package exists, or cannot be written.
    """
    scheme = choose_scheme(recipe, quantization)
    name = f"{recipe.name}-{scheme}"
    text = _evaluation_text(recipe) if evaluate else None
    check_licence(recipe, accepted=accept_licence)
    with (
        publish_directory(out / name, replace=force) as work,
        opened(recipe, weights, accept_licence, progress) as material,
    ):
        package = work / "package" / name
        card = write_package(material, scheme, package, portion(progress, 0.3, 0.6))
        if text is not None:
            with measured_session(package) as session:
                figures = measuring.evaluate(session, material.weights, text, progress=portion(progress, 0.6, 1.0))
            (package / CARD_FILE).write_bytes(cards.dump(_with_figures(card, figures)))
        for file in package.iterdir():
            file.rename(work / file.name)
        shutil.rmtree(work / "package")
    progress(f"built {name}", 1.0)
    return out / name


def choose_scheme(recipe: Recipe, quantization: str | None) -> Scheme:
    """Check the operator's choice, or take the recipe's.

    Raises:
        BuildError: there is no such scheme.
    """
    wanted = quantization or recipe.quantization
    for scheme in SCHEMES:
        if scheme == wanted:
            return scheme
    raise BuildError(f"cannot quantize to {wanted!r:.40}: expected one of {', '.join(SCHEMES)}")


def check_licence(recipe: Recipe, *, accepted: bool) -> None:
    """Stop before anything is fetched if the terms need an acceptance that was not given.

    Raises:
        LicenceNotAccepted: it is missing.
    """
    if recipe.licence.must_accept and not accepted:
        where = f" ({recipe.licence.terms})" if recipe.licence.terms else ""
        raise LicenceNotAccepted(
            f"cannot build {recipe.name}: its weights are under {recipe.licence.name}, which you have not accepted",
            hint=f"read the terms{where} and pass --accept-licence",
        )


@contextlib.contextmanager
def opened(
    recipe: Recipe, weights: Path | None, accept_licence: bool, progress: Progress = no_progress
) -> Iterator[Material]:
    """Fetch and check the source, and make what every quantization of it shares.

    Raises:
        BuildError: the source is damaged, wrong, or not what the recipe says.
    """
    path = weights or source.fetch(source.pinned(recipe), portion(progress, 0.0, 0.2))
    with open_weights(path) as w:
        _check_weights(w, recipe)
        progress("hashing the weights", 0.2)
        provenance = _provenance(recipe, w)
        progress("making the tokenizer", 0.25)
        tokenizer = make_tokenizer(w.tokenizer)
        tokens = _named_tokens(recipe, tokenizer, w.shapes["token_embd.weight"][0])
        if recipe.chat and not w.tokenizer.chat_template:
            raise BuildError(
                f"cannot build {recipe.name}: {path.name} has no chat template, expected one",
                hint="set chat: false in the recipe, or add chat_template.jinja to the folder of safetensors",
            )
        template = w.tokenizer.chat_template if recipe.chat else None
        yield Material(recipe, w, tokenizer, template, tokens, provenance, accept_licence)


def write_package(material: Material, scheme: Scheme, directory: Path, progress: Progress = no_progress) -> cards.Card:
    """Write an unsigned package without figures; the directory's name becomes the model's.

    Raises:
        BuildError: the matrices cannot be cut into blocks, or hold nothing that the scheme keeps.
        FileProblem: the disk refuses.
    """
    h = material.weights.hyperparameters
    for what, width in (("hidden", h.hidden), ("feed_forward", h.feed_forward), ("heads", h.heads * h.head_dim)):
        if scheme != "f32" and width % BLOCK:
            raise BuildError(
                f"cannot quantize {material.recipe.name}: {what} is {width} wide, expected a multiple of {BLOCK}",
                hint="build it with --quantization f32",
            )
    directory.mkdir(parents=True)
    with Graph(directory) as graph:
        weights = material.weights
        if scheme == "w8a8":
            weights, progress = smooth(weights, portion(progress, 0.0, 0.5)), portion(progress, 0.5, 1.0)
        layers = Layers(graph, weights, scheme, material.recipe.context_length, progress)
        ARCHITECTURES[h.architecture].write(layers)
    if scheme == "q4x" and not layers.exact:
        raise BuildError(
            f"cannot quantize {material.recipe.name} to q4x: {material.weights.path.name} holds no 4-bit numbers, "
            "expected a GGUF of Q4_0, Q4_1 or Q4_K",
            hint="build it with --quantization q8",
        )
    (directory / TOKENIZER_FILE).write_bytes(material.tokenizer)
    if material.template is not None:
        (directory / TEMPLATE_FILE).write_text(material.template, encoding="utf-8", newline="")
    card = _card(material, scheme, directory.name)
    (directory / CARD_FILE).write_bytes(cards.dump(card))
    return card


@contextlib.contextmanager
def measured_session(directory: Path) -> Iterator[Session]:
    """Open a package that was just built: signed with a key that nobody keeps, so that the engine takes it."""
    key = keys.generate()
    sign_package(directory, key)
    try:
        with Session(open_verified(directory, keys.KeySet.of(key.public()))) as session:
            yield session
    finally:
        (directory / SIGNATURE_FILE).unlink()


def _evaluation_text(recipe: Recipe) -> measuring.Text:
    path = recipe.evaluation_path
    return measuring.Text(path.name, read_limited(path, _MAX_TEXT_BYTES))


def _check_weights(weights: Weights, recipe: Recipe) -> None:
    """Every tensor that the architecture knows, of its shape, and no other."""
    h, name = weights.hyperparameters, weights.path.name
    if h.architecture != recipe.architecture:
        raise BuildError(
            f"cannot build {recipe.name} from {name}: it is {h.architecture}, expected {recipe.architecture}"
        )
    if recipe.context_length > h.context_length:
        raise BuildError(
            f"cannot build {recipe.name}: its context is {recipe.context_length} tokens, "
            f"expected at most {h.context_length}, which {name} is good for"
        )
    table = weights.shapes.get("token_embd.weight")
    if table is None or len(table) != 2:
        raise BuildError(f"cannot build {recipe.name} from {name}: it has no embedding table")
    known = ARCHITECTURES[h.architecture].tensor_shapes(h, table[0])
    optional = ARCHITECTURES[h.architecture].optional_shapes(h, table[0])
    missing = [n for n in known if n not in weights.shapes]
    unknown = [n for n in weights.shapes if n not in known and n not in optional]
    if missing or unknown:
        what, names = ("lacks", missing) if missing else ("has unknown", unknown)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise BuildError(
            f"cannot build {recipe.name} from {name}: it {what} tensors: {', '.join(names[:3])}{more}",
            hint=f"this is not the {h.architecture} architecture as Skerry knows it",
        )
    for tensor, shape in weights.shapes.items():
        expected = known.get(tensor) or optional[tensor]
        if shape != expected:
            raise BuildError(f"cannot build {recipe.name}: {tensor} has the shape {shape}, expected {expected}")


def _provenance(recipe: Recipe, weights: Weights) -> cards.Provenance:
    """Say which files were read; the operator's own are named without a package."""
    digests = {file.name: source.digest(file) for file in weights.files}
    if recipe.source is not None and list(digests.values()) == [recipe.source.sha256]:
        sources = tuple(
            cards.Source(package=p.package, version=p.version, file=p.file, size_bytes=p.size_bytes, sha256=p.sha256)
            for p in recipe.source.pieces
        )
    else:
        sources = tuple(
            cards.Source(package=None, version=None, file=f.name, size_bytes=f.stat().st_size, sha256=digests[f.name])
            for f in weights.files
        )
    # One file: its own digest. Several: the digest of the lines that sha256sum prints for them, in this order.
    lines = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    whole = next(iter(digests.values())) if len(digests) == 1 else hashlib.sha256(lines.encode()).hexdigest()
    return cards.Provenance(
        recipe=Path(recipe.path).name,
        recipe_sha256=recipe.sha256,
        sources=sources,
        source_sha256=whole,
        builder=f"skerry {__version__}",
    )


def _named_tokens(recipe: Recipe, tokenizer: bytes, vocabulary: int) -> cards.Tokens:
    """Find the recipe's tokens in the tokenizer, and check that the embedding has a row for every token."""
    ids = tokenizers.Tokenizer.from_str(tokenizer.decode()).get_vocab(with_added_tokens=True)
    if (highest := max(ids.values(), default=-1)) >= vocabulary:
        raise BuildError(f"cannot build {recipe.name}: token {highest} has no row in the embedding of {vocabulary}")
    named = (*recipe.tokens.stop, *([recipe.tokens.bos] if recipe.tokens.bos is not None else []))
    if unknown := [t for t in named if t not in ids]:
        raise BuildError(
            f"cannot build {recipe.name}: the tokenizer has no token {unknown[0]!r}, which the recipe names"
        )
    return cards.Tokens(
        bos=None if recipe.tokens.bos is None else ids[recipe.tokens.bos],
        add_bos=recipe.tokens.add_bos,
        stop=tuple(ids[t] for t in recipe.tokens.stop),
    )


def _card(material: Material, scheme: Scheme, name: str) -> cards.Card:
    recipe, shapes = material.recipe, material.weights.shapes
    return cards.Card(
        format=1,
        name=name,
        version=recipe.version,
        summary=recipe.summary,
        architecture=recipe.architecture,
        parameters=count_parameters(material.weights),
        quantization=cards.Quantization(
            scheme=scheme,
            bits=BITS[scheme],
            block_size=0 if scheme in ("f32", "w8a8") else BLOCK,
            description=DESCRIPTIONS[scheme],
        ),
        context_length=recipe.context_length,
        vocabulary_size=shapes["token_embd.weight"][0],
        tokens=material.tokens,
        chat=material.template is not None,
        generation=recipe.generation,
        licence=cards.Licence(
            id=recipe.licence.id,
            name=recipe.licence.name,
            terms=recipe.licence.terms,
            accepted=material.licence_accepted or not recipe.licence.must_accept,
        ),
        provenance=material.provenance,
        figures=None,
    )


def count_parameters(weights: Weights) -> cards.Parameters:
    """Count every tensor of the source once; a tied head is the embedding and not counted again."""
    counts = {"embedding": 0, "attention": 0, "feed_forward": 0, "norms": 0}
    for name, shape in weights.shapes.items():
        size = 1
        for n in shape:
            size *= n
        if name.endswith("_norm.weight"):
            counts["norms"] += size
        elif ".attn_" in name or ".shortconv." in name:  # a convolution stands where other layers attend
            counts["attention"] += size
        elif ".ffn_" in name:
            counts["feed_forward"] += size
        else:
            counts["embedding"] += size
    total = sum(counts.values())
    return cards.Parameters(
        total=total,
        embedding=counts["embedding"],
        effective=total - counts["embedding"],
        parts=cards.ParameterParts(**counts),
    )


def _with_figures(card: cards.Card, figures: cards.Figures) -> cards.Card:
    fields = {name: getattr(card, name) for name in card.__struct_fields__}
    return cards.Card(**(fields | {"figures": figures}))
