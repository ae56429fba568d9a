"""Reads one file of a configuration, in YAML or TOML."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from fairque.errors import ConfigError

__all__ = ["read_file"]

_FORMS = {".yaml": "yaml", ".yml": "yaml", ".toml": "toml"}


def read_file(file: Path, form: str | None) -> dict[Any, Any]:
    """What a file says. `form` is ``"yaml"`` or ``"toml"``; None: as its suffix says. Raises `ConfigError`."""
    form = form or _FORMS.get(file.suffix.lower())
    if form is None:
        raise ConfigError(f"{file}: the name of a configuration file ends in .yaml, .yml or .toml")
    data = (_parse_yaml if form == "yaml" else _parse_toml)(_text_of(file), file)
    if data is not None and not isinstance(data, dict):
        raise ConfigError(f"{file}: a configuration is a mapping, with sections such as redis and queue")
    return data or {}


def _text_of(file: Path) -> str:
    try:
        return file.read_bytes().decode()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror or error}") from None
    except ValueError:  # bytes that are not UTF-8; a name with a null byte in it
        raise ConfigError(f"{file}: cannot be read: not UTF-8") from None


def _parse_toml(text: str, file: Path) -> Any:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from None


def _parse_yaml(text: str, file: Path) -> Any:
    try:
        from fairque.config.yaml_file import parse_yaml
    except ImportError:
        hint = "pip install 'fairque[yaml]'; TOML works without it"
        raise ConfigError(f"{file}: reading YAML needs PyYAML: {hint}") from None
    return parse_yaml(text, file)
