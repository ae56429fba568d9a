"""Loads `lua/*.lua`: a script with what it includes and the names of its arguments, as a function of a library that the
server knows by the hash of its text.

A line of a script may be a directive:

``--@include NAME`` is lua/lib/NAME.lua, which names its own includes. Each is joined once, where it is named first.

``--@arguments`` takes the arguments of the script apart, see `Arguments`: a local for each.

``--@fields TYPE VARIABLE`` does the same with a list of such values in the arguments; ``--@fields TYPE VARIABLE: A B``
with some of the fields only. ``--@put`` is the other way: locals of these names become the fields of a list.

``--@unpacked TYPE PACKED AT`` takes such a value out of what is packed by itself, behind so many bytes, see
lib/packed.lua: a local for each field, and `after`, behind how many bytes the next one stands.

``--@inside`` makes one function of all that follows: a function has room for 200 locals of its own. ``--@do`` and
``--@end`` are a block, whose locals others need not know.

``--@once``: the statement that follows is made when a server loads the script, not by each call, see `Calls`.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from itertools import takewhile
from typing import Any, NamedTuple

from fairque.redis.once import HEAD, TAIL, Calls, names_in, split

__all__ = ["CORE", "MOST_LOADS", "Script", "lines_of", "load"]

CORE = "fairque.redis"
MOST_LOADS = 3
"""Of one call: a server that takes over may not know the script, and so may the next one."""
_WIDTH = 118
_DIRECTIVE = re.compile(r"( *)--@(\w+)(?: (.+))?")
_OPENING = re.compile(r"|--.*")
_BLOCK = re.compile(r"--@(?:include|inside|do)\b")
_FLAGS = re.compile(r"#!lua(?: flags=([a-z,-]+))?")
_COMMENT = re.compile(r" *(?:--.*)?")
_ENTRY = "@entry"


_CALL = "  call = redis.call\n"
_CALL_THAT_TELLS = """  function call(...)
  local reply = redis.pcall(...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  local words, keys = { ... }, {}
  for _, word in ipairs(words) do
    if string.find(word, string.sub(KEYS[1], 1, -6), 1, true) == 1 then keys[#keys + 1] = word end
  end
  if string.find(reply.err, '^WRONGTYPE') then
    reply.err = string.format('%s: %s, by %s in %s.lua', reply.err, table.concat(keys, ' or '), words[1], [[SCRIPT]])
  end
  error(reply, 0)
end
"""


class Script(NamedTuple):
    name: str
    function: bytes
    """What a server that has its library calls it."""
    library: bytes
    source: bytes
    """The same for EVAL, and for readers."""
    only_reads: bool

    def called(self, keys: Sequence[str], args: Sequence[bytes]) -> tuple[bytes | str, ...]:
        """The command that calls it, where it is known. For the keys see `Keys.of_calls`."""
        return self._by(b"FCALL"), self.function, b"%d" % len(keys), *keys, *args

    def spelled_out(self, keys: Sequence[str], args: Sequence[bytes]) -> tuple[bytes | str, ...]:
        """The same for a server that does not know it and takes no library, as it takes no writes just then: what
        reads or frees memory goes on.
        """
        return self._by(b"EVAL"), self.source, b"%d" % len(keys), *keys, *args

    def told(self, keys: Sequence[str], args: Sequence[bytes]) -> tuple[bytes | str, ...]:
        """The same, ever so slower: of a key of a wrong type its error tells the name."""
        telling = self.source.replace(_CALL.encode(), _CALL_THAT_TELLS.replace("SCRIPT", self.name).encode(), 1)
        return self._by(b"EVAL"), telling, b"%d" % len(keys), *keys, *args

    def _by(self, command: bytes) -> bytes:
        """Who may only read may call what only reads."""
        return command + b"_RO" if self.only_reads else command

    @property
    def loading(self) -> tuple[bytes, ...]:
        """The command that makes it known to a server."""
        return b"FUNCTION", b"LOAD", b"REPLACE", self.library


@cache
def load(name: str, package: str = CORE) -> Script:
    """The script of `lua/{name}.lua` in a package, whose module `arguments` has the types of its arguments.

    Raises:
        ValueError: An include includes itself, or a directive names what there is not.
    """
    body = list(_Joiner(name, package).script())
    flags = _FLAGS.fullmatch(body[0])
    if flags is None:
        raise ValueError(f"{name}.lua begins with {body[0]!r}, not with '#!lua' or '#!lua flags=...'")
    digest = hashlib.sha1("\n".join(body).encode(), usedforsecurity=False).hexdigest()
    function = f"fairque_{name}_{digest[:16]}"
    source = "\n".join(body).replace(HEAD, f"local keys_of_call, values_of_call = KEYS, ARGV\n{HEAD}", 1)
    return Script(
        name,
        function.encode(),
        _library(function, flags[1] or "", body[1:]).encode(),
        source.replace(_ENTRY, "return run(keys_of_call, values_of_call)").encode(),
        "no-writes" in body[0],
    )


def _library(function: str, flags: str, body: list[str]) -> str:
    """Servers keep it: without comments it is half as long."""
    told = ", ".join(f"'{flag}'" for flag in flags.split(",") if flag)
    entry = f"redis.register_function({{ function_name = '{function}', callback = run, flags = {{ {told} }} }})"
    code = (line for line in "\n".join(body).splitlines() if not _COMMENT.fullmatch(line))
    return "\n".join([f"#!lua name={function}", *code]).replace(_ENTRY, entry)


class _Joiner:
    def __init__(self, script: str, package: str) -> None:
        self._script, self._package = script, package
        self._types: Any = importlib.import_module(f"{package}.arguments")
        self._arguments = script.title().replace("_", "")
        self._joined: set[str] = set()
        self._open: list[str] = []
        self._functions = 0
        self._calls = Calls()
        self._directives: dict[str, Callable[[str], Iterator[str]]] = {
            "include": self._include,
            "inside": lambda _: self._begin_function(),
            "do": lambda _: self._in_block("do"),
            "end": lambda _: self._in_block("end"),
            "arguments": lambda _: self._parts(_unpacking(self._types, self._arguments)),
            "fields": lambda words: self._parts(_fields(self._types, words)),
            "unpacked": lambda words: self._parts(_unpacked(self._types, words)),
        }
        self._within: dict[str, Callable[[str], Iterable[str]]] = {
            "include": self._included,
            "fields": lambda words: _fields(self._types, words),
            "unpacked": lambda words: _unpacked(self._types, words),
            "put": lambda words: _put(self._types, words),
        }

    def script(self) -> Iterator[str]:
        lines = lines_of(self._package, f"{self._script}.lua")
        code = next((at for at, line in enumerate(lines) if not line.startswith(("#!", "--  ", "-- "))), len(lines))
        yield from lines[: max(1, code)]
        yield HEAD
        yield from self._parts(lines[max(1, code) :])
        yield from self._calls.end()
        yield TAIL
        yield _ENTRY
        yield from ["end)()"] * self._functions

    def _parts(self, lines: Iterable[str]) -> Iterator[str]:
        is_once = False
        for statement in split(lines):
            found = _DIRECTIVE.fullmatch(statement[0])
            if found is None:
                yield from self._calls.put(self._expanded(statement), is_once=is_once)
                is_once = False
            elif found[2] == "once":
                is_once = True
            else:
                yield from self._directives[found[2]](found[3] or "")

    def _expanded(self, lines: Iterable[str]) -> list[str]:
        """With what directives within a statement stand for."""
        made: list[str] = []
        for line in lines:
            if (found := _DIRECTIVE.fullmatch(line)) is None:
                made.append(line)
            else:
                indent, directive, words = found.groups()
                made += [each and indent + each for each in self._within[directive](words)]
        return made

    def _begin_function(self) -> Iterator[str]:
        self._functions += 1
        yield from self._in_block("return (function()")

    def _in_block(self, line: str) -> Iterator[str]:
        yield from self._calls.end()
        yield line

    def _include(self, name: str) -> Iterator[str]:
        with self._opened(name) as is_new:
            if is_new:
                yield from self._calls.end()
                yield from ("", f"-- lib/{name}.lua")
                lines = lines_of(CORE, f"lib/{name}.lua")
                opening = list(takewhile(_OPENING.fullmatch, lines))
                begin = max((at for at, line in enumerate(opening, 1) if line.startswith("--@include")), default=0)
                yield from self._parts(lines[:begin])
                yield from self._private(name, lines[begin:])

    def _private(self, name: str, lines: list[str]) -> Iterator[str]:
        """What no other file names, none can see: a function has room for 200 locals."""
        declared = names_in(lines)
        told = declared & self._words_beside(name)
        if told == declared or any(_BLOCK.match(line) for line in lines):
            yield from self._parts(lines)
            yield from self._calls.end()
            return
        yield from (f"local {each}" for each in sorted(told))
        yield "do"
        self._calls.told = told
        yield from self._parts(lines)
        yield from self._calls.end()
        self._calls.told = set()
        yield "end"

    def _words_beside(self, name: str) -> set[str]:
        """Of the script and of all includes but one."""
        return set(_words(self._package, f"{self._script}.lua")).union(
            *(_words(CORE, f"lib/{other}") for other in _includes() if other != f"{name}.lua")
        )

    def _included(self, name: str) -> list[str]:
        """Within a function, which makes all of it anew."""
        with self._opened(name) as is_new:
            return ["", f"-- lib/{name}.lua", *self._expanded(lines_of(CORE, f"lib/{name}.lua"))] if is_new else []

    @contextmanager
    def _opened(self, name: str) -> Iterator[bool]:
        if name in self._open:
            raise ValueError(f"Lua includes run in a circle: {' → '.join([*self._open, name])}")
        is_new = name not in self._joined
        self._joined.add(name)
        self._open.append(name)
        yield is_new
        self._open.pop()


def _includes() -> list[str]:
    return [path.name for path in (files(CORE) / "lua" / "lib").iterdir()]


@cache
def _words(package: str, path: str) -> frozenset[str]:
    return frozenset(re.findall(r"[A-Za-z_]\w*", "\n".join(lines_of(package, path))))


@cache
def lines_of(package: str, path: str) -> list[str]:
    """Of a file in the folder `lua` of a package. They are kept, and not to be changed: many scripts include it."""
    return (files(package) / "lua" / path).read_text(encoding="utf-8").splitlines()


def _unpacking(types: Any, name: str) -> Iterator[str]:
    yield from _comment(types, "ARGV[1] is the msgpack of ", name)
    for inner in _types_within(types, name):
        yield from _comment(types, "", inner)
    yield "local args = cmsgpack.unpack(ARGV[1])"
    yield from _locals(_annotations(types, name), "args")


def _comment(types: Any, lead: str, name: str) -> Iterator[str]:
    told = inspect.cleandoc(vars(getattr(types, name)).get("__doc__") or "")
    fields = ", ".join(f"{field}: {kind}" for field, kind in _annotations(types, name).items())
    yield from textwrap.wrap(f"{lead}{name}: {fields}", _WIDTH, initial_indent="-- ", subsequent_indent="--   ")
    yield from (f"--   {line}" for line in told.splitlines())


def _types_within(types: Any, name: str) -> list[str]:
    return re.findall(r"list\[([A-Z]\w+)\]", " ".join(_annotations(types, name).values()))


def _fields(types: Any, words: str) -> Iterator[str]:
    fields, variable, wanted = _named(types, words)
    yield from _locals(fields, variable, wanted or list(fields))


def _put(types: Any, words: str) -> Iterator[str]:
    fields, variable, names = _named(types, words)
    places = {field: at for at, field in enumerate(fields, 1)}
    yield f"{', '.join(f'{variable}[{places[name]}]' for name in names)} = {', '.join(names)}"


def _named(types: Any, words: str) -> tuple[dict[str, str], str, list[str]]:
    name, variable, *wanted = words.replace(":", "").split()
    fields = _annotations(types, name)
    if unknown := set(wanted) - set(fields):
        raise ValueError(f"{name} has no {', '.join(sorted(unknown))}")
    return fields, variable, wanted


def _unpacked(types: Any, words: str) -> Iterator[str]:
    name, packed, at = words.split()
    fields = _annotations(types, name)
    head = 1 if len(fields) < 16 else 3
    yield from textwrap.wrap(f"local after, {', '.join(fields)} =", _WIDTH, subsequent_indent="  ")
    yield f"  cmsgpack.unpack_limit({packed}, {len(fields)}, {at} + {head})"
    yield from (f"{field} = ARGV[{field}] or ''" for field, kind in fields.items() if kind == "Value")


def _locals(fields: dict[str, str], variable: str, wanted: list[str] | None = None) -> Iterator[str]:
    """What is a `Value` stands in ARGV, at the position that the field has."""
    places = {field: f"{variable}[{at}]" for at, field in enumerate(fields, 1)}
    names = wanted or list(fields)
    read = [f"ARGV[{places[name]}] or ''" if fields[name] == "Value" else places[name] for name in names]
    left, values = f"local {', '.join(names)} =", ", ".join(read)
    if len(left) + len(values) < _WIDTH:
        yield f"{left} {values}"
        return
    yield from textwrap.wrap(left, _WIDTH, subsequent_indent="  ")
    yield from textwrap.wrap(values, _WIDTH, initial_indent="  ", subsequent_indent="  ")


def _annotations(types: Any, name: str) -> dict[str, str]:
    found = getattr(types, name, None)
    if found is None:
        raise ValueError(f"{types.__name__} has no {name}")
    written = {field: kind for base in found.__mro__ for field, kind in vars(base).get("__annotations__", {}).items()}
    return {field: written[field] for field in found.__struct_fields__}
