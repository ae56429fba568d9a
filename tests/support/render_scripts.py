"""Write every script as Redis gets it, with what it includes: ``python tests/support/render_scripts.py FOLDER``."""

import sys
from importlib.resources import files
from pathlib import Path

from fairque.redis.scripts import load

folder = Path(sys.argv[1])
for path in (files("fairque.redis") / "lua").iterdir():
    if path.name.endswith(".lua"):
        (folder / path.name).write_bytes(load(path.name.removesuffix(".lua")).source)
