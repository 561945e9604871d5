"""`skerry receipt`: signed receipts of what a provisioning left behind."""

import datetime
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli.box import Box, JsonOption, PassphraseOption, box
from appliance.cli.output import emit, emit_json, fields, note, number
from appliance.errors import InvalidRequest

if TYPE_CHECKING:
    from appliance.receipt.statement import Receipt
    from appliance.trust.keys import PrivateKey

app = typer.Typer(no_args_is_help=True, help="Write, verify and show signed receipts of a provisioning.")

RECEIPTS = Path("/var/lib/skerry/receipts")
CREDENTIAL = "receipt-key"

FolderOption = Annotated[
    Path | None, typer.Option("--folder", metavar="DIR", help="The receipts; default: the box's own.")
]
ReceiptArgument = Annotated[
    str | None,
    typer.Argument(metavar="FILE|NAME", help="A file, or the name of one of the box's; default: the newest."),
]


@app.command()
def write(
    ctx: typer.Context,
    folder: FolderOption = None,
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The box's private key; default: the credential receipt-key.")
    ] = None,
    passphrase_file: PassphraseOption = None,
    kit: Annotated[Path | None, typer.Option(metavar="DIR", help="The kit that was installed.")] = None,
    files: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What `skerry receipt files` printed, if root must read them.")
    ] = None,
    exposure: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What systemd-analyze security printed of our units.")
    ] = None,
    lynis: Annotated[Path | None, typer.Option(metavar="FILE", help="Lynis' lynis-report.dat.")] = None,
    oscap: Annotated[Path | None, typer.Option(metavar="FILE", help="Results of oscap, XCCDF or ARF.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Sign what this box is now: versions, digests of settings, models, scores.

    Writes nothing, and says so, if the newest receipt says the same.
    """
    from appliance.receipt import facts
    from appliance.receipt import folder as receipts

    private = _key(key, passphrase_file)
    state = facts.collect(box(ctx).config(), facts.Given(kit, files, exposure, lynis, oscap))
    done = receipts.write(_folder(ctx, folder), state, private, datetime.datetime.now(datetime.UTC))
    if as_json:
        emit_json({"changed": done.changed, "path": str(done.path), "key_id": done.key_id, "state": state.digest()})
    else:
        emit("\n".join(fields([("written" if done.changed else "unchanged", str(done.path))])))


@app.command()
def files() -> None:
    """Print the digests of this box's settings as JSON, for `write --files`.

    Root reads them; who signs needs no right to.
    """
    from appliance.receipt import facts

    emit_json(facts.settings())


@app.command()
def verify(
    ctx: typer.Context,
    receipt: ReceiptArgument = None,
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The box's public key; default: box.pub beside the receipt.")
    ] = None,
    folder: FolderOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify a receipt's signature. Exit code 5 if it is not right.

    A key from beside the receipt proves little: bring it from elsewhere.
    """
    from appliance.receipt import statement
    from appliance.receipt.folder import PUBLIC_KEY
    from appliance.trust.keys import KeySet, PublicKey

    path = _path(ctx, receipt, folder)
    if key is None:
        note(f"note: checked with {PUBLIC_KEY} beside it, which whoever changes the one can change too; see --key")
    trusted = KeySet.of(PublicKey.load(key or path.parent / PUBLIC_KEY))
    found = statement.verify(_bytes(path), trusted)
    if as_json:
        emit_json({"verified": True, "path": str(path), "key_id": found.key_id, "predicate": found.predicate})
    else:
        emit("\n".join(fields([("verified", str(path)), ("key id", found.key_id), *_head(found)])))


@app.command()
def show(
    ctx: typer.Context, receipt: ReceiptArgument = None, folder: FolderOption = None, as_json: JsonOption = False
) -> None:
    """Show what a receipt says. Verifies nothing."""
    from appliance.receipt import statement

    path = _path(ctx, receipt, folder)
    found = statement.peek(_bytes(path))
    if as_json:
        emit_json({"verified": False, "path": str(path), "key_id": found.key_id, "predicate": found.predicate})
        return
    emit("\n".join(fields([("receipt", path.name), *_head(found), *_body(found)], 11)))
    emit()
    emit("signature: not checked by this command; to check: skerry receipt verify")


def _head(receipt: "Receipt") -> list[tuple[str, str]]:
    p = receipt.predicate
    return [
        ("number", f"{p.serial}, written {p.time}"),
        ("clock", p.clock),
        ("box", f"{p.state.box.hostname}, id {p.state.box.id or '-'}"),
        ("state", p.state.digest()),
    ]


def _body(receipt: "Receipt") -> list[tuple[str, str]]:
    state = receipt.predicate.state
    software, system = state.software, state.system
    rows = [
        ("skerry", f"{software.skerry}, {number(software.wheels.count)} wheels"),
        ("kit", software.kit_manifest or "-"),
        ("system", f"Debian {system.debian or '-'}, kernel {system.kernel}, systemd {system.systemd or '-'}"),
        ("packages", f"{number(system.debs.count)}, list {system.debs.sha256[:16]}" if system.debs else "-"),
        ("settings", f"{number(len(state.files))} files; --json lists them"),
        *(("model", f"{m.name}, digest {m.root_digest[:16]}, key {m.key_id[:16]}") for m in state.models),
        *(("exposure", f"{level:g} {unit}") for unit, level in state.exposure.items()),
    ]
    for scan in state.scans:
        counts = f", {scan.passed} passed, {scan.failed} failed" if scan.failed is not None else ""
        rows.append(("scan", f"{scan.tool} {scan.version or ''}".strip() + f": {scan.score:g}{counts}"))
    return rows


# --- where things are -------------------------------------------------------------------------------------------------


def _folder(ctx: typer.Context, folder: Path | None) -> Path:
    chosen: Box = box(ctx)
    return folder or (chosen.folder / "receipts" if chosen.folder else RECEIPTS)


def _path(ctx: typer.Context, receipt: str | None, folder: Path | None) -> Path:
    from appliance.receipt.folder import find

    if receipt is not None and ("/" in receipt or Path(receipt).exists()):
        return Path(receipt)
    return find(_folder(ctx, folder), receipt)


def _bytes(path: Path) -> bytes:
    from appliance.files import read_limited
    from appliance.trust.dsse import MAX_BYTES

    return read_limited(path, MAX_BYTES)


def _key(file: Path | None, passphrase_file: Path | None) -> "PrivateKey":
    """The box's key: from a file, or as the service manager hands it over."""
    from appliance.cli.key import load_private
    from appliance.trust.keys import PrivateKey

    if file is None:
        credentials = os.environ.get("CREDENTIALS_DIRECTORY")
        if not credentials:
            raise InvalidRequest(
                f"cannot write receipt: no --key, and no credential {CREDENTIAL} from the service manager",
                hint="make a key: skerry key new receipt --out DIR",
            )
        return PrivateKey.load(Path(credentials, CREDENTIAL), credential=True)
    return load_private(file, passphrase_file)
