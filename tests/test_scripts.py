"""The Lua scripts: how they are joined, what names their arguments have, and how they look."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

import fairque.redis.arguments
import fairque.testing.arguments
from fairque.redis import scripts
from fairque.redis.arguments import Arguments, Values, encode
from fairque.redis.once import HEAD, TAIL
from fairque.redis.scripts import load
from tests.support.calls import make_known
from tests.support.render_scripts import SNAPSHOTS, rendered
from tests.support.render_scripts import scripts as all_scripts
from tests.support.resp import RedisError

if TYPE_CHECKING:
    from tests.support.servers import Server

PACKAGE = "scripts_of_a_test"
WRITE = Callable[..., None]

ARGUMENTS = """
from __future__ import annotations
from fairque.redis.arguments import Arguments, Item, Value

class Pair(Item, frozen=True):
    '''Two things.'''
    name: str
    data: Value

class Told(Arguments, frozen=True):
    '''number: any.'''
    text: str
    number: float | None
    is_on: bool
    pairs: list[Pair]
    data: Value
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WRITE]:
    """Write the scripts of a package of the test's own, whose includes are its own as well."""

    def write(arguments: str = ARGUMENTS, **sources: str) -> None:
        (tmp_path / PACKAGE / "lua" / "lib").mkdir(parents=True)
        (tmp_path / PACKAGE / "__init__.py").touch()
        (tmp_path / PACKAGE / "arguments.py").write_text(arguments)
        for name, source in sources.items():
            path = name.replace("lib_", "lib/")
            (tmp_path / PACKAGE / "lua" / f"{path}.lua").write_text(source if "lib/" in path else f"#!lua\n{source}")

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(scripts, "CORE", PACKAGE)
    yield write
    for name in [name for name in sys.modules if name.startswith(PACKAGE)]:
        del sys.modules[name]
    load.cache_clear()
    scripts._words.cache_clear()
    scripts.lines_of.cache_clear()


def lines(name: str) -> list[str]:
    """What its file and those that it includes were made into."""
    source = load(name, PACKAGE).source.decode()
    made = source.partition(HEAD)[2].partition(TAIL)[0]
    return [line for line in made.splitlines() if line and not line.startswith("--")]


# Includes


def test_an_include_is_joined_once_where_it_is_named_first(write: WRITE) -> None:
    write(
        told="--@include left\n--@include right\nlocal END = LEFT + RIGHT",
        lib_left="--@include base\nlocal LEFT = BASE",
        lib_right="--@include base\nlocal RIGHT = BASE",
        lib_base="local BASE = 1",
    )
    assert lines("told") == ["local BASE = 1", "local LEFT = BASE", "local RIGHT = BASE", "local END = LEFT + RIGHT"]


def test_what_follows_a_part_can_be_a_function_that_is_inside_of_it(write: WRITE) -> None:
    write(told="--@include base\nlocal END = 1", lib_base="local BASE = 1\n--@inside")
    assert lines("told") == ["local BASE = 1", "return (function()", "local END = 1"]
    assert load("told", PACKAGE).source.endswith(b"end)()")


def test_functions_and_constants_are_made_once_and_all_else_by_each_call_in_its_order(write: WRITE) -> None:
    write(
        told="""
local MOST = 2
local known = {}
local function put(it)
  known[#known + 1] = it

  return #known
end
local last -- of this call
--@once
local slot
function slot()
  return last
end
if not put(1) then
  return 0
end
last = put(2)
return slot()"""
    )
    assert lines("told") == [
        "local MOST = 2",
        "local known",
        "local function put(it)",
        "  known[#known + 1] = it",
        "  return #known",
        "end",
        "local last",
        "local slot",
        "function slot()",
        "  return last",
        "end",
        "calls[#calls + 1] = function()",
        "  known = {}",
        "  last = nil -- of this call",
        "  if not put(1) then",
        "    return 0",
        "  end",
        "  last = put(2)",
        "  return slot()",
        "end",
    ]


def test_what_no_other_file_names_is_seen_by_none(write: WRITE) -> None:
    write(
        told="--@include part\nreturn put()",
        lib_part="-- A part.\n--@once\nlocal slot\nlocal MOST, LEAST = 2, 1\n"
        "local known, seen = {}, MOST\nlocal function get() return known end\n"
        "local function put() return get() end",
        lib_other="local of_other = LEAST",
    )
    assert lines("told") == [
        "local LEAST",
        "local put",
        "do",
        "local slot",
        "local MOST",
        "MOST, LEAST = 2, 1",
        "local known, seen",
        "local function get() return known end",
        "function put() return get() end",
        "calls[#calls + 1] = function()",
        "  known, seen = {}, MOST",
        "  return NEXT",
        "end",
        "end",
        "calls[#calls + 1] = function()",
        "  return put()",
        "end",
    ]


def test_no_call_sees_what_another_one_left_not_even_one_that_failed(write: WRITE, server: Server) -> None:
    write(
        told="""
--@include base
local found = value == nil and 'nothing' or value
value, before[1] = ARGV[1], ARGV[1]
if ARGV[1] == 'fail' then error({ err = 'ERR failed' }) end
return found .. ' ' .. #before""",
        lib_base="local value\nlocal before = {}\nlocal seen = before[1]\nif seen then return 'seen' end",
    )
    script = load("told", PACKAGE)
    make_known(server.execute, [script])

    def told(argument: str) -> Any:
        return server.execute("FCALL", script.function.decode(), 0, argument)

    assert told("a") == told("b") == b"nothing 1"
    with pytest.raises(RedisError, match="failed"):
        told("fail")
    assert told("c") == b"nothing 1"
    server.execute("FUNCTION", "DELETE", script.function.decode())


def test_the_library_of_a_script_is_its_source_without_comments(write: WRITE, server: Server) -> None:
    write(told="-- Told.\n-- more\nlocal ONE = 1\n\n-- A remark.\nreturn ONE + 1")
    script = load("told", PACKAGE)
    assert b"--" not in script.library
    make_known(server.execute, [script])
    assert server.execute("FCALL", script.function.decode(), 0) == server.execute("EVAL", script.source, 0) == 2
    server.execute("FUNCTION", "DELETE", script.function.decode())


def test_a_script_that_does_not_say_which_language_it_is_in_is_refused(write: WRITE) -> None:
    write(told="", lib_other="return 1")
    with pytest.raises(ValueError, match=r"lib/other.lua begins with 'return 1', not with"):
        load("lib/other", PACKAGE)


def test_includes_that_run_in_a_circle_are_an_error_that_shows_it(write: WRITE) -> None:
    write(told="--@include a", lib_a="--@include b", lib_b="--@include c", lib_c="--@include a")
    with pytest.raises(ValueError, match="circle: a → b → c → a"):
        load("told", PACKAGE)


def test_every_include_stands_before_the_arguments_so_that_it_cannot_read_them() -> None:
    for script in all_scripts():
        after = script.source.decode().partition("local args =")[2]
        assert "-- lib/" not in after, script.name


# Arguments


def test_arguments_arrive_as_they_were_sent(write: WRITE, server: Server) -> None:
    write(
        told="""
--@arguments
local found = { text, number and string.format('%.17g', number) or 'none', tostring(is_on), data, #pairs }
for _, pair in ipairs(pairs) do
  --@fields Pair pair
  found[#found + 1] = name .. '=' .. data
end
return found"""
    )
    source = load("told", PACKAGE).source
    types = sys.modules[f"{PACKAGE}.arguments"]

    def told(*fields: Any, values: Values) -> Any:
        return server.execute("EVAL", source, 0, encode(types.Told(*fields)), *values)

    values = Values()
    pairs = [types.Pair("é" * 20, values.put(b"\x00\xff")), types.Pair("", values.put(b""))]
    everything = told("x" * 70_000, 2**53 - 1, True, pairs, values.put(b"\r\n"), values=values)
    assert everything == [
        b"x" * 70_000,
        b"9007199254740991",
        b"true",
        b"\r\n",
        2,
        "é".encode() * 20 + b"=\x00\xff",
        b"=",
    ]
    assert told("", None, False, [], 0, values=Values()) == [b"", b"none", b"false", b"", 0]


@pytest.mark.parametrize("count", [0, 1, 15, 16, 70_000])
def test_a_list_that_is_packed_by_itself_is_taken_out_one_by_one(write: WRITE, server: Server, count: int) -> None:
    write(
        lib_packed=(files("fairque.redis") / "lua/lib/packed.lua").read_text(),
        told="""
--@include packed
--@arguments
local packed, sizes, names = data, 0, {}
local count, at = list_in(packed)
for n = 1, count do
  --@unpacked Pair packed at
  names[n], sizes, at = name, sizes + #data, after
end
return { count, sizes, unpack(names, math.max(1, count - 2)) }""",
    )
    source, values = load("told", PACKAGE).source, Values()
    types = sys.modules[f"{PACKAGE}.arguments"]
    data = values.put(b"x")
    pairs = [types.Pair(f"é{n}", n % 2 and data) for n in range(count)]
    told = encode(types.Told("", None, False, [], values.put(encode(pairs))))
    names = [f"é{n}".encode() for n in range(count)]
    assert server.execute("EVAL", source, 0, told, *values) == [count, count // 2, *names[-3:]]


def test_fields_can_be_taken_one_by_one(write: WRITE) -> None:
    write(told="for _, it in ipairs(pairs) do\n  --@fields Pair it: data\nend")
    assert lines("told")[2:-3] == ["    local data = ARGV[it[2]] or ''"]


@pytest.mark.parametrize(
    ("source", "error"), [("--@fields Pair it: date", "Pair has no date"), ("--@fields Pear it", "has no Pear")]
)
def test_a_name_that_arguments_do_not_have_is_an_error(write: WRITE, source: str, error: str) -> None:
    write(told=source)
    with pytest.raises(ValueError, match=error):
        load("told", PACKAGE)


@pytest.mark.parametrize("module", [fairque.redis.arguments, fairque.testing.arguments], ids=lambda it: it.__name__)
def test_each_script_has_arguments_and_each_arguments_a_script(module: ModuleType) -> None:
    assert module.__file__ is not None
    found = {path.stem for path in Path(module.__file__).parent.glob("lua/*.lua")}
    types = [it for it in vars(module).values() if isinstance(it, type) and issubclass(it, Arguments)]
    assert {it.script for it in types if it is not Arguments} == found


# What they look like


def test_each_script_opens_with_purpose_keys_reply_and_cost() -> None:
    header = re.compile(r"#!lua.*\n-- [A-Z].*\n(?:--.*\n)*-- KEYS\[1\]  state\n-- Returns  .*\n(?:--.*\n)*-- Cost  ")
    for script in all_scripts():
        assert header.match(script.source.decode()), script.name


def test_the_snapshots_show_each_script_as_redis_gets_it() -> None:
    kept = {path.name: path.read_text(encoding="utf-8") for path in SNAPSHOTS.iterdir()}
    assert rendered() == kept, "look at what changed: python tests/support/render_scripts.py, then git diff"


WRITES_INTO_A_CONSTANT = re.compile(
    r"(?<![\w.])[A-Z][A-Z_]+(?:\[[^\]]*\]|\.\w+)(?:, *[A-Z_]+\[[^\]]*\])* *=(?!=)|table\.\w+\([A-Z][A-Z_]+,"
)


@pytest.mark.parametrize("package", ["fairque.redis", "fairque.testing"])
def test_no_script_writes_into_a_constant(package: str) -> None:
    """They are made once for all calls: what one call adds to them is there in all that follow, on that server."""
    lua = Path(str(files(package))) / "lua"
    written = [
        (path.name, line.strip())
        for path in lua.rglob("*.lua")
        for line in path.read_text().splitlines()
        if WRITES_INTO_A_CONSTANT.search(line)
    ]
    assert list(lua.rglob("*.lua"))
    assert not written
