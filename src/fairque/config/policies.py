"""Sections of the configuration that say what governs users, groups and task names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from fairque.checks import check_id
from fairque.config.field import Number
from fairque.config.section import Section
from fairque.everybody import EVERYONE
from fairque.policy import (
    LEAST_SHARE,
    LEAST_WEIGHT,
    MOST_BYTES,
    MOST_TASKS,
    MOST_WEIGHT,
    as_breaker,
    as_rate,
    packed_group,
)

__all__ = ["GroupConfig", "LimitConfig", "PolicyConfig"]

Weight = Annotated[float, Number, Meta(ge=LEAST_WEIGHT, le=MOST_WEIGHT)]
Share = Annotated[float, Number, Meta(ge=LEAST_SHARE, le=1)]
Most = Annotated[int, Meta(ge=1, le=MOST_TASKS)]


class _Rules(Section, frozen=True, kw_only=True):
    """What governs those that a name stands for."""

    named_by: ClassVar[str]
    checks: ClassVar[Mapping[str, Callable[[Any], object]]] = {
        **{field: partial(check_id, field) for field in ("user", "key")},
        **dict.fromkeys(("name", "group"), packed_group),
        "rate": as_rate,
        "breaker": as_breaker,
    }

    def rules(self) -> dict[str, Any]:
        """What is given, by name."""
        return {field: value for field, value in self.given().items() if field != self.named_by}

    def contradictions(self) -> Iterator[tuple[str, str]]:
        if not self.rules():
            yield self.named_by, "there is no rule for it"


class PolicyConfig(_Rules, frozen=True, kw_only=True):
    """What governs a user, see `Policy`. What is not given stays as it is in Redis.

    A pause cannot be given: a worker that starts would undo a `resume`.

    Args:
        user: Whose; ``"*"`` is everybody who does not say otherwise.
        weight, max_running, max_share, min_running, max_queued, overflow, max_bytes, group: As in `Policy`.
        rate: As a text, ``"100/m"`` or ``"100/m burst 20"``.
        breaker: As a text, ``"5/60s/30s"``: failures, window, cooldown.
    """

    named_by: ClassVar[str] = "user"

    user: str = ""
    weight: Weight | None = None
    max_running: Most | None = None
    max_share: Share | None = None
    min_running: Most | None = None
    rate: str | None = None
    max_queued: Annotated[int, Meta(ge=0, le=MOST_TASKS)] | None = None
    overflow: Literal["reject", "drop_oldest"] | None = None
    max_bytes: Annotated[int, Meta(ge=1, le=MOST_BYTES)] | None = None
    group: str | None = None
    breaker: str | None = None

    def contradictions(self) -> Iterator[tuple[str, str]]:
        yield from super().contradictions()
        if self.user == EVERYONE and self.group is not None:
            yield "group", "not everybody can be in one group: give the group of each user"


class GroupConfig(_Rules, frozen=True, kw_only=True):
    """A group of users.

    Args:
        name: As in the `group` of a policy.
        weight: Its share in relation to other groups, and to users without one.
    """

    named_by: ClassVar[str] = "name"

    name: str = ""
    weight: Weight | None = None


class LimitConfig(_Rules, frozen=True, kw_only=True):
    """A limit, see `TaskQueue.set_limit`: it goes before what `@task` says in the code.

    Args:
        key: The name of a task, or a limit key, with braces or without.
        max_running: Most that run at once.
        rate: How often they may start, as a text like ``"100/m"``.
    """

    named_by: ClassVar[str] = "key"

    key: str = ""
    max_running: Most | None = None
    rate: str | None = None
