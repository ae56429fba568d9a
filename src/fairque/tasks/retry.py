"""When a failed task is run again."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from fairque.checks import Duration, check_count, check_number, check_seconds
from fairque.errors import InvalidInput

__all__ = ["MAX_RETRIES", "RetryPolicy"]

MAX_RETRIES = 1_000_000


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Exponential backoff with jitter.

    The n-th retry waits ``min(cap, base * factor ** (n - 1))`` seconds, of which the share `jitter` (0 to 1) is drawn
    at random ("Exponential Backoff And Jitter", AWS Architecture Blog, 2015: 1.0 is its full jitter, 0.5 equal).

    Args:
        max: Number of retries after the first attempt.
        base: Seconds before the first retry, or a timedelta.
        factor: Growth from one retry to the next.
        cap: Longest wait, in seconds or as a timedelta.
        jitter: Share of the wait that is random.
        retry_on: Names of the exception classes worth a retry, as classes or strings; a subclass counts. Empty: all.
    """

    max: int = 3
    base: float = 1.0
    factor: float = 2.0
    cap: float = 300.0
    jitter: float = 0.5
    retry_on: tuple[Any, ...] = ()

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            max: int = 3,  # noqa: A002
            base: Duration = 1.0,
            factor: float = 2.0,
            cap: Duration = 300.0,
            jitter: float = 0.5,
            retry_on: Iterable[type[BaseException] | str] = (),
        ) -> None: ...

    def __post_init__(self) -> None:
        check_count("retry max", self.max, 0, MAX_RETRIES)
        for name in ("base", "cap"):
            msgspec.structs.force_setattr(self, name, check_seconds(f"retry {name}", getattr(self, name)))
        check_number("retry factor", self.factor, 0, 1e9)
        check_number("retry jitter", self.jitter, 0, 1)
        msgspec.structs.force_setattr(self, "retry_on", tuple(_class_name(error) for error in self.retry_on))

    def delay(self, failures: int, rng: random.Random | None = None) -> float:
        """Seconds to wait after the `failures`-th failed attempt (1 is the first)."""
        try:
            wait = min(self.cap, self.base * self.factor ** (failures - 1))
        except OverflowError:
            wait = self.cap
        draw = (rng or random).random()
        return wait * (1 - self.jitter * draw)

    def covers(self, error: BaseException) -> bool:
        """Whether this error is worth a retry."""
        return self.covers_any(cls.__name__ for cls in type(error).__mro__)

    def covers_any(self, classes: Iterable[str]) -> bool:
        """The same, for the names of a class and of those it comes from."""
        return not self.retry_on or any(name in self.retry_on for name in classes)


def _class_name(error: object) -> str:
    if isinstance(error, str):
        return error
    if isinstance(error, type) and issubclass(error, BaseException):
        return error.__name__
    raise InvalidInput(f"retry_on takes exception classes or their names, not {error!r}")
