"""``FAIRQUE_…`` environment variables, put on top of a configuration.

``FAIRQUE_<SECTION>_<FIELD>`` sets a field: ``FAIRQUE_REDIS_URL``, ``FAIRQUE_QUEUE_RESULT_TTL``. Workers are counted
from 0: ``FAIRQUE_WORKERS_0_PROCESSES``. Lists have commas between their entries, or are JSON arrays. An empty variable
counts as one that is not set.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping

from fairque.config.sources import Node, Problems

__all__ = ["PREFIX", "put_on_top"]

PREFIX = "FAIRQUE_"
_OTHERS = re.compile(r"FAIRQUE_(TRACEBACK|LIFELINE|DEMO_QUEUE|TEST_.*)")
"""What other parts of fairque read."""
_OF_KUBERNETES = re.compile(r".*_SERVICE_(HOST|PORT(_.*)?)|.*_PORT_[0-9]+_(TCP|UDP)(_.*)?")
"""It sets these in every pod, for a service whose name begins with fairque."""

Fields = Mapping[str, Collection[str]]


def put_on_top(
    tree: Node,
    environ: Mapping[str, str],
    fields: Fields,
    lists: Collection[str],
    known: Collection[str],
    problems: Problems,
) -> None:
    """Set in `tree` what the environment says.

    Args:
        tree: Of the whole configuration; changed.
        environ: All variables.
        fields: The names of the fields of each section.
        lists: Sections of which there are several, with a number each.
        known: Variables that the files refer to, which may have any name.
        problems: Takes unknown variables.
    """
    for name in sorted(environ, key=_by_number):
        value = environ[name]
        if not name.startswith(PREFIX) or not value or _is_of_others(name, value):
            continue
        path = _path_of(name, fields, lists)
        if path is not None:
            _set(tree, path, Node(value, name, "text"), problems)
        elif name not in known:
            problems.add(name, "", f"unknown variable{_hint(name, environ, fields, lists)}")


def _is_of_others(name: str, value: str) -> bool:
    is_address = name.endswith("_PORT") and value.startswith(("tcp://", "udp://", "sctp://"))
    return is_address or _OTHERS.fullmatch(name) is not None or _OF_KUBERNETES.fullmatch(name) is not None


def _path_of(name: str, fields: Fields, lists: Collection[str]) -> list[str] | None:
    section, _, field = name.removeprefix(PREFIX).lower().partition("_")
    path = [section]
    if section in lists:
        number, _, field = field.partition("_")
        if not re.fullmatch("[0-9]{1,4}", number):
            return None
        path.append(number)
    return [*path, field] if field in fields.get(section, ()) else None


def _set(tree: Node, path: list[str], value: Node, problems: Problems) -> None:
    """An entry of a list is changed, or added where it is the next one."""
    section = _child(tree, path[0], {} if len(path) == 2 else [])
    if len(path) == 3 and isinstance(section.content, list):
        number = int(path[1])
        if number > len(section.content):
            text = f"there is no {path[0]}[{number - 1}] before it: {path[0]} are counted from 0"
            problems.add(value.origin, f"{path[0]}[{number}]", text)
            return
        if number == len(section.content):
            section.content.append(Node({}, value.origin))
        section = section.content[number]
        section.content = {} if section.content is None else section.content
    if isinstance(section.content, dict):  # else it is reported with its type
        section.content[path[-1]] = value


def _child(tree: Node, key: str, empty: object) -> Node:
    node: Node | None = tree.content.get(key)
    if node is None or node.content is None:
        node = tree.content[key] = Node(empty, "")
    return node


def _hint(name: str, environ: Mapping[str, str], fields: Fields, lists: Collection[str]) -> str:
    known = []
    for section, names in fields.items():
        numbers = {found[1] for each in environ if (found := re.match(rf"{PREFIX}{section.upper()}_([0-9]+)_", each))}
        places = [f"{section}_{number}" for number in sorted(numbers | {"0"})] if section in lists else [section]
        known += [f"{PREFIX}{place}_{field}".upper() for place in places for field in names]
    near = difflib.get_close_matches(name, known, 1, cutoff=0.8)
    return f"; did you mean {near[0]}?" if near else "; those that begin with FAIRQUE_ are fields of the configuration"


def _by_number(name: str) -> tuple[int, str]:
    """The first workers first."""
    found = re.search("_([0-9]{1,4})_", name)
    return (int(found[1]) if found else -1, name)
