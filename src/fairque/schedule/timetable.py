"""When a schedule fires: cron expressions, intervals and single moments, in milliseconds since the epoch.

What croniter is used for is the arithmetic of fields, on local times without a zone. How local times become moments is
decided here, because croniter fires twice on a repeated local time and moves what falls into a gap.
"""

from __future__ import annotations

import difflib
import heapq
import itertools
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, available_timezones

from fairque.errors import InvalidInput
from fairque.schedule.spec import Spec

__all__ = ["Timetable", "check_cron", "check_timezone"]

_ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
_DAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]
Rule = tuple[str, str, list[str]]  # name, what is allowed, words
_SECONDS: Rule = ("seconds", "0 to 59", [])
_FIELDS: tuple[Rule, ...] = (
    ("minutes", "0 to 59", []),
    ("hours", "0 to 23", []),
    ("day of the month", "1 to 31, L for the last, 15W for the weekday nearest to the 15th", []),
    ("month", "1 to 12, JAN to DEC", _MONTHS),
    ("day of the week", "0 to 7 (0 and 7 are Sunday), SUN to SAT, 5#2 for the second Friday, L5 for the last", _DAYS),
)
_ANY = ("*", "?", "*/1")
_STEP = re.compile(r"/(\d+)")
_OF_ONE = re.compile(r"(?i)(^|[\s,])(\w+)-(\2)(?:/\d+)?($|(?=[\s,]))")  # a range of one: croniter takes it for all
_LONGEST_STEPS = {"seconds": 59, "minutes": 59, "hours": 23, "day of the month": 31, "month": 12, "day of the week": 7}
_RANDOM = re.compile(r"(?i)(^|,)[hr]([/(,]|$)")
_SECOND = timedelta(seconds=1)
_LATEST = datetime(9000, 1, 1)  # noqa: DTZ001 (a local time, as croniter is given them)


class Timetable:
    """The slots of a schedule.

    A cron expression is about local time in its time zone. Where the clocks change:

    - An expression whose hours are ``*`` follows elapsed time: ``*/5 * * * *`` fires every five minutes, whatever the
      clocks do.
    - Any other names local times. One that is skipped fires once, right after the gap, together with all others of the
      gap and the first moment behind it. One that comes twice fires the first time only.

    Args:
        spec: Checked, see `check_cron` and `check_timezone`.
        anchor_ms: From when intervals are counted, if the spec has no start.
    """

    def __init__(self, spec: Spec, anchor_ms: int) -> None:
        self._spec = spec
        self._anchor_ms = spec.start_ms if spec.start_ms is not None else anchor_ms
        if spec.cron is not None:
            self._zone = ZoneInfo(spec.timezone)
            cron = _expanded(spec.cron)
            self._alternatives = _alternatives(cron)
            self._follows_elapsed_time = cron.split()[-4] == "*"

    def after(self, ms: int) -> int | None:
        """The first slot later than this, None when there is none."""
        spec = self._spec
        if spec.start_ms is not None:
            ms = max(ms, spec.start_ms - 1)
        found = self._after(ms)
        return None if found is None or (spec.end_ms is not None and found > spec.end_ms) else found

    def slots(self, ms: int, until_ms: int) -> Iterator[int]:
        """Those later than `ms`, up to and with `until_ms`."""
        slot = self.after(ms)
        while slot is not None and slot <= until_ms:
            yield slot
            slot = self.after(slot)

    def last(self, ms: int, until_ms: int) -> int | None:
        """The last one of those, without looking at each."""
        return self._nth_last(ms, until_ms, 1)

    def last_few(self, ms: int, until_ms: int, most: int) -> list[int]:
        """The last `most` of those, in order."""
        first = self._nth_last(ms, until_ms, most)
        return list(self.slots(first - 1, until_ms)) if first is not None else []

    def _nth_last(self, ms: int, until_ms: int, n: int) -> int | None:
        """The n-th slot from the end, or the first one where there are fewer. Searched in halves of the time."""
        if self._count(ms, until_ms, n) < n:
            return next(self.slots(ms, until_ms), None)
        low, high = ms, until_ms  # at least n slots come after `low`, fewer after `high`
        while high - low > 1:
            middle = (low + high) // 2
            if self._count(middle, until_ms, n) < n:
                high = middle
            else:
                low = middle
        return self.after(low)

    def _count(self, ms: int, until_ms: int, most: int) -> int:
        return sum(1 for _ in zip(range(most), self.slots(ms, until_ms), strict=False))

    def _after(self, ms: int) -> int | None:
        if self._spec.at_ms is not None:
            return self._spec.at_ms if ms < self._spec.at_ms else None
        if self._spec.every_ms is not None:
            every = self._spec.every_ms
            first = 0 if self._spec.start_ms is not None else 1
            return self._anchor_ms + max(first, (ms - self._anchor_ms) // every + 1) * every
        moment = datetime.fromtimestamp(ms / 1000, UTC)
        find = self._after_elapsed if self._follows_elapsed_time else self._after_local
        found = find(moment)
        return round(found.timestamp() * 1000) if found is not None else None

    def _after_elapsed(self, moment: datetime) -> datetime | None:
        """At the offset of the moment, as long as that lasts, then at the next one."""
        offset = self._offset(moment)
        while True:
            local = next(self._local_times(moment.replace(tzinfo=None) + offset), None)
            if local is None:
                return None
            found = (local - offset).replace(tzinfo=UTC)
            if self._offset(found) == offset:
                return found
            change = self._change(moment, found)
            moment, offset = change - _SECOND, self._offset(change)

    def _after_local(self, moment: datetime) -> datetime | None:
        for local in self._local_times(moment.astimezone(self._zone).replace(tzinfo=None)):
            found = self._moment(local)
            if found > moment:
                return found
        return None

    def _local_times(self, local: datetime) -> Iterator[datetime]:
        each = heapq.merge(*(_local_times_of(cron, local) for cron in self._alternatives))
        return (found for found, _ in itertools.groupby(each))

    def _moment(self, local: datetime) -> datetime:
        """The first one with this local time, or the end of the gap that swallowed it."""
        found = local.replace(tzinfo=self._zone).astimezone(UTC)
        if found.astimezone(self._zone).replace(tzinfo=None) == local:
            return found
        return self._change(found - timedelta(days=1), found)

    def _offset(self, moment: datetime) -> timedelta:
        offset = moment.astimezone(self._zone).utcoffset()
        assert offset is not None
        return offset

    def _change(self, early: datetime, late: datetime) -> datetime:
        """The moment between the two at which the offset changes, on the second."""
        early, late = early.replace(microsecond=0), late.replace(microsecond=0)
        offset = self._offset(late)
        while late - early > _SECOND:
            middle = early + timedelta(seconds=int((late - early).total_seconds()) // 2)
            if self._offset(middle) == offset:
                late = middle
            else:
                early = middle
        return late


def _alternatives(cron: str) -> list[str]:
    """Where the day of the month and that of the week are both restricted, either may come: an expression for each.

    croniter takes some such pairs for both at once (``#``, ``L5``, ``W``), and a range of all days for no restriction.
    """
    *times, day, month, weekday = cron.split()
    if day in _ANY or weekday in _ANY:
        return [cron]
    return [" ".join([*times, day, month, "*"]), " ".join([*times, "*", month, weekday])]


def _local_times_of(cron: str, local: datetime) -> Iterator[datetime]:
    from croniter import CroniterBadDateError, croniter  # late: it takes as long to import as all of fairque

    each = croniter(cron, local, second_at_beginning=len(cron.split()) == 6)
    while True:
        try:
            found: datetime = each.get_next(datetime)
        except CroniterBadDateError:
            return
        if found > _LATEST:
            return
        yield found


def check_timezone(name: object) -> str:
    """Raises `InvalidInput`, with a suggestion where there is one."""
    if isinstance(name, str) and name in _timezones():
        return name
    known = {zone.lower(): zone for zone in _timezones()}
    wanted = str(name).strip().replace(" ", "_").lower()
    cities = {zone.rpartition("/")[2]: zone for zone in known}
    near = difflib.get_close_matches(wanted, known, 1) or difflib.get_close_matches(wanted, cities, 1, 0.8)
    if not near:
        raise InvalidInput(f"timezone must be a name such as 'Europe/Berlin', not {name!r}")
    raise InvalidInput(f"there is no timezone {name!r}: did you mean {known[cities.get(near[0], near[0])]!r}?")


@lru_cache(maxsize=1)
def _timezones() -> frozenset[str]:
    return frozenset(available_timezones() | {"UTC"})


def check_cron(expression: object) -> str:
    """Five fields, six with seconds in front, or an alias such as ``@daily``.

    Raises:
        InvalidInput: With the field that is wrong, or a suggestion.
    """
    if not isinstance(expression, str):
        raise InvalidInput(f"cron must be a str such as '0 9 * * 1-5', not {expression!r}")
    cron = _expanded(expression)
    fields = cron.split()
    if len(fields) not in (5, 6) or cron.startswith("@"):
        raise InvalidInput(f"cron {expression!r} {_shape_problem(cron, len(fields))}")
    for at, (field, rule) in enumerate(zip(fields, _rules(fields), strict=True)):
        _check_field(expression, at, field, *rule)
    start = datetime(2026, 1, 1)  # noqa: DTZ001 (a local time)
    if all(next(_local_times_of(each, start), None) is None for each in _alternatives(cron)):
        raise InvalidInput(f"cron {expression!r} never comes: there is no such day")
    return expression


def _expanded(expression: str) -> str:
    stripped = expression.strip()
    return _ALIASES.get(stripped.lower()) or _OF_ONE.sub(r"\1\2\4", stripped)


def _shape_problem(cron: str, fields: int) -> str:
    if not cron.startswith("@"):
        names = ", ".join(name for name, _, _ in _FIELDS)
        return f"has {fields} fields; there are five ({names}), or six with seconds in front"
    near = difflib.get_close_matches(cron.lower(), _ALIASES, 1)
    return f"is not known: did you mean {near[0]!r}?" if near else f"is not known; there are {', '.join(_ALIASES)}"


def _rules(fields: list[str]) -> tuple[Rule, ...]:
    return (_SECONDS, *_FIELDS) if len(fields) == 6 else _FIELDS


def _check_field(expression: str, at: int, field: str, name: str, allowed: str, words: list[str]) -> None:
    """By itself, among stars: croniter does not say which one it stumbled over."""
    from croniter import CroniterError, croniter

    for step in map(int, _STEP.findall(field)):
        if step > _LONGEST_STEPS[name]:
            raise InvalidInput(
                f"cron {expression!r}: field {at + 1} ({name}) is {field!r}, whose step is longer than the field: "
                f"at most {_LONGEST_STEPS[name]}; for an interval of its own there is every="
            )
    lone = ["*"] * len(_FIELDS)
    lone[_position(name)] = field
    if not _RANDOM.search(field):
        try:
            croniter.expand(" ".join(lone))
        except CroniterError:
            pass
        else:
            return
    raise InvalidInput(
        f"cron {expression!r}: field {at + 1} ({name}) is {field!r}, which is not {allowed}, "
        f"* or a list, range or step of these{_meant(field, words)}"
    )


def _position(name: str) -> int:
    """Seconds have the rules of minutes."""
    return next((at for at, (each, _, _) in enumerate(_FIELDS) if each == name), 0)


def _meant(field: str, words: list[str]) -> str:
    for word in re.findall(r"[A-Za-z]{2,}", field):
        near = difflib.get_close_matches(word.upper(), words, 1, 0.5)
        if near and word.upper() not in words:
            return f": did you mean {near[0]!r}?"
    return ""
