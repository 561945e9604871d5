"""What is compared: our packages of a recipe, and the peer's files made from the very weights that the recipe pins."""

import hashlib
import itertools
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.errors import VerificationFailed
from appliance.files import Progress, no_progress
from appliance.forge import source
from appliance.forge.build import build
from appliance.forge.recipe import Recipe
from appliance.models.package import SIGNATURE_FILE, VerifiedModel, open_verified, sign_package
from appliance.trust.keys import KeySet, PrivateKey, generate
from bench.pipe import Side

PEER_TYPES = ("Q8_0", "Q4_0")
"""Made by llama.cpp from the source: its usual 8 bits, and its fastest and lossy 4 bits."""


@dataclass(frozen=True)
class Form:
    """One thing to measure: which interpreter, which side, and how it opens the model."""

    engine: str
    name: str
    python: Path
    arguments: dict[str, Any] = field(hash=False)
    default: bool = False
    source: bool = False

    @property
    def module(self) -> str:
        """The side that runs it."""
        return "bench.skerry_side" if self.engine == "Skerry" else "bench.llama_side"

    @property
    def label(self) -> str:
        """Engine and form, for people."""
        return f"{self.engine} {self.name}"


def open_package(form: Form) -> VerifiedModel:
    """Verify and open one of our packages, as the daemon would."""
    return open_verified(Path(form.arguments["path"]), KeySet.from_directory(Path(form.arguments["keys"])))


def throwaway_key(folder: Path) -> PrivateKey:
    """Make the key that measured packages are signed with; it is good for nothing else, and trusted nowhere else."""
    private, public = folder / "bench.key", folder / "keys" / "bench.pub"
    if private.exists() and public.exists():
        return PrivateKey.load(private)
    for path in (private, public):
        path.unlink(missing_ok=True)
    public.parent.mkdir(parents=True, exist_ok=True)
    public.parent.chmod(0o755)
    key = generate()
    key.save(private)
    key.public().save(public)
    return key


def our_forms(
    recipe: Recipe,
    schemes: list[str],
    folder: Path,
    *,
    accept_licence: bool = False,
    progress: Progress = no_progress,
) -> list[Form]:
    """Build what is missing of our packages, sign them with the throw-away key, and describe them.

    Args:
        recipe: of the model.
        schemes: quantizations beside the recipe's own.
        folder: everything of the benchmark's is kept there, and it is made if it is missing; no other package is
            touched, and none is ever deleted: another run may be measuring it. `make clean` does that.
        accept_licence: whether the operator accepted the weights' terms.
        progress: told about the build.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    key = throwaway_key(folder)
    forms = []
    for scheme in dict.fromkeys([str(recipe.quantization), *schemes]):
        package = signed_package(
            recipe, scheme, folder / "models", key, accept_licence=accept_licence, progress=progress
        )
        arguments = {"path": str(package), "keys": str(folder / "keys")}
        forms.append(Form("Skerry", scheme, Path(sys.executable), arguments, default=scheme == recipe.quantization))
    return forms


def signed_package(
    recipe: Recipe,
    scheme: str,
    folder: Path,
    key: PrivateKey,
    *,
    weights: Path | None = None,
    accept_licence: bool = False,
    progress: Progress = no_progress,
) -> Path:
    """Build one package below `folder`, unless this builder has built it there already, and sign it."""
    package = folder / _builder_hash(recipe) / f"{recipe.name}-{scheme}"
    if not (package / SIGNATURE_FILE).exists():
        build(
            recipe,
            package.parent,
            weights=weights,
            quantization=scheme,
            accept_licence=accept_licence,
            evaluate=False,
            force=True,
            progress=progress,
        )
    _ensure_signed(package, key)
    return package


def _ensure_signed(package: Path, key: PrivateKey) -> None:
    """Sign a package unless the key has signed it already: another run may be loading it."""
    try:
        open_verified(package, KeySet.of(key.public())).close()
    except VerificationFailed:
        sign_package(package, key)


def _builder_hash(recipe: Recipe) -> str:
    """Tell builds apart by what makes them, so that a change of the forge is never measured on yesterday's package."""
    hasher = hashlib.sha256(recipe.sha256.encode())
    for path in sorted(Path(source.__file__).parent.glob("*.py")):
        hasher.update(path.read_bytes())
    return hasher.hexdigest()[:12]


def type_of(file: str) -> str:
    """Name the quantization that a GGUF's file name ends with: Q4_1, Q4_K_M; the whole stem if it names none."""
    found = re.search(r"[.-]((?:i?q\d|bf16|f16|f32)\w*)\.gguf$", file, re.IGNORECASE)
    return found[1].upper() if found else Path(file).stem


def peer_file(recipe: Recipe, folder: Path, kind: str) -> Path:
    """Where a GGUF of another type lies. The name carries the source's hash: another source, another file."""
    return folder / "gguf" / f"{recipe.name}-{source.pinned(recipe).sha256[:12]}.{kind}.gguf"


def peer_forms(recipe: Recipe, folder: Path, python: Path, progress: Progress) -> list[Form]:
    """Give llama.cpp the pinned weights, as they are and as it converts them, with flash attention off and on."""
    pinned = source.pinned(recipe)
    published = source.fetch(pinned, progress)
    files = {type_of(pinned.file): published}
    with Side(python, "bench.llama_side") as side:
        for kind in PEER_TYPES:
            target = peer_file(recipe, folder, kind)
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                progress(f"llama.cpp makes {kind}", 0.0)
                side.ask("quantize", source=str(published), target=str(target), form=kind, threads=2)
            files[kind] = target
    return [
        Form(
            "llama.cpp",
            kind + (" flash" if flash else ""),
            python,
            {"path": str(path), "flash": flash},
            source=path == published,
        )
        for (kind, path), flash in itertools.product(files.items(), (False, True))
    ]
