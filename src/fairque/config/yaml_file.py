"""Reads YAML into mappings that know their lines. Imported only where YAML is read: PyYAML is an extra."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from fairque.errors import ConfigError

__all__ = ["parse_yaml"]


class LinedMapping(dict[Any, Any]):
    """`lines` says where each of its values begins."""

    lines: dict[str, int]


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Keys are texts, whatever they look like, each is given once, and what ``<<`` names is put in its place."""
        node = super().compose_mapping_node(anchor)
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        inherited: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, child in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _problem("keys are strings", key)
            if key.value in own:
                raise _problem(f"{key.value} is given twice", key)
            if key.tag == "tag:yaml.org,2002:merge":
                inherited |= _inherited(child)
                continue
            key.tag = "tag:yaml.org,2002:str"
            own[key.value] = key, child
        node.value = list((inherited | own).values())
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError):  # of a tag that does not fit
            raise _problem("not a value that YAML knows", node) from None

    def construct_lined_mapping(self, node: yaml.MappingNode) -> Iterator[LinedMapping]:
        mapping = LinedMapping()
        yield mapping  # filled afterwards, because it may contain itself
        mapping.update(self.construct_mapping(node))
        mapping.lines = {key.value: child.start_mark.line + 1 for key, child in node.value}


_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_lined_mapping)


def _inherited(node: yaml.Node) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """Of a mapping, or of a list of them, the first of which wins."""
    found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for source in reversed(node.value) if isinstance(node, yaml.SequenceNode) else [node]:
        if not isinstance(source, yaml.MappingNode):
            raise _problem("<< takes a mapping, or a list of them", node)
        found |= {key.value: (key, child) for key, child in source.value}
    return found


def _problem(text: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=node.start_mark)


def parse_yaml(text: str, file: Path) -> Any:
    """Raises `ConfigError`, with the line where that is known."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        # What it quotes may be a password that begins with a * or a !.
        reason = re.sub(r"(['\"]).*\1", "…", error.problem or "cannot be parsed", flags=re.DOTALL)
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{file}{line}: not valid YAML: {reason}") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigError(f"{file}: not valid YAML") from None
