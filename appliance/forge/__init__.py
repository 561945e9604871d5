"""The station's workshop: from published weights to a model package. Never imported on a box.

It needs the extra `station`; importing it without says so instead of failing somewhere inside.
"""

import importlib.util

from appliance.errors import MissingExtra

if missing := [name for name in ("onnx", "gguf") if importlib.util.find_spec(name) is None]:
    raise MissingExtra(
        f"cannot build models: {' and '.join(missing)} not installed, expected the extra 'station'",
        hint="run: pip install 'skerry[station]'",
    )
