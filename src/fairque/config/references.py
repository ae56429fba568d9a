"""``${NAME}`` and ``${NAME:-default}`` in the texts of files, for environment variables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fairque.config.field import Text, Unusable, WrongValue

__all__ = ["filled_in", "names_in"]

_REFERENCE = re.compile(r"\$(\$\{)|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}|\$\{")


def names_in(value: object) -> list[str]:
    """The variables that a text refers to, or the texts of a list."""
    texts = [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
    return sorted({found[2] for text in texts for found in _REFERENCE.finditer(text) if found[2]})


def filled_in(value: Any, environ: Mapping[str, str]) -> Any:
    """The value with those of the variables that it refers to, or `Unusable`. ``$${`` is a plain ``${``."""
    try:
        if isinstance(value, list):
            return [_filled_in(entry, environ) if isinstance(entry, str) else entry for entry in value]
        if isinstance(value, str):
            return Text(_filled_in(value, environ)) if names_in(value) else _filled_in(value, environ)
    except WrongValue as wrong:
        return Unusable(str(wrong))
    return value


def _filled_in(text: str, environ: Mapping[str, str]) -> str:
    def value_of(found: re.Match[str]) -> str:
        escaped, name, default = found.groups()
        if escaped:
            return "${"
        if name is None:
            raise WrongValue("a variable is written ${NAME} or ${NAME:-default}, and a plain ${ as $${")
        if name not in environ and default is None:
            raise WrongValue(f"the environment variable {name} is not set")
        return environ.get(name) or default or ""

    return _REFERENCE.sub(value_of, text)
