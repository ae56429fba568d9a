"""Shows the reference how structs are made, from their fields: they have no ``__init__`` of their own to be read."""

from typing import Any

import griffe

STRUCTS = {"Struct", "Section"}
"""msgspec's, and that of the configuration."""


class Structs(griffe.Extension):
    """Gives each struct the ``__init__`` that msgspec makes for it."""

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        if "__init__" not in cls.members and {str(base).rpartition(".")[2] for base in cls.bases} & STRUCTS:
            init = griffe.Function("__init__", parameters=_parameters(cls), returns="None")
            cls.set_member("__init__", init)


def _parameters(cls: griffe.Class) -> griffe.Parameters:
    is_named = str(cls.keywords.get("kw_only")) == "True"
    kind = griffe.ParameterKind.keyword_only if is_named else griffe.ParameterKind.positional_or_keyword
    fields = (member for member in cls.members.values() if isinstance(member, griffe.Attribute))
    return griffe.Parameters(
        *(
            griffe.Parameter(field.name, annotation=field.annotation, kind=kind, default=field.value)
            for field in fields
            if field.annotation is not None and "property" not in field.labels
        )
    )
