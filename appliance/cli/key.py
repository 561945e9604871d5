"""`skerry key`: make signing keys and look at keys."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli.box import JsonOption, PassphraseOption
from appliance.cli.output import emit, emit_json, fields, note
from appliance.errors import FileProblem, InvalidRequest

if TYPE_CHECKING:
    from appliance.trust.keys import PrivateKey

app = typer.Typer(no_args_is_help=True, help="Make signing keys, look at keys.")


@app.command(short_help="Make a key pair.")
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Names the files: NAME.key and NAME.pub.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write them; made if missing.")] = Path(),
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key pair: NAME.key signs and stays on the station, NAME.pub goes to the boxes.

    A box trusts a key when its .pub file lies in the box's key directory.
    """
    from appliance.trust.keys import generate

    if name != Path(name).name or name.startswith(".") or not name:
        raise InvalidRequest(f"cannot make key {name!r}: expected a plain name, without a path", hint="use --out DIR")
    private, public = out / f"{name}.key", out / f"{name}.pub"
    if public.exists():
        raise FileProblem(f"cannot write key {public}: it exists", hint="choose another name")
    passphrase = read_passphrase(passphrase_file)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise FileProblem(f"cannot make folder {out}: {e.strerror}", hint="check the path and its permissions") from e
    key = generate()
    key.save(private, passphrase)
    try:
        key.public().save(public)
    except BaseException:
        private.unlink()
        raise
    if as_json:
        emit_json({"key_id": key.public().key_id, "private": str(private), "public": str(public)})
    else:
        rows = [("key id", key.public().key_id), ("private", f"{private} (secret, keep a copy off-line)")]
        emit("\n".join(fields([*rows, ("public", f"{public} (for the boxes' key directory)")])))
    if passphrase is None:
        note("note: the private key is not encrypted; --passphrase-file would do that")


@app.command(short_help="Show the id of a key.")
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A private or a public key.")],
    passphrase_file: PassphraseOption = None,
    pem: Annotated[bool, typer.Option("--pem", help="Print the public key itself.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the id of a key, as signatures and `skerry model verify` name it."""
    from appliance.trust.keys import PublicKey

    is_private = b"PRIVATE KEY-----" in _peek(file)
    public = load_private(file, passphrase_file).public() if is_private else PublicKey.load(file)
    if as_json:
        emit_json({"key_id": public.key_id, "private": is_private, "curve": "P-256", "pem": public.pem.decode()})
    elif pem:
        emit(public.pem.decode().rstrip())
    else:
        half = "private key (with its public half)" if is_private else "public key"
        emit("\n".join(fields([("key id", public.key_id), ("kind", f"{half}, EC P-256")])))


def load_private(file: Path, passphrase_file: Path | None) -> "PrivateKey":
    """Load a signing key; asks for its passphrase if it has one, none is given and a person is there."""
    import sys

    from appliance.trust.keys import PrivateKey

    passphrase = read_passphrase(passphrase_file)
    if passphrase is None and b"ENCRYPTED" in _peek(file) and sys.stdin.isatty():
        import getpass

        passphrase = getpass.getpass(f"Passphrase of {file.name}: ").encode() or None
    return PrivateKey.load(file, passphrase)


def read_passphrase(file: Path | None) -> bytes | None:
    """Read a passphrase file's only line.

    Raises:
        InvalidRequest: it is empty or has more than one line.
        FileProblem: it cannot be read.
    """
    if file is None:
        return None
    from appliance.files import read_limited

    passphrase = read_limited(file, 4096).removesuffix(b"\n").removesuffix(b"\r")
    if not passphrase or b"\n" in passphrase:
        found = "several lines" if passphrase else "nothing"
        raise InvalidRequest(f"cannot use passphrase file {file}: it holds {found}, expected one line")
    return passphrase


def _peek(file: Path) -> bytes:
    from appliance.files import read_limited

    return read_limited(file, 16 * 1024)
