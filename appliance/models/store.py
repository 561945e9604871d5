"""The installed models of a box: one directory, one package in each folder, the folder's name is the model's.

Used as `Store(root).path(name)`, then `appliance.models.package.open_verified`. The store finds and removes; that a
package is there says nothing about whether it may be loaded.

What this does NOT protect against: only names are checked here, so that a request can never become a path elsewhere.
Who may write the directory is the file system's business.
"""

import os
import shutil
import tempfile
from pathlib import Path

from appliance.errors import FileProblem, ModelNotFound
from appliance.files import sync_directory
from appliance.models.card import is_legal_name


class Store:
    """The models directory.

    Args:
        root: the directory; it may be missing, which is the same as empty.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """Every folder with a legal name, sorted. Hidden folders (half-removed, half-installed) are left out.

        Raises:
            FileProblem: the directory exists and cannot be read.
        """
        try:
            with os.scandir(self.root) as entries:
                return sorted(e.name for e in entries if is_legal_name(e.name) and e.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            return []
        except OSError as e:
            raise FileProblem(
                f"cannot read models directory {self.root}: {e.strerror}", hint="check the path and its permissions"
            ) from e

    def path(self, name: str) -> Path:
        """Where the package of this name lies.

        Raises:
            ModelNotFound: there is none, or no model can have this name.
        """
        path = self.root / name if is_legal_name(name) else None
        if path is None or path.is_symlink() or not path.is_dir():
            shown = ascii(name[:80])
            raise ModelNotFound(
                f"cannot find model {shown}: it is not installed",
                hint="`skerry model list` shows what is",
                param="model",
            )
        return path

    def remove(self, name: str) -> None:
        """Remove a package: at once for every reader of names, then its bytes.

        A model that is loaded keeps its open files and goes on to work.

        Raises:
            ModelNotFound: see `path`.
            FileProblem: the directory cannot be changed.
        """
        path = self.path(name)
        try:
            # Hidden first: a crash in the middle must leave no half package under a name that could be loaded.
            grave = tempfile.mkdtemp(prefix=f".{name}.removed.", dir=self.root)
            path.rename(Path(grave, name))
            sync_directory(self.root)
            shutil.rmtree(grave)
        except OSError as e:
            raise FileProblem(
                f"cannot remove model {name}: {e.strerror}", hint="check who owns the models directory"
            ) from e
