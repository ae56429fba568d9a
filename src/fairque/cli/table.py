"""A table for the width there is: what is worth least gives way first, until the rest fits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum, auto

import msgspec
import rich.table
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from fairque.cli.output import NOTHING, make_console, shown
from fairque.cli.short_ids import short_ids

__all__ = ["Column", "FittedTable", "names", "numbers", "print_table", "words"]

KEPT = 1000
"""The worth of a column that is never left out."""
_GAP = 2
_LEAST_ID = 12
_LEAST_WORDS = {True: 24, False: 10}
"""Where they are wrapped, and where they are cut."""
_USUAL_ID = 40
"""A UUID has 36. Longer ids are whole where room is left: one of 300 would push all other columns out."""
_EMPTY = ("", NOTHING, "0")


class Kind(Enum):
    NUMBERS = auto()
    """To the right, and never cut."""
    NAMES = auto()
    """Ids, and names of tasks: cut in the middle."""
    WORDS = auto()
    """Wrapped at words, or cut at the end."""


class Column(msgspec.Struct, frozen=True):
    """One column of a table.

    Attributes:
        head: Its words may stand below each other.
        kind: How its cells may be made smaller.
        worth: Where room is short, columns of less worth are left out first, `KEPT` never.
            A column in which no row has anything is worth nothing.
        whole: What it is worth that its names are not cut. For what one has to type again, that is much.
    """

    head: str
    kind: Kind
    worth: float = KEPT
    whole: float = 0


def numbers(head: str, worth: float = KEPT) -> Column:
    return Column(head, Kind.NUMBERS, worth)


def names(head: str, worth: float = KEPT, whole: float = 0) -> Column:
    return Column(head, Kind.NAMES, worth, whole)


def words(head: str, worth: float = KEPT) -> Column:
    return Column(head, Kind.WORDS, worth)


class FittedTable:
    """Rows of cells, which are shown literally, whatever stands in them.

    Args:
        wraps: Text that is too wide goes on in the next line; without it, it is cut.
        tells: Say below the table which columns were left out.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        rows: Iterable[Sequence[object]],
        title: str | None = None,
        *,
        wraps: bool = True,
        tells: bool = True,
    ) -> None:
        self._columns = columns
        self._rows = [[shown(str(cell)) for cell in row] for row in rows]
        self._title = title
        self._wraps = wraps
        self._tells = tells

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        fits = [_Fit(column, [row[at] for row in self._rows], self._wraps) for at, column in enumerate(self._columns)]
        _fit(fits, options.max_width)
        yield self._drawn([each for each in fits if each.is_in])
        out = [each.column.head for each in fits if not each.is_in]
        if out and self._tells:
            yield Text(f"no room for: {', '.join(out)} (--json has all)", style="dim")

    def _drawn(self, fits: Sequence[_Fit]) -> rich.table.Table:
        title = Text(shown(self._title)) if self._title else None
        table = rich.table.Table(title=title, title_justify="left", box=None, pad_edge=False)
        for each in fits:
            table.add_column(
                Text(each.column.head),
                justify="right" if each.column.kind is Kind.NUMBERS else "left",
                width=each.width,
                overflow="fold" if self._wraps else "ellipsis",
                no_wrap=not self._wraps,
            )
        for cells in zip(*(each.shown_cells() for each in fits), strict=True):
            table.add_row(*map(Text, cells))
        return table


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
    make_console().print(FittedTable(columns, rows, title))


class _Fit:
    """A column and how wide it is to be."""

    def __init__(self, column: Column, cells: Sequence[str], wraps: bool) -> None:
        self.column = column
        self.cells = cells
        self.is_in = True
        content, head = max(map(cell_len, cells), default=0), cell_len(column.head)
        self.full = max(content, head)
        self.usual = max(min(content, _USUAL_ID), head) if column.kind is Kind.NAMES else self.full
        least = {Kind.NUMBERS: self.full, Kind.NAMES: _LEAST_ID, Kind.WORDS: _LEAST_WORDS[wraps]}[column.kind]
        self.least = max(*map(cell_len, column.head.split()), min(content, least))
        self.width = self.usual
        self.worth = column.worth if column.worth == KEPT or any(cell not in _EMPTY for cell in cells) else 0

    def shown_cells(self) -> Sequence[str]:
        return short_ids(self.cells, self.width) if self.column.kind is Kind.NAMES else self.cells

    def shrink(self, smaller: bool) -> None:
        self.width = self.least if smaller else self.usual

    def leave_out(self, out: bool) -> None:
        self.is_in = not out

    def concessions(self) -> Iterator[tuple[float, Callable[[bool], None]]]:
        """What each costs, and what makes it, or takes it back."""
        if self.least < self.usual:
            yield self.column.whole, self.shrink
        if self.worth < KEPT:
            yield self.worth, self.leave_out


def _fit(columns: Sequence[_Fit], room: int) -> None:
    """Concede what costs least until all is in the room; what was more than needed is taken back, the dearest first."""
    made: list[Callable[[bool], None]] = []
    for _, concede in sorted((each for column in columns for each in column.concessions()), key=lambda each: each[0]):
        if _left(columns, room) >= 0:
            break
        concede(True)
        made.append(concede)
    for concede in reversed(made):
        concede(False)
        if _left(columns, room) < 0:
            concede(True)
    for column in sorted(columns, key=lambda each: -each.column.whole):
        if column.is_in:
            column.width = min(column.full, column.width + max(0, _left(columns, room)))
    while _left(columns, room) < 0:
        widest = max((column for column in columns if column.is_in), key=lambda each: each.width)
        if widest.width == 1:
            return
        widest.width -= 1


def _left(columns: Sequence[_Fit], room: int) -> int:
    widths = [column.width for column in columns if column.is_in]
    return room - sum(widths) - _GAP * (len(widths) - 1)
