"""Write every script as Redis gets it, after a change: ``python tests/support/render_scripts.py``."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from fairque.redis.scripts import Script, load

SNAPSHOTS = Path(__file__).parents[1] / "snapshots" / "lua"


def scripts() -> Iterator[Script]:
    for package in ("fairque.redis", "fairque.testing"):
        for path in (files(package) / "lua").iterdir():
            if path.name.endswith(".lua"):
                yield load(path.name.removesuffix(".lua"), package)


def rendered() -> dict[str, str]:
    """By file name."""
    return {f"{script.name}.lua": script.source.decode() + "\n" for script in scripts()}


if __name__ == "__main__":
    SNAPSHOTS.mkdir(parents=True, exist_ok=True)
    for old in SNAPSHOTS.iterdir():
        old.unlink()
    for name, source in rendered().items():
        (SNAPSHOTS / name).write_text(source, encoding="utf-8")
