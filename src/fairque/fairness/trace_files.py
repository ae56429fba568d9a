"""Traces: who put in which task, when, and how long it ran. Read from CSV or the Standard Workload Format."""

from __future__ import annotations

import csv
import gzip
import io
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Literal, NamedTuple, TextIO, get_args

from fairque.checks import check_count, check_id, check_number, check_seconds
from fairque.errors import InvalidInput
from fairque.tasks.options import MAX_COST, MIN_COST

__all__ = ["FORMATS", "UNKNOWN_USER", "Format", "Trace", "TraceJob", "in_order", "parse_number", "read_trace"]

Format = Literal["csv", "swf"]
FORMATS: tuple[Format, ...] = get_args(Format)
UNKNOWN_USER = "unknown"
_COLUMNS = ("time", "user", "duration", "cost")
_NEEDED = _COLUMNS[:3]
_HEADER = "time,user,duration, and cost if you like"
_SWF_FIELDS = 18
_SUBMIT, _RUN, _STATUS, _USER = 1, 3, 10, 11
_PARTIAL = ("2", "3", "4")
_GZIP_MAGIC = b"\x1f\x8b"


class TraceJob(NamedTuple):
    """A task of a trace: put in at `time`, seconds after the first one, and `seconds` long."""

    time: float
    user_id: str
    seconds: float
    cost: float = 1.0


@dataclass(frozen=True)
class Trace:
    """The jobs in the order of their time, and how many lines were left out, by reason."""

    jobs: list[TraceJob]
    left_out: Mapping[str, int]


def read_trace(path: Path, format_: Format | None = None, *, limit: int | None = None) -> Trace:
    """Read a trace, compressed with gzip or not.

    CSV has a header that names the columns ``time``, ``user``, ``duration`` and, if it likes, ``cost``, in any order.
    Times and durations are seconds.

    The Standard Workload Format is that of the Parallel Workloads Archive, version 2.2: 18 fields a line, -1 for what
    is not known, and comments behind a semicolon. They are skipped, well formed or not: nothing in the header changes
    what the fields mean. A job whose user is not known is one of the user ``unknown``. A job without a submit time or a
    run time is left out, and so are the parts of a job that ran in several (status 2, 3 and 4), because the line of
    the whole job comes before them. Any other negative time is an error.

    Args:
        path: The file.
        format_: ``csv`` or ``swf``; None looks at the first line.
        limit: Take the first jobs of the file only, so many.

    Raises:
        InvalidInput: The file cannot be read, or a line breaks a rule. Names the file and the line.
    """
    if limit is not None:
        check_count("limit", limit, 1, sys.maxsize)
    left_out: Counter[str] = Counter()
    try:
        parse = _csv_jobs if (format_ or _guess(path)) == "csv" else _swf_jobs
        with _opened(path) as file:
            jobs = list(islice(parse(_Lines(path, file), left_out), limit))
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidInput(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if not jobs:
        raise InvalidInput(f"{path}: there is no task in it")
    return Trace(in_order(jobs), dict(left_out))


def in_order(jobs: Iterable[TraceJob]) -> list[TraceJob]:
    """By time, those of one moment as they came, and the first at 0."""
    ordered = sorted(jobs, key=attrgetter("time"))
    first = ordered[0].time if ordered else 0.0
    return [job._replace(time=job.time - first) for job in ordered] if first else ordered


class _Lines(Iterator[str]):
    """The lines of a file. Knows at which it is."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self._path = path
        self._file = file
        self._number = 0

    def __next__(self) -> str:
        line = next(self._file)
        self._number += 1
        return line

    def wrong(self, what: object) -> InvalidInput:
        return InvalidInput(f"{self._path}, line {self._number}: {what}")


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    with path.open("rb") as file:
        is_compressed = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        file.seek(0)
        raw = gzip.GzipFile(fileobj=file) if is_compressed else file
        # Comments may be in any encoding. An id that is not UTF-8 is refused with its line, as every bad id is.
        yield io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _guess(path: Path) -> Format:
    """The Standard Workload Format begins with a comment, or else with a line of 18 fields."""
    with _opened(path) as file:
        first = next((line for line in file if line.strip()), "")
    return "swf" if first.startswith(";") or len(first.split()) == _SWF_FIELDS else "csv"


def _csv_jobs(lines: _Lines, _left_out: Counter[str]) -> Iterator[TraceJob]:
    reader = csv.reader(lines, strict=True)
    try:
        columns = _columns(next(filter(None, reader), list(_COLUMNS)))
        for row in reader:
            if row:
                yield _csv_job(columns, row)
    except (InvalidInput, csv.Error) as error:
        raise lines.wrong(error) from None


def _columns(header: list[str]) -> list[str]:
    columns = [name.strip().lower() for name in header]
    for name in columns:
        if name not in _COLUMNS or columns.count(name) > 1:
            raise InvalidInput(f"column {name[:40]!r}, wanted is a header: {_HEADER}")
    for name in _NEEDED:
        if name not in columns:
            raise InvalidInput(f"there is no column {name[:40]!r}, wanted is a header: {_HEADER}")
    return columns


def _csv_job(columns: list[str], row: list[str]) -> TraceJob:
    if len(row) != len(columns):
        raise InvalidInput(f"{len(row)} fields, the header has {len(columns)}")
    found = dict(zip(columns, row, strict=True))
    return TraceJob(
        check_seconds("time", parse_number("time", found["time"])),
        sys.intern(check_id("user", found["user"].strip())),
        check_seconds("duration", parse_number("duration", found["duration"])),
        check_number("cost", parse_number("cost", found.get("cost", "1")), MIN_COST, MAX_COST),
    )


def _swf_jobs(lines: _Lines, left_out: Counter[str]) -> Iterator[TraceJob]:
    for line in lines:
        fields = line.split()
        if not fields or fields[0].startswith(";"):
            continue
        try:
            job = _swf_job(fields)
        except InvalidInput as error:
            raise lines.wrong(error) from None
        if isinstance(job, TraceJob):
            yield job
        else:
            left_out[job] += 1


def _swf_job(fields: list[str]) -> TraceJob | str:
    """A job, or why there is none in this line."""
    if len(fields) != _SWF_FIELDS:
        raise InvalidInput(f"{len(fields)} fields, the Standard Workload Format has {_SWF_FIELDS}")
    submit, run = _swf_seconds("submit time", fields[_SUBMIT]), _swf_seconds("run time", fields[_RUN])
    user = fields[_USER]
    if not user.removeprefix("-").isdecimal() or (user.startswith("-") and user != "-1"):
        raise InvalidInput(f"user id must be a whole number, or -1 where it is not known, not {user[:40]!r}")
    if submit is None or run is None:
        return "without a submit time" if submit is None else "without a run time"
    if fields[_STATUS] in _PARTIAL:
        return "parts of a job that ran in several"
    return TraceJob(submit, UNKNOWN_USER if user == "-1" else sys.intern(user), run)


def _swf_seconds(name: str, text: str) -> float | None:
    value = parse_number(name, text)
    return None if value == -1 else check_seconds(name, value)


def parse_number(name: str, text: str) -> float:
    """Raises `InvalidInput`."""
    try:
        return float(text)
    except ValueError:
        raise InvalidInput(f"{name} must be a number, not {text[:40]!r}") from None
