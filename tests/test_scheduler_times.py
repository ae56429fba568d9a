"""When schedules fire: cron expressions and intervals with fixed clocks, and what is said of wrong ones."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairque import InvalidInput
from fairque.redis.store_schedules import Due, Move, encode_spec
from fairque.schedule.spec import Spec, moment_of, spec_of
from fairque.schedule.timetable import Timetable, check_cron, check_timezone
from fairque.scheduler.loop import _moves
from fairque.scheduler.misfire import FiringPlan, jittered, plan
from fairque.tasks.message import Message, encode_body

MINUTE = 60_000
HOUR = 60 * MINUTE


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def cron_table(cron: str, timezone: str = "UTC", **options: object) -> Timetable:
    return Timetable(spec_of({"cron_expr": check_cron(cron), "timezone": check_timezone(timezone), **options}), 0)


def times(table: Timetable, after: str, count: int) -> list[str]:
    """In UTC, to the second."""
    found, at = [], ms(after)
    for _ in range(count):
        slot = table.after(at)
        if slot is None:
            break
        found.append(f"{moment_of(slot):%m-%d %H:%M:%S}")
        at = slot
    return found


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("*/20 * * * *", ["01-01 00:20:00", "01-01 00:40:00"]),
        ("0 9 * * 1-5", ["01-01 09:00:00", "01-02 09:00:00", "01-05 09:00:00"]),
        ("*/15 * * * * *", ["01-01 00:00:15", "01-01 00:00:30"]),  # six fields: seconds in front
        ("30 0 12 * * *", ["01-01 12:00:30", "01-02 12:00:30"]),
        ("0 0 L * *", ["01-31 00:00:00", "02-28 00:00:00"]),
        ("0 0 1 FEB,mar *", ["02-01 00:00:00", "03-01 00:00:00"]),
        ("0 0 * * SUN", ["01-04 00:00:00", "01-11 00:00:00"]),
        ("0 0 * * 7", ["01-04 00:00:00", "01-11 00:00:00"]),
        ("0 0 13 * 5", ["01-02 00:00:00", "01-09 00:00:00", "01-13 00:00:00"]),  # either day, as in every cron
        ("0 0 8-9 * 0#2", ["01-08 00:00:00", "01-09 00:00:00", "01-11 00:00:00", "02-08 00:00:00"]),
        ("0 9 15W * mon", ["01-05 09:00:00", "01-12 09:00:00", "01-15 09:00:00"]),
        ("0 0 15 * 5#1", ["01-02 00:00:00", "01-15 00:00:00", "02-06 00:00:00"]),
        ("0 9 15 * 0-6", ["01-01 09:00:00", "01-02 09:00:00"]),  # only a star is no restriction
        ("0 9 * * 1-1", ["01-05 09:00:00", "01-12 09:00:00"]),
        ("@hourly", ["01-01 01:00:00", "01-01 02:00:00"]),
        ("@daily", ["01-02 00:00:00", "01-03 00:00:00"]),
        ("@Weekly", ["01-04 00:00:00"]),
        ("@monthly", ["02-01 00:00:00"]),
    ],
)
def test_a_cron_expression_fires_when_it_says(cron: str, expected: list[str]):
    assert times(cron_table(cron), "2026-01-01T00:00:00+00:00", len(expected)) == expected


def test_a_slot_lies_after_the_moment_that_is_asked_for_even_within_its_second():
    table = cron_table("* * * * * *")
    assert table.after(1_000) == 2_000
    assert table.after(1_001) == 2_000
    assert table.after(999) == 1_000


def test_times_are_those_of_the_time_zone():
    table = cron_table("0 9 * * *", "Europe/Berlin")
    assert times(table, "2026-01-10T00:00:00+00:00", 1) == ["01-10 08:00:00"]
    assert times(table, "2026-07-10T00:00:00+00:00", 1) == ["07-10 07:00:00"]


# Where the clocks change: in Berlin from 2 to 3 on 29 March 2026 (01:00 UTC), and from 3 to 2 on 25 October


def test_a_local_time_in_a_gap_fires_once_right_after_it():
    table = cron_table("30 2 * * *", "Europe/Berlin")
    assert times(table, "2026-03-28T00:00:00+01:00", 3) == ["03-28 01:30:00", "03-29 01:00:00", "03-30 00:30:00"]


def test_all_local_times_in_a_gap_and_the_first_one_behind_it_fire_together():
    table = cron_table("*/20 2,3 * * *", "Europe/Berlin")
    expected = ["03-29 01:00:00", "03-29 01:20:00", "03-29 01:40:00", "03-30 00:00:00"]
    assert times(table, "2026-03-28T12:00:00+01:00", 4) == expected


def test_a_local_time_that_comes_twice_fires_the_first_time_only():
    table = cron_table("30 2 * * *", "Europe/Berlin")
    assert times(table, "2026-10-24T12:00:00+02:00", 2) == ["10-25 00:30:00", "10-26 01:30:00"]
    assert times(table, "2026-10-25T00:45:00+00:00", 1) == ["10-26 01:30:00"]


def test_hours_that_are_a_star_follow_elapsed_time_over_a_repeated_hour():
    table = cron_table("*/30 * * * *", "Europe/Berlin")
    expected = [f"10-25 0{hour}:{minute}:00" for hour in range(4) for minute in ("00", "30")]
    assert times(table, "2026-10-24T23:59:00+00:00", 8) == expected


def test_hours_that_are_a_star_follow_elapsed_time_over_a_gap():
    table = cron_table("15 * * * *", "Europe/Berlin")
    expected = ["03-28 23:15:00", "03-29 00:15:00", "03-29 01:15:00", "03-29 02:15:00"]
    assert times(table, "2026-03-29T00:00:00+01:00", 4) == expected


def test_a_gap_of_half_an_hour_is_one_as_well():
    table = cron_table(
        "15 2 * * *", "Australia/Lord_Howe"
    )  # from 2:00 to 2:30 on 4 October 2026, 15:30 UTC the day before
    assert times(table, "2026-10-03T00:00:00+00:00", 2) == ["10-03 15:30:00", "10-04 15:15:00"]


def test_midnight_may_be_in_the_gap():
    table = cron_table("@daily", "America/Santiago")  # from 0 to 1 on 6 September 2026, 04:00 UTC
    assert times(table, "2026-09-05T12:00:00+00:00", 2) == ["09-06 04:00:00", "09-07 03:00:00"]


@given(
    st.sampled_from(["*/7 * * * *", "5 */3 * * *", "30 2 * * *", "0 0 2 * * *", "15,45 1-3 * * 0"]),
    st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "UTC"]),
    st.integers(ms("2026-01-01T00:00:00+00:00"), ms("2027-01-01T00:00:00+00:00")),
)
def test_slots_do_not_depend_on_where_one_starts_to_look(cron: str, timezone: str, at: int):
    table = cron_table(cron, timezone)
    slot = table.after(at)
    assert slot is not None
    assert slot > at
    assert table.after(slot - 1) == slot
    assert table.after((at + slot) // 2) == slot or (at + slot) // 2 == slot
    assert table.last(at - 3 * 24 * HOUR, slot) == slot


# Intervals, moments, bounds


def test_an_interval_counts_from_its_anchor():
    table = Timetable(Spec(every_ms=90_000), anchor_ms=1_000)
    assert list(table.slots(0, 300_000)) == [91_000, 181_000, 271_000]
    assert table.after(91_000) == 181_000


def test_an_interval_with_a_start_begins_there():
    table = Timetable(Spec(every_ms=90_000, start_ms=500_000), anchor_ms=1_000)
    assert list(table.slots(0, 700_000)) == [500_000, 590_000, 680_000]
    assert table.after(10_000_000) == 10_040_000


def test_a_single_moment_comes_once():
    table = Timetable(Spec(at_ms=5_000), anchor_ms=0)
    assert list(table.slots(0, 10**12)) == [5_000]


def test_start_and_end_bound_the_slots_and_belong_to_them():
    bounds = {"start": datetime(2026, 1, 3, tzinfo=UTC), "end": datetime(2026, 1, 5, tzinfo=UTC)}
    assert times(cron_table("@daily", **bounds), "2026-01-01T00:00:00+00:00", 9) == [
        f"01-0{day} 00:00:00" for day in (3, 4, 5)
    ]


def test_the_last_slots_are_found_without_looking_at_each():
    table = cron_table("* * * * * *")
    now = ms("2026-01-01T00:00:00.500+00:00")
    assert table.last(0, now) == now - 500
    assert table.last_few(0, now, 3) == [now - 2_500, now - 1_500, now - 500]
    assert table.last_few(now - 1_000, now, 3) == [now - 500]
    assert table.last_few(now - 100, now, 3) == []


# What becomes of slots that were missed: a slot each minute, due at minute 10 but looked at later


def minutely(**options: object) -> tuple[Spec, Timetable]:
    spec = spec_of({"every": 60, "misfire_grace": 90, **options})
    return spec, Timetable(spec, 0)


def planned(spec_and_table: tuple[Spec, Timetable], now: float, slot: int = 10) -> FiringPlan:
    """In minutes."""
    found = plan(*spec_and_table, slot * MINUTE, slot * MINUTE, round(now * MINUTE))
    assert found.next_slot is not None
    return FiringPlan(found.slot and found.slot // MINUTE, found.missed, found.next_slot // MINUTE)


@pytest.mark.parametrize("misfire", ["once", "skip", "all"])
@pytest.mark.parametrize("now", [10, 10.01, 11.5])
def test_a_slot_within_the_grace_fires(misfire: str, now: float):
    assert planned(minutely(misfire=misfire), now) == FiringPlan(10, 0, 11)


def test_once_fires_the_last_slot_for_all():
    assert planned(minutely(misfire="once"), 20.5) == FiringPlan(20, 10, 21)


def test_skip_drops_what_is_too_late_and_keeps_what_is_not():
    assert planned(minutely(misfire="skip"), 20.4) == FiringPlan(None, 9, 19)
    assert planned(minutely(misfire="skip"), 11.6) == FiringPlan(None, 1, 11)


def test_all_fires_each_one():
    assert planned(minutely(misfire="all"), 20.4) == FiringPlan(10, 0, 11)


def test_all_drops_the_oldest_above_its_limit():
    late = minutely(misfire="all", misfire_limit=3)
    assert planned(late, 20.4) == FiringPlan(None, 6, 16)
    assert [planned(late, 20.4, slot) for slot in range(16, 20)] == [
        FiringPlan(slot, 0, slot + 1) for slot in range(16, 20)
    ]


def test_what_was_missed_in_a_long_time_is_counted_up_to_a_limit():
    spec = spec_of({"every": 1, "misfire": "once"})
    year = 365 * 24 * HOUR
    assert plan(spec, Timetable(spec, 0), 1000, 1000, year) == FiringPlan(year, 1000, year + 1000)


def test_jitter_is_worked_out_alike_by_all_and_stays_within_its_bounds():
    spec = spec_of({"every": 60, "jitter": 10})
    delays = [jittered("s", spec, slot) - slot for slot in range(0, 100 * MINUTE, MINUTE)]
    assert delays == [jittered("s", spec, slot) - slot for slot in range(0, 100 * MINUTE, MINUTE)]
    assert all(0 <= delay <= 10_000 for delay in delays)
    assert len(set(delays)) > 90
    assert delays != [jittered("t", spec, slot) - slot for slot in range(0, 100 * MINUTE, MINUTE)]
    assert jittered("s", spec_of({"every": 60}), MINUTE) == MINUTE


# Wrong input


@pytest.mark.parametrize(
    ("cron", "said"),
    [
        ("61 * * * *", "field 1 (minutes) is '61', which is not 0 to 59"),
        ("0 25 * * *", "field 2 (hours) is '25', which is not 0 to 23"),
        ("0 0 32 * *", "field 3 (day of the month)"),
        ("0 0 1 13 *", "field 4 (month)"),
        ("0 0 * * MOM", "field 5 (day of the week) is 'MOM'"),
        ("0 0 * * MOM", "did you mean 'MON'?"),
        ("0 0 1 JANN *", "did you mean 'JAN'?"),
        ("60 0 0 * * *", "field 1 (seconds)"),
        ("0 0 25 * * *", "field 3 (hours)"),
        ("*/0 * * * *", "field 1 (minutes)"),
        ("H * * * *", "field 1 (minutes) is 'H'"),
        ("R(1-5) * * * *", "field 1 (minutes)"),
        ("* * * *", "has 4 fields"),
        ("0 0 0 * * * 2030", "has 7 fields"),
        ("", "has 0 fields"),
        ("@dayly", "did you mean '@daily'?"),
        ("@reboot", "there are @yearly"),
        ("0 0 31 FEB *", "there is no such day"),
        (5, "must be a str"),
    ],
)
def test_a_wrong_expression_is_refused_with_its_field_or_a_suggestion(cron: object, said: str):
    with pytest.raises(InvalidInput) as error:
        check_cron(cron)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("timezone", "said"),
    [
        ("Europe/Berln", "did you mean 'Europe/Berlin'?"),
        ("europe/berlin", "did you mean 'Europe/Berlin'?"),
        ("New York", "did you mean 'America/New_York'?"),
        ("nowhere at all", "must be a name such as"),
        (3, "must be a name such as"),
        ("../etc/passwd", "must be a name such as"),
    ],
)
def test_a_wrong_timezone_is_refused_with_a_suggestion(timezone: object, said: str):
    with pytest.raises(InvalidInput) as error:
        check_timezone(timezone)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"every": 60, "cron_expr": "@daily"},
        {"every": 0.5},
        {"every": timedelta(0)},
        {"every": "60"},
        {"at": "tomorrow"},
        {"every": 60, "jitter": -1},
        {"every": 60, "max_runs": 0},
        {"every": 60, "misfire": "never"},
        {"every": 60, "misfire_limit": 0},
        {"every": 60, "misfire_grace": float("nan")},
        {"every": 60, "overlap": "wait"},
        {"every": 60, "start": datetime(2030, 1, 2, tzinfo=UTC), "end": datetime(2030, 1, 1, tzinfo=UTC)},
        {"every": 60, "colour": "red"},
    ],
)
def test_options_that_break_a_rule_are_refused(options: dict):
    with pytest.raises(InvalidInput):
        spec_of(options)


def test_jitter_beyond_the_interval_lets_no_slot_look_missed():
    spec = spec_of({"every": 60, "jitter": 3600, "misfire": "skip"})
    fired_at = 3_000_000
    body = encode_body(Message("make", msgspec.Raw(b"\x90")), bytes(8), 1.0, 0, 1000)
    for slot in range(0, 600_000, 60_000):
        due = Due("s", fired_at, "anna", "make", encode_spec(spec), 0, body, 0, "", "r", slot)
        [move] = _moves(None, None, [due], fired_at)
        assert isinstance(move, Move)
        assert move.missed == 0
        assert move.next_ms is not None
        assert move.next_ms >= fired_at


@pytest.mark.parametrize(
    ("cron", "named"), [("0 0 0 * *", "15W"), ("0 0 0 * *", "L"), ("0 0 * * 9", "5#2"), ("0 0 * * 9", "L5")]
)
def test_what_a_refusal_of_a_field_names_can_be_used(cron: str, named: str):
    with pytest.raises(InvalidInput, match=rf"\b{named} for the"):
        check_cron(cron)
    assert check_cron(cron.replace("0 0 0", f"0 0 {named}").replace("9", named))
