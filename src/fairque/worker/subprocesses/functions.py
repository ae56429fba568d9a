"""`Functions`: how a subprocess finds the function of a body."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from contextlib import AbstractContextManager
from io import open_code
from pathlib import Path
from types import ModuleType
from typing import Any

from fairque.errors import ConfigError, InvalidInput
from fairque.importing import importing
from fairque.tasks.function import TaskFunction
from fairque.tasks.registry import get_function
from fairque.worker.subprocesses.frames import Entered, Start

__all__ = ["Functions"]

_MAIN = "__mp_main__"
"""The script of the worker has this name here, as with `multiprocessing`: its main guard keeps it from running."""


class Functions:
    """By registered name, once the module is imported.

    Args:
        start: It names the script of the worker.
    """

    def __init__(self, start: Start) -> None:
        self._start = start
        self._stopped: ConfigError | None = None
        sys.argv[:], sys.path[:] = start.argv, start.path

    def find(self, module: str, qualname: str, name: str) -> TaskFunction[Any, Any]:
        """Raises `InvalidInput`, and whatever the module raises."""
        registered = get_function(name)
        if registered is not None:
            return registered
        found: Any = self._module(module)
        found = get_function(name) or _attribute(found, qualname)
        if isinstance(found, TaskFunction):
            return found
        if self._stopped is not None:
            raise self._stopped
        raise InvalidInput(
            f"the subprocess imported {module} and found no task {name!r} there: define it at the top of its module"
        )

    def manager(self, entered: Entered) -> AbstractContextManager[Any]:
        """What a body is to run within. Raises what its module and its function raise."""
        function: Any = _attribute(self._module(entered.module), entered.qualname)
        made: AbstractContextManager[Any] = function(entered.given)
        return made

    def _module(self, name: str) -> ModuleType:
        return self._main() if name == "__main__" else importlib.import_module(name)

    def _main(self) -> ModuleType:
        """The script of the worker, run under another name, up to where it would use a queue."""
        if _MAIN in sys.modules:
            return sys.modules[_MAIN]
        file = self._start.main_file
        if file is None or not Path(file).is_file():
            raise InvalidInput("a subprocess cannot read what was typed in: put its tasks into a module")
        with open_code(str(Path(file).resolve())) as source:
            code = compile(source.read(), file, "exec")
        main = self._new_main(file)
        sys.modules["__main__"] = sys.modules[_MAIN] = main
        with importing(file) as reading:
            try:
                exec(code, main.__dict__)
            except BaseException:
                if reading.stopped is None:
                    del sys.modules[_MAIN]
                    raise
        self._stopped = reading.stopped
        return main

    def _new_main(self, file: str) -> ModuleType:
        main = ModuleType(_MAIN)
        main.__file__ = file
        if self._start.main_name is not None:
            main.__spec__ = importlib.util.find_spec(self._start.main_name)
            main.__package__ = self._start.main_name.rpartition(".")[0]
        return main


def _attribute(found: Any, qualname: str) -> Any:
    """`python -m` gives the functions of its module another name here."""
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found
