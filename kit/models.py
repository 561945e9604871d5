"""The kit's model packages: the operator's own, or SmolLM2 built here and signed with a key for development."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import appliance.forge
from appliance.errors import BuildError, FileProblem
from appliance.forge import build as forge
from appliance.forge import recipe as recipes
from appliance.models import card, package
from appliance.trust import keys
from kit.commands import say

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "models" / "smollm2-135m-instruct.yaml"


@dataclass(frozen=True)
class Models:
    """Folders of packages, each verified, and the public keys by which a box trusts them."""

    packages: tuple[Path, ...]
    keys: tuple[Path, ...]


def given(folder: Path, keys_folder: Path) -> Models:
    """The operator's packages.

    Raises:
        BuildError: the folder holds none.
        VerificationFailed: a package is not signed with one of the keys.
    """
    packages = tuple(sorted(p.parent for p in folder.glob("*/card.yaml")))
    if not packages:
        raise BuildError(
            f"cannot put models of {folder} on a kit: no model package there, expected folders with card.yaml"
        )
    return _verified(packages, keys_folder)


def development(station: Path, folder: Path, *, measure: bool) -> Models:
    """SmolLM2 from the weights that its recipe pins; not built again when neither recipe nor forge changed.

    Args:
        station: keeps the signing key, made if there is none.
        folder: keeps the package.
        measure: write figures of quality on the card; takes a minute.
    """
    key = _development_key(station)
    recipe = recipes.load(RECIPE)
    name = f"{recipe.name}-{recipe.quantization}"
    stamp, built_from = folder / f"{name}.built-from", f"{_digest_of_forge(recipe.sha256)} {key.public().key_id}\n"
    if not stamp.exists() or stamp.read_text() != built_from or (measure and not _is_measured(folder / name)):
        say(f"building the model {name}")
        forge.build(recipe, folder, evaluate=measure, force=True)
        package.sign_package(folder / name, key)
        stamp.write_text(built_from)
    return _verified((folder / name,), station / "keys")


def _development_key(station: Path) -> keys.PrivateKey:
    private = station / "model-development.key"
    if not private.exists():
        say(f"making a model key for development in {station}")
        key = keys.generate()
        (station / "keys").mkdir(mode=0o755, parents=True, exist_ok=True)
        key.public().save(station / "keys" / "model-development.pub")
        key.save(private)  # last: its presence says that both are there
    return keys.PrivateKey.load(private)


def _verified(packages: tuple[Path, ...], keys_folder: Path) -> Models:
    trusted = keys.KeySet.from_directory(keys_folder)
    for path in packages:
        with package.open_verified(path, trusted):
            pass
    found = tuple(sorted(keys_folder.glob("*.pub")))
    if not found:
        raise FileProblem(f"cannot put models on a kit: no *.pub in {keys_folder}")
    return Models(packages, found)


def _is_measured(path: Path) -> bool:
    return card.parse((path / "card.yaml").read_bytes()).figures is not None


def _digest_of_forge(recipe_sha256: str) -> str:
    hasher = hashlib.sha256(recipe_sha256.encode())
    forge_dir = Path(appliance.forge.__file__).parent
    for file in sorted([*forge_dir.glob("*.py"), Path(package.__file__), Path(card.__file__)]):
        hasher.update(file.read_bytes())
    return hasher.hexdigest()
