"""Where a configuration comes from: files and dicts, read into trees that know the origin of each value."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import msgspec

from fairque.errors import ConfigError

__all__ = ["Node", "Problems", "fill_in", "merge", "read_dict", "read_file", "references"]

MOST_DEPTH = 8
MOST_NODES = 200_000
MOST_BYTES = 16 * 1024 * 1024
_REFERENCE = re.compile(r"\$(\$\{)|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}|\$\{")
_MERGE_TAG = "tag:yaml.org,2002:merge"
_FORMATS = {".yaml": "yaml", ".yml": "yaml", ".toml": "toml"}


class Node(msgspec.Struct, eq=False):
    """A value, a mapping or a list.

    Args:
        content: A scalar, or further nodes.
        origin: ``file:line``, the name of a variable; empty for a dict.
        form: ``"template"``: a text in which variables are to be filled in. ``"text"``: one whose type is not known.
            ``"broken"``: one that is reported already.
    """

    content: Any
    origin: str
    form: Literal["value", "template", "text", "broken"] = "value"

    def __repr__(self) -> str:
        return f"<Node from {self.origin}>"  # the content may be secret

    def plain(self) -> Any:
        """Without origins."""
        if isinstance(self.content, dict):
            return {key: node.plain() for key, node in self.content.items()}
        if isinstance(self.content, list):
            return [node.plain() for node in self.content]
        return self.content


class Problems:
    """What is wrong with a configuration: everything is reported together."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, origin: str, path: str, text: str) -> None:
        self.lines.append(": ".join(part for part in (origin, path, text) if part))

    def check(self) -> None:
        if self.lines:
            raise ConfigError("\n".join(dict.fromkeys(self.lines)))


class _Unreadable(Exception):
    """This source, or a part of it, cannot be read."""

    def __init__(self, text: str, origin: str = "", path: str = "") -> None:
        super().__init__(text)
        self.origin = origin
        self.path = path


# Files


def read_file(file: str | Path, problems: Problems, form: str | None = None) -> Node:
    """The tree in a file; the empty one where it cannot be read. `form`: ``"yaml"`` or ``"toml"``, else by suffix.

    Raises `ConfigError` when a YAML file is to be read and PyYAML is not installed.
    """
    name = str(file)
    try:
        form = form or _FORMATS.get(Path(file).suffix.lower())
        if form is None:
            raise _Unreadable("the name of a configuration file ends in .yaml, .yml or .toml")
        text = _text_of(Path(file))
        return _root(_read_yaml(text, name, problems) if form == "yaml" else _read_toml(text, name), name)
    except _Unreadable as error:
        problems.add(error.origin or name, error.path, str(error))
    return Node({}, name)


def _text_of(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            data = stream.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise _Unreadable(f"larger than {MOST_BYTES // 1024 // 1024} MB")
        return data.decode()
    except OSError as error:
        raise _Unreadable(f"cannot be read: {error.strerror or error}") from None
    except ValueError:  # bytes that are not UTF-8; a name with a null byte in it
        raise _Unreadable("cannot be read: not UTF-8") from None


def _root(node: Node, name: str) -> Node:
    if node.content is None:
        return Node({}, name)
    if not isinstance(node.content, dict):
        raise _Unreadable("a configuration is a mapping, with sections such as redis and queue")
    return node


def _read_toml(text: str, name: str) -> Node:
    try:
        return _Tree(name, "template").node(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, ValueError, RecursionError) as error:
        raise _Unreadable(f"not valid TOML: {error}") from None


def _read_yaml(text: str, name: str, problems: Problems) -> Node:
    yaml = _yaml()
    try:
        loader = yaml.SafeLoader(text)
        try:
            root = loader.get_single_node()
            return Node({}, name) if root is None else _YamlTree(yaml, loader, name, problems).node(root)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark is not None else ""
        # What it quotes may be a password that begins with a * or a !.
        reason = re.sub(r"(['\"]).*\1", "…", error.problem or "cannot be parsed", flags=re.DOTALL)
        raise _Unreadable(f"not valid YAML: {reason}", f"{name}{line}") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise _Unreadable("not valid YAML") from None


def _yaml() -> ModuleType:
    try:
        import yaml
    except ImportError:
        raise ConfigError("reading YAML needs PyYAML: pip install 'fairque[yaml]'; TOML works without it") from None
    return yaml


# Trees


def read_dict(data: Mapping[str, Any], problems: Problems) -> Node:
    """The tree in a dict; the empty one where it cannot be one."""
    try:
        if not isinstance(data, Mapping):
            raise _Unreadable(f"a configuration is a mapping, not a {type(data).__name__}")
        return _Tree("", "value").node(data)
    except _Unreadable as error:
        problems.add("", error.path, str(error))
    return Node({}, "")


class _Tree:
    """Builds the tree of one source. Bounded, because a dict may contain itself and YAML can refer to a node often."""

    def __init__(self, name: str, form_of_texts: Literal["value", "template"]) -> None:
        self._name = name
        self._form_of_texts: Literal["value", "template"] = form_of_texts
        self._count = 0

    def node(self, value: Any, path: str = "", depth: int = 0) -> Node:
        self._count_in(path, depth)
        if isinstance(value, Mapping):
            return Node(
                {self._key(key, path): self._child(key, child, path, depth) for key, child in value.items()}, self._name
            )
        if isinstance(value, (list, tuple)):
            return Node([self.node(child, path, depth + 1) for child in value], self._name)
        return Node(value, self._name, self._form_of_texts if isinstance(value, str) else "value")

    def _child(self, key: str, child: Any, path: str, depth: int) -> Node:
        return self.node(child, _joined(path, key), depth + 1)

    def _key(self, key: Any, path: str) -> str:
        if not isinstance(key, str):
            raise _Unreadable(f"keys are strings, not a {type(key).__name__}", path=path)
        return key

    def _count_in(self, path: str, depth: int) -> None:
        self._count += 1
        if depth > MOST_DEPTH or self._count > MOST_NODES:
            raise _Unreadable("nested too deeply" if depth > MOST_DEPTH else "too large", path=path)


class _YamlTree(_Tree):
    """Of nodes as PyYAML composes them, which know their lines."""

    def __init__(self, yaml: ModuleType, loader: Any, name: str, problems: Problems) -> None:
        super().__init__(name, "template")
        self._problems = problems
        self._yaml = yaml
        self._loader = loader

    def node(self, value: Any, path: str = "", depth: int = 0) -> Node:
        self._count_in(path, depth)
        origin = f"{self._name}:{value.start_mark.line + 1}"
        if isinstance(value, self._yaml.MappingNode):
            return Node(self._mapping(value, path, depth), origin)
        if isinstance(value, self._yaml.SequenceNode):
            return Node([self.node(child, path, depth + 1) for child in value.value], origin)
        scalar = self._scalar(value, origin, path)
        return Node(scalar, origin, "template" if isinstance(scalar, str) else "value")

    def _scalar(self, value: Any, origin: str, path: str) -> Any:
        try:
            return self._loader.construct_object(value)
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError):  # of a tag that does not fit
            raise _Unreadable("not a value that YAML knows", origin, path) from None

    def _mapping(self, value: Any, path: str, depth: int) -> dict[str, Node]:
        own: dict[str, Node] = {}
        inherited: dict[str, Node] = {}
        for key, child in value.value:
            origin = f"{self._name}:{key.start_mark.line + 1}"
            if not isinstance(key, self._yaml.ScalarNode):
                raise _Unreadable("keys are strings", origin, path)
            if key.tag == _MERGE_TAG:
                inherited |= self._inherited(child, path, depth)
            elif key.value in own:
                self._problems.add(origin, _joined(path, key.value), "given twice")
            else:
                own[key.value] = self.node(child, _joined(path, key.value), depth + 1)
        return inherited | own

    def _inherited(self, child: Any, path: str, depth: int) -> dict[str, Node]:
        """Of ``<<``, which takes a mapping or a list of them, the first of which wins."""
        sources = child.value if isinstance(child, self._yaml.SequenceNode) else [child]
        gathered: dict[str, Node] = {}
        for source in sources:
            self._count_in(path, depth)
            if not isinstance(source, self._yaml.MappingNode):
                raise _Unreadable("<< takes a mapping", f"{self._name}:{child.start_mark.line + 1}", path)
            gathered = self._mapping(source, path, depth + 1) | gathered
        return gathered


def _joined(path: str, key: str) -> str:
    shown = key if key.isprintable() else repr(key)
    return f"{path}.{shown}" if path else shown


# Merging


def merge(base: Node, over: Node) -> Node:
    """Mappings merge, everything else of `over` replaces. An empty section takes nothing away."""
    if over.content is None and isinstance(base.content, (dict, list)):
        return base
    if not (isinstance(base.content, dict) and isinstance(over.content, dict)):
        return over
    merged = dict(base.content)
    for key, node in over.content.items():
        merged[key] = merge(merged[key], node) if key in merged else node
    return Node(merged, over.origin)


def references(tree: Node) -> set[str]:
    """The names of the variables that the texts of a file refer to."""
    texts = [text for text, _ in _texts(tree)]
    return {found[2] for node in texts for found in _REFERENCE.finditer(node.content) if found[2]}


def fill_in(tree: Node, environ: Mapping[str, str], problems: Problems) -> None:
    """Replace ``${NAME}`` and ``${NAME:-default}`` in the texts of files; ``$${`` is a plain ``${``."""
    for node, path in _texts(tree):
        _fill_in_text(node, environ, problems, path)


def _texts(node: Node, path: str = "") -> Iterator[tuple[Node, str]]:
    """Texts of files, and their paths."""
    if isinstance(node.content, dict):
        for key, child in node.content.items():
            yield from _texts(child, _joined(path, key))
    elif isinstance(node.content, list):
        for number, child in enumerate(node.content):
            yield from _texts(child, f"{path}[{number}]")
    elif node.form == "template":
        yield node, path


def _fill_in_text(node: Node, environ: Mapping[str, str], problems: Problems, path: str) -> None:
    names: set[str] = set()
    unusable: list[str] = []
    origin = node.origin

    def value_of(found: re.Match[str]) -> str:
        escaped, name, default = found.groups()
        if escaped:
            return "${"
        if name is None:
            unusable.append("a variable is written ${NAME} or ${NAME:-default}, and a plain ${ as $${")
            return ""
        names.add(name)
        if name not in environ and default is None:
            unusable.append(f"the environment variable {name} is not set")
        return environ.get(name, "") or default or ""

    node.content = _REFERENCE.sub(value_of, node.content)
    for text in unusable:
        problems.add(origin, path, text)
    if names or unusable:
        node.form = "broken" if unusable else "text"
        node.origin = f"{origin}, {', '.join(f'${name}' for name in sorted(names))}" if names else origin
