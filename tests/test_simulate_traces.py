"""Traces: what is read, and what is refused with its line."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pytest

from fairque.errors import InvalidInput
from fairque.fairness.trace_files import UNKNOWN_USER, Format, TraceJob, in_order, read_trace

CSV = "time,user,duration,cost\n10,ann,2.5,3\n12,bob,0,1\n"
HEADER = "; Version: 2.2\n; Computer: \xa0none\n; this is no label\n;\n"


def swf(submit: object = 0, run: object = 5, user: object = 7, status: object = 1) -> str:
    fields: list[object] = [1, submit, -1, run, *[-1] * 14]
    fields[10], fields[11] = status, user
    return "   ".join(map(str, fields)) + "\n"


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def refused(path: Path, format_: Format | None = None) -> str:
    with pytest.raises(InvalidInput) as error:
        read_trace(path, format_)
    assert str(path) in str(error.value)
    return str(error.value).replace(str(path), "FILE")


# What is read


def test_csv_has_times_from_the_first_task_on(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path / "t", CSV))
    assert trace.jobs == [TraceJob(0, "ann", 2.5, 3), TraceJob(2, "bob", 0, 1)]
    assert not trace.left_out


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff\n Duration,TIME,user \n2,10,ann\n\n",
        'duration,time,user\r\n2,10,"ann"\r\n',
        "user,duration,time\nann, 2 ,1e1",
    ],
)
def test_csv_may_have_its_columns_in_any_order_and_no_cost(tmp_path: Path, text: str) -> None:
    assert read_trace(written(tmp_path / "t", text)).jobs == [TraceJob(0, "ann", 2, 1)]


def test_users_are_what_they_are_called(tmp_path: Path) -> None:
    text = 'time,user,duration\n0,"a,b ""c""",1\n0,zoë: 100%,1\n'
    assert [job.user_id for job in read_trace(written(tmp_path / "t", text)).jobs] == ['a,b "c"', "zoë: 100%"]


def test_the_standard_workload_format_has_comments_of_any_kind(tmp_path: Path) -> None:
    text = (HEADER + swf(3, 5.5, 7) + "; between\n\n" + swf(4, 0, 12)).encode("latin-1")
    assert read_trace(written(tmp_path / "t", text)).jobs == [TraceJob(0, "7", 5.5), TraceJob(1, "12", 0)]


def test_what_the_standard_workload_format_does_not_know_is_left_out_and_counted(tmp_path: Path) -> None:
    lines = [swf(0, 5), swf(-1, 5), swf(1, -1), swf(2, -1), swf(3, 5, -1), swf(4, 9, status=2), swf(4, 9, status=4)]
    trace = read_trace(written(tmp_path / "t", "".join(lines)))
    assert trace.jobs == [TraceJob(0, "7", 5), TraceJob(3, UNKNOWN_USER, 5)]
    assert trace.left_out == {
        "without a submit time": 1,
        "without a run time": 2,
        "parts of a job that ran in several": 2,
    }


@pytest.mark.parametrize("text", [CSV, HEADER + swf(0) + swf(1), swf(0) + swf(1)])
def test_the_format_is_guessed_compressed_or_not(tmp_path: Path, text: str) -> None:
    plain = read_trace(written(tmp_path / "t", text)).jobs
    assert len(plain) == 2
    assert read_trace(written(tmp_path / "t.any", gzip.compress(text.encode()))).jobs == plain


def test_a_format_that_is_given_is_not_guessed(tmp_path: Path) -> None:
    path = written(tmp_path / "t", CSV)
    assert "the Standard Workload Format has 18" in refused(path, "swf")
    assert "there is no task in it" in refused(written(tmp_path / "t", "time,user,duration\n"), "csv")


def test_tasks_are_put_in_order_and_those_of_one_moment_stay_as_they_came(tmp_path: Path) -> None:
    text = "time,user,duration\n9,c,1\n5,b,1\n5,a,1\n"
    assert [job.user_id for job in read_trace(written(tmp_path / "t", text)).jobs] == ["b", "a", "c"]
    assert in_order([]) == []


def test_a_limit_takes_the_first_lines_and_never_reads_the_others(tmp_path: Path) -> None:
    path = written(tmp_path / "t", CSV + "nonsense\n")
    assert len(read_trace(path, limit=2).jobs) == 2
    with pytest.raises(InvalidInput, match="limit must be a whole number"):
        read_trace(path, limit=0)


# What is refused


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("10,ann", "2 fields, the header has 4"),
        ("x,ann,1,1", "time must be a number, not 'x'"),
        ("-1,ann,1,1", "time must be a number from 0 to 3153600000 seconds, not -1.0"),
        ("nan,ann,1,1", "time must be a number from 0"),
        ("1700000000000,ann,1,1", "time must be a number from 0"),
        ("0,ann,-2,1", "duration must be a number from 0"),
        ("0,ann,inf,1", "duration must be a number from 0"),
        ("0,ann,1,0", "cost must be a number from 0.001 to 1000000"),
        ("0,ann,1,", "cost must be a number, not ''"),
        ("0,,1,1", "user must not be empty"),
        (f"0,{'a' * 513},1,1", "user has 513 bytes, the limit is 512"),
        ('0,"ann"x,1,1', "',' expected after '\"'"),
        ('0,"ann,1,1', "unexpected end of data"),
        (b"0,\xff,1,1", "cannot be encoded as UTF-8"),
    ],
)
def test_a_bad_line_of_csv_is_named(tmp_path: Path, row: str | bytes, why: str) -> None:
    raw = row.encode() if isinstance(row, str) else row
    said = refused(written(tmp_path / "t", CSV.encode() + raw + b"\n"))
    assert said.startswith("FILE, line 4: ")
    assert why in said


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ("10,ann,2", "column '10', wanted is a header: time,user,duration"),
        ("time,user,duration,costs", "column 'costs', wanted"),
        ("time,user,duration,time", "column 'time', wanted"),
        ("time,user", "there is no column 'duration'"),
    ],
)
def test_a_header_that_is_none_is_named(tmp_path: Path, header: str, why: str) -> None:
    said = refused(written(tmp_path / "t", f"{header}\n1,ann,1,1\n"))
    assert said.startswith("FILE, line 1: ")
    assert why in said


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("1 2 3\n", "3 fields, the Standard Workload Format has 18"),
        (swf(-2), "submit time must be a number from 0"),
        (swf(0, -5), "run time must be a number from 0"),
        (swf(0, "x"), "run time must be a number, not 'x'"),
        (swf(0, 1, -2), "user id must be a whole number, or -1 where it is not known, not '-2'"),
        (swf(0, 1, "ann"), "user id must be a whole number"),
    ],
)
def test_a_bad_line_of_the_standard_workload_format_is_named(tmp_path: Path, line: str, why: str) -> None:
    said = refused(written(tmp_path / "t", HEADER + swf() + line))
    assert said.startswith("FILE, line 6: ")
    assert why in said


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert refused(tmp_path / "missing") == "FILE: No such file or directory"
    assert refused(tmp_path) == "FILE: Is a directory"
    assert refused(written(tmp_path / "empty", "")) == "FILE: there is no task in it"
    assert refused(written(tmp_path / "comments", HEADER)) == "FILE: there is no task in it"
    rows = "".join(f"{random.random()},ann,{random.random()},1\n" for _ in range(500))
    packed = gzip.compress((CSV + rows).encode())
    assert refused(written(tmp_path / "cut", packed[:2000])).startswith("FILE: Compressed file ended")
    assert refused(written(tmp_path / "broken", packed[:40] + b"\xff" * 400 + packed[440:])).startswith("FILE")
