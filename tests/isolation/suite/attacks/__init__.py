"""The attacks, a file for each kind of means."""

from __future__ import annotations

from importlib import import_module

KINDS = ("floods", "moments", "payloads", "outcomes", "costs", "masses", "policies", "graphs", "outboxes", "damage")


def load() -> None:
    """Into `ATTACKS`."""
    for kind in KINDS:
        import_module(f"{__name__}.{kind}")
