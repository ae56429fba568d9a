"""``FAIRQUE_…`` environment variables, which come on top of all other sources.

``FAIRQUE_<SECTION>_<FIELD>`` sets a field: ``FAIRQUE_REDIS_URL``, ``FAIRQUE_QUEUE_RESULT_TTL``. Workers are counted
from 0: ``FAIRQUE_WORKERS_0_PROCESSES``. Lists have commas between their entries, or are JSON arrays. An empty variable
counts as one that is not set.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping

from fairque.config.field import Text
from fairque.config.section import SectionKind, fields_of
from fairque.config.source import Fields, Given, Problems

__all__ = ["read_environment"]

_NUMBER = re.compile("_([0-9]{1,4})_")
_OF_OTHERS = re.compile(
    r"FAIRQUE_(TRACEBACK|LIFELINE|REPORTS|DEMO_QUEUE|TEST_.*)"  # what other parts of fairque read
    r"|.*_SERVICE_(HOST|PORT(_.*)?)|.*_PORT_[0-9]+_(TCP|UDP)(_.*)?"  # Kubernetes, for a service named fairque-…
)


def read_environment(
    environ: Mapping[str, str], kinds: Mapping[str, SectionKind], referred: Collection[str], problems: Problems
) -> dict[tuple[str, int], Fields]:
    """What is given for each section; of a list, for the entry of a number.

    Args:
        environ: All variables.
        kinds: Of the sections, by name.
        referred: Variables that files refer to, which may have any name.
        problems: Takes unknown variables.
    """
    known = {
        f"FAIRQUE_{name}{'_0' if kind.is_list else ''}_{field}".upper(): (name, field)
        for name, kind in kinds.items()
        for field in fields_of(kind.section)
    }
    said: dict[tuple[str, int], Fields] = {}
    for variable, value in environ.items():
        if not variable.startswith("FAIRQUE_") or not value or _is_of_others(variable, value):
            continue
        number = int(found[1]) if (found := _NUMBER.search(variable)) else 0
        first = _NUMBER.sub("_0_", variable, count=1)
        if first in known:
            name, field = known[first]
            said.setdefault((name, number), {})[field] = Given(Text(value), variable)
        elif variable not in referred:
            near = difflib.get_close_matches(first, known, 1, cutoff=0.8)
            hint = "those that begin with FAIRQUE_ are fields of the configuration"
            if near:
                hint = f"did you mean {near[0].replace('_0_', f'_{number}_')}?"
            problems.add(variable, "", f"unknown variable; {hint}")
    return dict(sorted(said.items()))


def _is_of_others(variable: str, value: str) -> bool:
    is_address = variable.endswith("_PORT") and value.startswith(("tcp://", "udp://", "sctp://"))  # Kubernetes, too
    return is_address or _OF_OTHERS.fullmatch(variable) is not None
