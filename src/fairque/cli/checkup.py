"""Checks of a queue's health, and the limits they are held against."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from fairque.cli.problem import Problem

__all__ = ["Check", "Limits", "Status", "worst"]


class Status(StrEnum):
    OK = "ok"
    WARNING = "warning"
    CRITICAL = "critical"

    @property
    def exit_code(self) -> int:
        return list(Status).index(self)


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at, and the values from which on it is a warning, or critical."""

    name: str
    status: Status
    value: float | None
    warning: float | None
    critical: float | None
    text: str


class Limits(msgspec.Struct, frozen=True):
    """From which value on something is a warning, or critical; None: never."""

    warning: float | None = None
    critical: float | None = None

    @staticmethod
    def parse(option: str, text: str) -> Limits:
        """``WARN:CRIT``, either of which may be empty, or ``off``. Raises `Problem`."""
        if text == "off":
            return Limits()
        warning, _, critical = text.partition(":")
        limits = Limits(_number(option, warning, text), _number(option, critical, text))
        if limits.warning is not None and limits.critical is not None and limits.warning > limits.critical:
            raise Problem(f"{option} {text}: a warning beyond what is critical", "put the smaller number first")
        return limits

    @property
    def looks(self) -> bool:
        return self.warning is not None or self.critical is not None

    def check(self, name: str, value: float, text: str) -> Check:
        status = Status.OK
        if self.critical is not None and value >= self.critical:
            status = Status.CRITICAL
        elif self.warning is not None and value >= self.warning:
            status = Status.WARNING
        return Check(name, status, value, self.warning, self.critical, text)


def worst(checks: Sequence[Check]) -> Status:
    return max((check.status for check in checks), key=list(Status).index, default=Status.OK)


def _number(option: str, part: str, text: str) -> float | None:
    if not part:
        return None
    try:
        number = float(part)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise Problem(f"{option} {text!r} is not WARN:CRIT", f"write it like {option} 10:100, 10:, :100 or off")
    return number
