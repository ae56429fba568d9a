"""Cron expressions against a search of every minute by the rules: each field a set, either day where both are named."""

from __future__ import annotations

import calendar
import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairque import InvalidInput
from fairque.schedule.spec import Spec, moment_of
from fairque.schedule.timetable import Timetable, check_cron

START = datetime(2027, 1, 30, 23, 41, tzinfo=UTC)
DAYS = 70
ANY = ("*", "?")
Values = tuple[str, frozenset[int]]  # a field as it is written, and what it means


def values(low: int, high: int) -> st.SearchStrategy[Values]:
    numbers = st.integers(low, high)
    one = numbers.map(lambda n: (str(n), frozenset({n})))
    span = st.tuples(numbers, numbers).map(sorted).map(lambda s: (f"{s[0]}-{s[1]}", frozenset(range(s[0], s[1] + 1))))
    step = st.integers(2, max(2, high - low)).map(lambda n: (f"*/{n}", frozenset(range(low, high + 1, n))))
    both = st.tuples(one, span).map(lambda pair: (f"{pair[0][0]},{pair[1][0]}", pair[0][1] | pair[1][1]))
    return st.one_of(st.just(("*", frozenset(range(low, high + 1)))), one, span, step, both)


def month_days() -> st.SearchStrategy[str]:
    return values(1, 31).map(lambda value: value[0]) | st.just("L") | st.integers(1, 28).map(lambda n: f"{n}W")


def week_days() -> st.SearchStrategy[str]:
    nth = st.tuples(st.integers(0, 6), st.integers(1, 5)).map(lambda pair: f"{pair[0]}#{pair[1]}")
    return values(0, 6).map(lambda value: value[0]) | nth | st.integers(0, 6).map(lambda n: f"L{n}")


def numbers_of(field: str, low: int, high: int) -> set[int]:
    found: set[int] = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        first, _, last = span.partition("-")
        begin, end = (low, high) if span == "*" else (int(first), int(last or first))
        found |= set(range(begin, end + 1, int(step or 1)))
    return found


def is_month_day(field: str, day: datetime) -> bool:
    last = calendar.monthrange(day.year, day.month)[1]
    if field == "L":
        return day.day == last
    if field.endswith("W"):
        return day.day == nearest_working_day(day.year, day.month, int(field[:-1]), last)
    return day.day in numbers_of(field, 1, 31)


def nearest_working_day(year: int, month: int, day: int, last: int) -> int:
    weekday = calendar.weekday(year, month, day)
    if weekday == 5:
        return day - 1 if day > 1 else day + 2
    if weekday == 6:
        return day + 1 if day < last else day - 2
    return day


def is_week_day(field: str, day: datetime) -> bool:
    weekday, last = day.isoweekday() % 7, calendar.monthrange(day.year, day.month)[1]
    if "#" in field:
        wanted, nth = map(int, field.split("#"))
        return weekday == wanted and (day.day - 1) // 7 + 1 == nth
    if field.startswith("L"):
        return weekday == int(field[1:]) and day.day + 7 > last
    return weekday in numbers_of(field, 0, 6)


def is_day(month_day: str, week_day: str, day: datetime) -> bool:
    if month_day in ANY or week_day in ANY:
        return (month_day in ANY or is_month_day(month_day, day)) and (week_day in ANY or is_week_day(week_day, day))
    return is_month_day(month_day, day) or is_week_day(week_day, day)


@settings(max_examples=150, deadline=None)
@given(values(0, 59), values(0, 23), month_days(), values(1, 12), week_days())
def test_a_cron_expression_fires_at_each_minute_that_its_rules_name_and_at_no_other(
    minute: Values, hour: Values, month_day: str, month: Values, week_day: str
):
    cron = f"{minute[0]} {hour[0]} {month_day} {month[0]} {week_day}"
    days = [START.replace(hour=0, minute=0) + timedelta(days=n) for n in range(DAYS)]
    expected = [
        moment
        for day in days
        if day.month in month[1] and is_day(month_day, week_day, day)
        for h in sorted(hour[1])
        for m in sorted(minute[1])
        if (moment := day.replace(hour=h, minute=m)) > START
    ][:40]
    try:
        table = Timetable(Spec(cron=check_cron(cron)), 0)
    except InvalidInput:  # it never comes
        assert not expected
        return
    until = START + timedelta(days=DAYS - 2)
    slots = itertools.islice(table.slots(_ms(START), _ms(until)), 40)
    assert [moment_of(slot) for slot in slots] == [moment for moment in expected if moment <= until]


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


CHANGES = {  # zones, and a day shortly before their clocks change: by an hour, by half of one, at midnight, for good
    "Europe/Berlin": [(2027, 3, 26), (2027, 10, 29)],
    "America/New_York": [(2027, 3, 12), (2027, 11, 5)],
    "Australia/Lord_Howe": [(2027, 4, 2), (2027, 10, 1)],
    "America/Santiago": [(2027, 4, 2), (2027, 9, 3)],
    "Asia/Beirut": [(2027, 3, 26), (2027, 10, 29)],
    "Asia/Kathmandu": [(2027, 5, 1)],
}
MINUTE = timedelta(minutes=1)


def locals_of(start: datetime, days: int, zone: ZoneInfo) -> list[tuple[datetime, datetime]]:
    """Each minute in UTC, with the local time that clocks show then."""
    moments = [start + n * MINUTE for n in range(days * 1440)]
    return [(moment, moment.astimezone(zone).replace(tzinfo=None)) for moment in moments]


def slots_by_search(shown: list[tuple[datetime, datetime]], is_slot: Callable[[datetime], bool]) -> list[datetime]:
    """Of local times: one that comes twice counts the first time, those that are skipped right after the gap."""
    found, latest = [], shown[0][1] - MINUTE
    for moment, local in shown:
        if local > latest:  # not a repeated one
            passed = [latest + n * MINUTE for n in range(1, int((local - latest) / MINUTE) + 1)]
            if any(is_slot(each) for each in passed):
                found.append(moment)
            latest = local
    return found


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([(zone, start) for zone, starts in CHANGES.items() for start in starts]),
    values(0, 59),
    values(0, 23),
    month_days(),
    week_days(),
)
def test_in_a_time_zone_local_times_fire_once_and_stars_follow_elapsed_time(
    place: tuple[str, tuple[int, int, int]], minute: Values, hour: Values, month_day: str, week_day: str
):
    zone, start = ZoneInfo(place[0]), datetime(*place[1], tzinfo=UTC)

    def is_slot(local: datetime) -> bool:
        return local.minute in minute[1] and local.hour in hour[1] and is_day(month_day, week_day, local)

    shown = locals_of(start, 4, zone)
    if hour[0] == "*":
        expected = [moment for moment, local in shown if is_slot(local)]
    else:
        expected = slots_by_search(shown, is_slot)
    table = Timetable(Spec(cron=f"{minute[0]} {hour[0]} {month_day} * {week_day}", timezone=place[0]), 0)
    slots = itertools.islice(table.slots(_ms(start) - 1, _ms(shown[-1][0])), 200)
    assert [moment_of(slot) for slot in slots] == expected[:200]


@pytest.mark.parametrize("cron", ["*/90 * * * *", "0 */24 * * *", "0 0 */40 * *", "*/60 * * * * *", "0 0 * */13 *"])
def test_a_step_that_is_longer_than_its_field_is_refused(cron: str):
    with pytest.raises(InvalidInput, match="longer than the field"):
        check_cron(cron)
