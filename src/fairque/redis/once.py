"""What of a Lua file is made once, when a server loads it, and what each call does anew."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

__all__ = ["HEAD", "TAIL", "Calls", "names_in", "split"]

HEAD = """local KEYS, ARGV
local calls, NEXT = {}, {}"""
TAIL = """local function run(its_keys, its_values)
  KEYS, ARGV = its_keys, its_values
  for nth = 1, #calls do
    local came = calls[nth]()
    if came ~= NEXT then return came end
  end
end"""
_GOES_ON = re.compile(r" |(?:end|else|elseif|until)\b|[})]")
_ASIDE = re.compile(r"|--.*|#!.*")
_LOCALS = re.compile(r"local ((?:\w+,\s+)*\w+)\s*(=)?")
_FUNCTION = re.compile(r"(?:local )?function ([\w.]+)")
_NAME = re.compile(r"\w+")
_CONSTANTS = re.compile(r"(?:[A-Z][A-Z0-9_]*(?:,\s+)?)+")


def split(lines: Iterable[str]) -> Iterator[list[str]]:
    """Statements that begin at the left edge. A comment or a directive there is one by itself, and an empty line."""
    statement: list[str] = []
    for line in lines:
        is_aside = _ASIDE.fullmatch(line) is not None
        if statement and (_GOES_ON.match(line) or not line):
            statement.append(line)
            continue
        yield from _ended(statement)
        statement = [] if is_aside else [line]
        if is_aside:
            yield [line]
    yield from _ended(statement)


def names_in(lines: Iterable[str]) -> set[str]:
    """That these declare at their left edge."""
    names: set[str] = set()
    for statement in split(lines):
        text = "\n".join(statement)
        if function := _FUNCTION.match(text):
            names.update([function[1]] if text.startswith("local ") else [])
        elif named := _LOCALS.match(text):
            names.update(_NAME.findall(named[1]))
    return names


def _ended(statement: list[str]) -> Iterator[list[str]]:
    end = len(statement)
    while end and not statement[end - 1]:
        end -= 1
    if end:
        yield statement[:end]
    yield from ([""] for _ in statement[end:])


class Calls:
    """Functions and constants (in capitals) are made once. All else is done by each call, in its order: a local gets
    its value then, and keeps none of the call before.
    """

    def __init__(self) -> None:
        self._statements: list[str] = []
        self.told: set[str] = set()
        """Names that are declared already, outside of the block that is put in."""

    def put(self, statement: list[str], *, is_once: bool) -> Iterator[str]:
        """What is to stand in the place of a statement."""
        text = "\n".join(statement)
        if _ASIDE.fullmatch(text):
            yield text
            return
        named = _LOCALS.match(text)
        if function := _FUNCTION.match(text):
            yield text.removeprefix("local ") if function[1] in self.told else text
        elif named is None:
            if is_once:
                yield text
            else:
                self._statements.append(text)
        else:
            yield from self._declared(named[1], text, has_value=bool(named[2]), is_once=is_once)

    def _declared(self, names: str, text: str, *, has_value: bool, is_once: bool) -> Iterator[str]:
        is_made_once = is_once or _CONSTANTS.fullmatch(names) is not None
        own = [name for name in _NAME.findall(names) if name not in self.told]
        if is_made_once and len(own) == len(_NAME.findall(names)):
            yield text
            return
        if own:
            yield f"local {', '.join(own)}"
        of_call = text.removeprefix("local ") if has_value else _without_value(names, text)
        if not is_made_once:
            self._statements.append(of_call)
        elif has_value:
            yield of_call

    def end(self) -> Iterator[str]:
        """A function of what came since the last one: at the end of each file, as a function may name sixty others."""
        if not self._statements:
            return
        lines = "\n".join(self._statements).splitlines()
        yield "calls[#calls + 1] = function()"
        yield from ("  " + line for line in lines)
        if not next(line for line in reversed(lines) if not _GOES_ON.match(line)).startswith("return"):
            yield "  return NEXT"
        yield "end"
        self._statements.clear()


def _without_value(names: str, text: str) -> str:
    nothing = ", ".join("nil" for _ in names.split(","))
    return text.replace(f"local {names}", f"{names} = {nothing}", 1)
