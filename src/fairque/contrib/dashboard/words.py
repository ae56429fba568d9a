"""Numbers, times and texts as people read them, for all pages."""

from __future__ import annotations

from datetime import UTC, datetime

from markupsafe import Markup

from fairque import UserStatus

__all__ = ["FILTERS", "brief", "ending", "flags_in", "legible", "number", "percent", "shown", "size", "span", "when"]

NOTHING = "–"
GAP = "\N{NO-BREAK SPACE}"
LONGEST = 60
_UNITS = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))
_FLAGS = {"breaker": "breaker open", "rate": "rate limited", "limit": "at its limit"}
_BYTES = ("B", "KiB", "MiB", "GiB", "TiB")


def shown(text: object, kept: str = "") -> str:
    """What a browser would obey or hide, such as line breaks and marks that turn the order of letters, is escaped, but
    for the characters that are `kept`."""
    whole = str(text)
    if whole.isprintable():
        return whole
    return "".join(char if char.isprintable() or char in kept else repr(char)[1:-1] for char in whole)


def legible(value: object) -> object:
    """The same, with its lines, for all that templates write."""
    return shown(value, f"\n\t{GAP}") if isinstance(value, str) and not isinstance(value, Markup) else value


def brief(text: object, most: int = LONGEST) -> str:
    """What is shown of one line, cut where it is long."""
    whole = shown(str(text)[: most + 1])
    return whole if len(whole) <= most else whole[: most - 1] + "…"


def ending(text: str, most: int) -> str:
    """The last of a long text of several lines, which says most where it is a traceback."""
    return text if len(text) <= most else "…" + text[-most:]


def number(value: float | None) -> str:
    """``12,345``, ``1.5``; a dash for None."""
    if value is None:
        return NOTHING
    if isinstance(value, int) or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}".removesuffix(".0") if value >= 0.1 or not value else f"{value:.2g}"


def percent(part: float | None) -> str:
    """Of a part from 0 to 1."""
    if part is None:
        return NOTHING
    return f"{100 * part:.1f}{GAP}%" if 0 < part < 0.0995 else f"{100 * part:.0f}{GAP}%"


def size(count: float | None) -> str:
    """Bytes, in a unit that suits."""
    if count is None:
        return NOTHING
    unit = 0
    while count >= 1024 and unit < len(_BYTES) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.0f}{GAP}{_BYTES[unit]}" if count >= 10 or not unit else f"{count:.1f}{GAP}{_BYTES[unit]}"


def span(seconds: float | None) -> str:
    """``85 ms``, ``1.2 s``, ``3 min``, ``12 h``, ``2.5 d``; a dash for None."""
    if seconds is None:
        return NOTHING
    if seconds < 1:
        milliseconds = max(0.0, seconds) * 1000
        return f"{milliseconds:.0f}{GAP}ms" if milliseconds >= 1 or not milliseconds else f"{milliseconds:.1f}{GAP}ms"
    divisor, unit = next(each for each in _UNITS if seconds >= each[0])
    value = seconds / divisor
    text = f"{value:.1f}".removesuffix(".0") if value < 9.95 else f"{value:,.0f}"
    return f"{text}{GAP}{unit}"


def when(at: float | datetime | None, style: str = "full") -> str | Markup:
    """A moment, in seconds since the epoch, in UTC. The script writes it in the viewer's zone.

    `style`: ``full``, ``time`` or ``hour``.
    """
    if at is None:
        return NOTHING
    try:
        moment = at.astimezone(UTC) if isinstance(at, datetime) else datetime.fromtimestamp(at, UTC)
    except (ValueError, OverflowError, OSError):
        return NOTHING
    text = (
        f"{moment:%H:%M:%S}"
        if style == "time"
        else f"{moment:%H:%M}"
        if style == "hour"
        else f"{moment:%d %b %Y, %H:%M:%S}"
    )
    zone = "" if style == "hour" else " UTC"
    return Markup('<time datetime="{}" data-style="{}">{}{}</time>').format(
        f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03}Z", style, text, zone
    )


def flags_in(status: UserStatus) -> list[str]:
    """Why a user is served less, or more, than others, in two words at most."""
    return [_FLAGS.get(flag, flag) for flag in status.flags]


FILTERS = {
    "brief": brief,
    "ending": ending,
    "number": number,
    "percent": percent,
    "shown": shown,
    "size": size,
    "span": span,
    "when": when,
}
