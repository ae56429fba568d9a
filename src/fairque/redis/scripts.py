"""Loads `lua/*.lua`: a script with what it includes and the names of its arguments, known to the server by its hash.

A line of a script may be a directive:

``--@include NAME`` is lua/lib/NAME.lua, which names its own includes. Each is joined once, where it is named first.

``--@arguments`` takes the arguments of the script apart, see `Arguments`: a local for each.

``--@fields TYPE VARIABLE`` does the same with a list of such values in the arguments; ``--@fields TYPE VARIABLE: A B``
with some of the fields only.

``--@inside`` makes one function of all that follows. At each call, Lua looks through all open locals for those that a
function uses, but finds at once what the outer function uses as well. A function has room for 200 locals of its own.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.resources import files
from typing import Any, NamedTuple

__all__ = ["MOST_LOADS", "Script", "load"]

CORE = "fairque.redis"
MOST_LOADS = 3
"""Of one call: a server that takes over may not know the script, and so may the next one."""
_WIDTH = 118
_ONLY_READS = b"#!lua flags=no-writes"
_DIRECTIVE = re.compile(r"( *)--@(\w+)(?: (.+))?")


_CALL = "local call = redis.call\n"
_CALL_THAT_TELLS = """local function call(...)
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
    source: bytes
    sha: bytes
    only_reads: bool

    @property
    def telling(self) -> bytes:
        """The same, ever so slower: of a key of a wrong type its error tells the name."""
        return self.source.replace(_CALL.encode(), _CALL_THAT_TELLS.replace("SCRIPT", self.name).encode(), 1)


@cache
def load(name: str, package: str = CORE) -> Script:
    """The script of `lua/{name}.lua` in a package, whose module `arguments` has the types of its arguments.

    Raises:
        ValueError: An include includes itself, or a directive names what there is not.
    """
    source = "\n".join(_Joiner(name, package).script()).encode()
    sha = hashlib.sha1(source, usedforsecurity=False).hexdigest().encode()
    return Script(name, source, sha, source.startswith(_ONLY_READS))


class _Joiner:
    def __init__(self, script: str, package: str) -> None:
        self._script, self._package = script, package
        self._types: Any = importlib.import_module(f"{package}.arguments")
        self._arguments = script.title().replace("_", "")
        self._joined: set[str] = set()
        self._open: list[str] = []
        self._functions = 0
        self._directives: dict[str, Callable[[str], Iterator[str]]] = {
            "include": self._include,
            "inside": lambda _: self._begin_function(),
            "arguments": lambda _: _unpacking(self._types, self._arguments),
            "fields": partial(_fields, self._types),
        }

    def script(self) -> Iterator[str]:
        yield from self.lines(self._package, f"{self._script}.lua")
        yield from ["end)()"] * self._functions

    def _begin_function(self) -> Iterator[str]:
        self._functions += 1
        yield "return (function()"

    def lines(self, package: str, path: str) -> Iterator[str]:
        for line in (files(package) / "lua" / path).read_text(encoding="utf-8").splitlines():
            if (found := _DIRECTIVE.fullmatch(line)) is None:
                yield line
            else:
                indent, directive, words = found.groups()
                yield from (made and indent + made for made in self._directives[directive](words or ""))

    def _include(self, name: str) -> Iterator[str]:
        if name in self._open:
            raise ValueError(f"Lua includes run in a circle: {' → '.join([*self._open, name])}")
        if name not in self._joined:
            self._joined.add(name)
            self._open.append(name)
            yield from ("", f"-- lib/{name}.lua")
            yield from self.lines(CORE, f"lib/{name}.lua")
            self._open.pop()


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
    name, variable, *wanted = words.replace(":", "").split()
    fields = _annotations(types, name)
    if unknown := set(wanted) - set(fields):
        raise ValueError(f"{name} has no {', '.join(sorted(unknown))}")
    yield from _locals(fields, variable, wanted or list(fields))


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
