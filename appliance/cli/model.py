"""`skerry model`: build, measure, sign, verify and look at model packages; load and unload them on a box."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli.box import JsonOption, ModelArgument, PassphraseOption, box
from appliance.cli.output import bars, count, emit, emit_json, fields, note, number, progress, size, table
from appliance.errors import BuildError, DaemonUnreachable, InvalidRequest, MissingFile

if TYPE_CHECKING:
    from appliance.models.card import Card

app = typer.Typer(no_args_is_help=True, help="Build, sign, verify, load and look at models.")

PackageArgument = Annotated[Path, typer.Argument(metavar="PACKAGE", help="The folder of a model package.")]
RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, see the folder models/.")]
WeightsOption = Annotated[
    Path | None,
    typer.Option(metavar="PATH", help="Your own weights: a .gguf file, or a folder with safetensors."),
]
AcceptOption = Annotated[
    bool, typer.Option("--accept-licence", help="You have read the weights' terms and accept them.")
]


# --- station ----------------------------------------------------------------------------------------------------------


@app.command()
def build(
    recipe: RecipeArgument,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to put the package.")],
    weights: WeightsOption = None,
    quantization: Annotated[
        str | None, typer.Option(metavar="SCHEME", help="w8a8, q8, q4x or another; default: the recipe's.")
    ] = None,
    accept_licence: AcceptOption = False,
    no_evaluate: Annotated[bool, typer.Option("--no-evaluate", help="Skip measuring the quality.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a package that is there.")] = False,
) -> None:
    """Build a model package from a recipe (station). Prints the package's path."""
    with progress() as update:
        from appliance.forge import build as forge_build
        from appliance.forge import recipe as forge_recipe

        path = forge_build.build(
            forge_recipe.load(recipe),
            out,
            weights=weights,
            quantization=quantization,
            accept_licence=accept_licence,
            evaluate=not no_evaluate,
            force=force,
            progress=update,
        )
    emit(str(path))
    note(f"next: skerry model sign {path} --key FILE")


@app.command(short_help="Measure what quantizing costs (station).")
def evaluate(
    recipe: RecipeArgument,
    quantization: Annotated[
        list[str] | None,
        typer.Option("--quantization", metavar="SCHEME", help="w8a8, q8, q4x or another; repeatable; default: all."),
    ] = None,
    weights: WeightsOption = None,
    accept_licence: AcceptOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure what quantizing costs, against the float32 reference (station)."""
    found: list[tuple[Card, int]] = []
    with progress() as update, tempfile.TemporaryDirectory(prefix="skerry-evaluate-") as folder:
        from appliance.forge import build as forge_build
        from appliance.forge import recipe as forge_recipe
        from appliance.forge.quantize import SCHEMES

        for scheme in quantization or [s for s in SCHEMES if s != "f32"]:
            try:
                package = forge_build.build(
                    forge_recipe.load(recipe),
                    Path(folder),
                    weights=weights,
                    quantization=scheme,
                    accept_licence=accept_licence,
                    progress=update,
                )
            except BuildError as e:
                if quantization or scheme != "q4x":  # the one scheme that not every source allows
                    raise
                note(e.message)
                continue
            found.append((_read_card(package), sum(f.stat().st_size for f in package.iterdir())))
    if as_json:
        emit_json([{"quantization": c.quantization, "size_bytes": n, "figures": c.figures} for c, n in found])
        return
    emit("\n".join(_figures_table(found)))


def _figures_table(found: "list[tuple[Card, int]]") -> list[str]:
    rows, basis = [], None
    for card, size_bytes in found:
        f = basis = card.figures
        if f is None:
            continue
        change = 100 * (f.perplexity / f.reference_perplexity - 1)
        rows.append(
            [
                card.quantization.scheme,
                size(size_bytes),
                f"{f.perplexity:.3f}",
                f"{change:+.2f}%",
                f"{f.kl_divergence:.4f}",
                f"{100 * f.top1_agreement:.1f}%",
            ]
        )
    head = ["BITS", "SIZE", "PERPLEXITY", "CHANGE", "KL", "SAME TOP TOKEN"]
    lines = table(head, rows, right=head[1:])
    if basis:
        lines += [
            "",
            f"reference (float32) perplexity {basis.reference_perplexity:.3f}, on {number(basis.tokens)} tokens",
        ]
        lines += [f"of {basis.text}"]
    return lines


@app.command()
def sign(
    package: PackageArgument,
    key: Annotated[Path, typer.Option(metavar="FILE", help="The private key, see `skerry key new`.")],
    passphrase_file: PassphraseOption = None,
) -> None:
    """Sign a package: all of its files, by their digests. Signing again replaces the signature."""
    from appliance.cli.key import load_private
    from appliance.models.package import sign_package

    private = load_private(key, passphrase_file)
    sign_package(package, private)
    emit("\n".join(fields([("signed", str(package)), ("key id", private.public().key_id)])))


# --- packages ---------------------------------------------------------------------------------------------------------


@app.command()
def verify(
    ctx: typer.Context,
    package: Annotated[str, typer.Argument(metavar="PACKAGE|NAME", help="A package's folder, or an installed model.")],
    keys: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Trusted keys, *.pub; default: the box's key directory.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Verify a package: signature, every file's digest, nothing added.

    A folder is verified here. A NAME is verified by the daemon, as at every load.
    """
    folder = Path(package)
    if folder.is_file():
        raise InvalidRequest(
            f"cannot verify {package}: a file, expected a package's folder, or an installed model's name",
            hint=f"the signature covers the whole folder: skerry model verify {folder.absolute().parent}",
        )
    if keys is None and not folder.is_dir() and "/" not in package:
        with box(ctx).client() as client:
            found = client.verify(package)
        name, key_id, digest, total = found.name, found.key_id or "-", found.root_digest or "-", found.size_bytes
    else:
        from appliance.models.package import open_verified
        from appliance.trust.keys import KeySet

        trusted = KeySet.from_directory(keys or Path(box(ctx).config().keys_dir))
        with progress() as update, open_verified(folder, trusted, update) as model:
            name, key_id, digest, total = model.name, model.key_id, model.root_digest, model.size_bytes
    if as_json:
        emit_json({"name": name, "verified": True, "key_id": key_id, "root_digest": digest, "size_bytes": total})
    else:
        rows = [("verified", name), ("size", size(total)), ("key id", key_id), ("digest", digest)]
        emit("\n".join(fields(rows)))


@app.command(short_help="Copy signed packages into the box's models directory.")
def install(
    ctx: typer.Context,
    packages: Annotated[list[Path], typer.Argument(metavar="PACKAGE...", help="Folders of signed model packages.")],
    keys: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Trusted keys, *.pub; default: the box's key directory.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Verify and compare, write nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Copy packages into the box's models directory, each only if a trusted key signed all of it.

    What is there with the same content stays untouched. A model in memory is the older one until it is loaded again.
    """
    from appliance.models.install import install as install_package
    from appliance.models.store import Store
    from appliance.trust.keys import KeySet

    config = box(ctx).config()
    trusted, store, done = KeySet.from_directory(keys or Path(config.keys_dir)), Store(Path(config.models_dir)), []
    for package in packages:
        with progress() as update:
            done.append(install_package(package, store, trusted, dry_run=dry_run, progress=update))
        word = ("would install" if dry_run else "installed") if done[-1].changed else "unchanged"
        if not as_json:
            emit("\n".join(fields([(word, done[-1].name), ("digest", done[-1].root_digest)], 13)))
    if as_json:
        emit_json({"models": done})


@app.command()
def inspect(
    ctx: typer.Context,
    package: Annotated[str, typer.Argument(metavar="PACKAGE|NAME", help="A package's folder, or an installed model.")],
    as_json: JsonOption = False,
) -> None:
    """Show a package's card, and its parameters as a picture. Verifies nothing."""
    folder = Path(package)
    if not folder.is_dir() and "/" not in package:
        from appliance.models.store import Store

        folder = Store(Path(box(ctx).config().models_dir)).path(package)
    card = _read_card(folder)
    signed = (folder / "model.sig").is_file()
    files = {f.name: f.lstat().st_size for f in sorted(folder.iterdir())}
    if as_json:
        emit_json({"card": card, "signed": signed, "verified": False, "files": files})
        return
    emit("\n".join(_card_lines(card, sum(files.values()))))
    emit()
    emit("\n".join(_parameter_lines(card)))
    emit()
    if signed:
        emit("signature: there, not checked by this command; to check: skerry model verify")
    else:
        emit("signature: NONE; no box will load this package; see: skerry model sign")


def _read_card(folder: Path) -> "Card":
    from appliance.files import read_limited
    from appliance.models.card import parse

    path = folder / "card.yaml"
    if not path.is_file():  # a FIFO would block for ever
        raise MissingFile(f"cannot read {path}: no such file, expected the card of a model package")
    return parse(read_limited(path, 1 << 20))


def _card_lines(card: "Card", size_bytes: int) -> list[str]:
    q, g, lic = card.quantization, card.generation, card.licence
    licence = lic.name if lic.id in lic.name else f"{lic.name} ({lic.id})"
    if lic.terms:
        licence += f", {'accepted' if lic.accepted else 'NOT accepted'} when it was built: {lic.terms}"
    rows = [
        ("model", f"{card.name}, version {card.version}"),
        ("summary", card.summary),
        ("architecture", f"{card.architecture}, {'can chat' if card.chat else 'base model, cannot chat'}"),
        ("quantization", f"{q.scheme}: {q.description}"),
        ("context", f"{number(card.context_length)} tokens"),
        ("vocabulary", f"{number(card.vocabulary_size)} tokens"),
        ("size", size(size_bytes)),
        (
            "defaults",
            f"temperature {g.temperature:g}, top-p {g.top_p:g}, top-k {g.top_k}, min-p {g.min_p:g}, "
            f"repetition {g.repetition_penalty:g}, {g.max_tokens} tokens",
        ),
        ("licence", licence),
        ("built by", f"{card.provenance.builder}, recipe {card.provenance.recipe}"),
        *(("source", f"{_origin(s)} {s.file}, {size(s.size_bytes)}") for s in card.provenance.sources),
    ]
    f = card.figures
    if f:
        change = 100 * (f.perplexity / f.reference_perplexity - 1)
        rows.append(
            (
                "quality",
                f"perplexity {f.perplexity:.3f}, float32 {f.reference_perplexity:.3f} ({change:+.2f}%); "
                f"same top token {100 * f.top1_agreement:.1f}%; KL {f.kl_divergence:.4f}; on {number(f.tokens)} tokens",
            )
        )
    else:
        rows.append(("quality", "not measured"))
    return fields(rows)


def _origin(source: Any) -> str:
    return f"{source.package} {source.version or ''}".strip() + ":" if source.package else "own file:"


def _parameter_lines(card: "Card") -> list[str]:
    p = card.parameters
    parts = [
        ("embedding", p.parts.embedding),
        ("attention", p.parts.attention),
        ("feed forward", p.parts.feed_forward),
        ("norms", p.parts.norms),
    ]
    return [
        f"parameters: {count(p.total)}, of which {100 * p.embedding_share:.1f}% are the embedding table "
        f"({count(p.effective)} compute)",
        *bars([(label, n / p.total, count(n)) for label, n in parts]),
    ]


# --- box --------------------------------------------------------------------------------------------------------------


@app.command(name="list")
def list_models(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """List installed models. Without a daemon: what lies in the models directory."""
    from appliance.cli.status import models_table
    from appliance.client import ModelInfo

    try:
        with box(ctx).client() as client:
            models = client.models()
    except DaemonUnreachable as e:
        from appliance.models.store import Store

        names = Store(Path(box(ctx).config().models_dir)).names()
        if not names:
            raise
        note(f"note: {e.message}")
        note("note: this is what lies in the models directory, unverified")
        models = tuple(ModelInfo(name=name) for name in names)
    if as_json:
        emit_json({"models": models})
    else:
        emit("\n".join(models_table(models)))


@app.command()
def load(ctx: typer.Context, name: ModelArgument) -> None:
    """Have the daemon verify a model and load it."""
    with box(ctx).client() as client:
        found = client.load(name)
    took = f" in {found.load_s:.2f} s" if found.load_s is not None else ""
    emit(f"{found.name}: {found.state}{took}")


@app.command()
def unload(ctx: typer.Context, name: ModelArgument) -> None:
    """Have the daemon take a model out of memory."""
    with box(ctx).client() as client:
        found = client.unload(name)
    emit(f"{found.name}: {found.state}")
