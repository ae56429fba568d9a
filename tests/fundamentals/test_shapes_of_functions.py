"""Functions behind wrappers, functions that are defined again, and what is no function."""

import functools
import importlib
import subprocess
import sys

import pytest

from fairque import DuplicateTask, InvalidInput, Task, TaskQueue, Worker, current_task, task
from fairque.tasks.options import NO_OPTIONS
from fairque.tasks.registry import registry, unregister
from tests.support.eventually import eventually


def traced(fn):
    @functools.wraps(fn)
    def inner(*args, **kwargs):
        return fn(*args, **kwargs)

    return inner


async def test_async_functions_run_behind_plain_wrappers(queue: TaskQueue):
    async def double(n: int) -> int:
        return 2 * n

    kinds = {"wrapped": traced(double), "static": staticmethod(double), "both": traced(traced(double))}
    made = [task(name=name)(fn) for name, fn in kinds.items()]
    made.append(task(name="on the loop", run_in="loop")(traced(double)))
    handles = await queue.enqueue_many([each(4) for each in made], user_id="anna")
    await Worker(queue).run_until_idle()
    assert [await handle.result(20) for handle in handles] == [8] * 4


async def test_a_parameter_may_be_called_self(queue: TaskQueue):
    @task
    async def keep(**data: int) -> dict[str, int]:
        return data

    handle = await queue.enqueue(keep(self=1), user_id="anna")
    await Worker(queue).run_until_idle()
    assert await handle.result(20) == {"self": 1}


@pytest.mark.parametrize("thing", [max, dict.get, classmethod(lambda cls: cls), 42, int, functools.partial(print)])
def test_what_is_no_function_is_refused(thing):
    with pytest.raises(InvalidInput, match="only a function"):
        task(thing)


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path / "module_that_changes.py"
    sys.modules.pop("module_that_changes", None)
    unregister("module_that_changes.work")


def test_a_module_that_is_imported_again_replaces_its_functions(module):
    code = "from fairque import task\n@task\ndef work(): return {}\n{}"
    module.write_text(code.format(1, "raise RuntimeError"))
    with pytest.raises(RuntimeError):
        importlib.import_module("module_that_changes")
    module.write_text(code.format(22, ""))
    importlib.invalidate_caches()
    imported = importlib.import_module("module_that_changes")
    assert registry["module_that_changes.work"].fn() == 22
    module.write_text(code.format(333, ""))
    importlib.reload(imported)
    assert registry["module_that_changes.work"].fn() == 333


def test_two_functions_made_of_the_same_code_are_two():
    def make(n: int):
        @traced
        def job() -> int:
            return n

        return task(job)

    first = make(1)
    with pytest.raises(DuplicateTask):
        make(2)
    assert registry[first.name] is first


def test_a_file_that_runs_under_two_names_is_told_with_both(module):
    module.write_text("from fairque import task\n@task(name='module_that_changes.work')\ndef work(): ...\n")
    importlib.import_module("module_that_changes")
    code = compile(module.read_text(), str(module), "exec")
    with pytest.raises(DuplicateTask, match=r"runs under two names, as module_that_changes and another"):
        exec(code, {"__name__": "another"})


def test_a_file_whose_modules_differ_in_name_is_told_with_both_tasks(tmp_path, monkeypatch, caplog):
    file = tmp_path / "somewhere" / "module_of_two.py"
    file.parent.mkdir()
    file.write_text("from fairque import task\n@task\ndef work(): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(file.parent))
    try:
        importlib.import_module("module_of_two")
        assert not caplog.text
        importlib.import_module("somewhere.module_of_two")
        assert "'module_of_two.work' and 'somewhere.module_of_two.work'" in caplog.text
    finally:
        for name in ("module_of_two", "somewhere.module_of_two"):
            sys.modules.pop(name, None)
            unregister(f"{name}.work")


def test_a_script_has_the_name_of_its_package(tmp_path):
    script = tmp_path / "package" / "inner" / "script.py"
    script.parent.mkdir(parents=True)
    for folder in (script.parent, script.parent.parent):
        (folder / "__init__.py").touch()
    script.write_text("from fairque import task\n@task\ndef work(): ...\nprint(work.name)\n")
    for command in ([script], ["-m", "package.inner.script"]):
        ran = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=tmp_path, check=True)
        assert ran.stdout.strip() == "package.inner.script.work"


async def unknown_name(queue: TaskQueue, task_id: str) -> str:
    found = await queue.explain("anna", task_id)
    return next((each.text for each in found.waiting if each.reason == "unknown-task"), "")


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("tasks.resize", "only 'app.tasks.resize': a module has another name as a script"),
        ("root.app.tasks.resize", "only 'app.tasks.resize'"),
        ("app.tasks.resise", "did you mean 'app.tasks.resize'?"),
        ("something else", ""),
        ("x" * 512, ""),
    ],
)
async def test_a_name_that_nobody_knows_is_told_with_one_that_is_near(queue: TaskQueue, caplog, asked, told):
    @task(name="app.tasks.resize")
    async def resize() -> None: ...

    handle = await queue.enqueue(Task(asked, b"\x90", None, None, NO_OPTIONS), user_id="anna")
    async with Worker(queue, worker_id="w"):
        await eventually(lambda: f"no task {asked!r} here" in caplog.text)
        waiting = await eventually(functools.partial(unknown_name, queue, handle.task_id))
    for text in (caplog.text, waiting):
        assert told in text
        assert told or "resize" not in text
    await handle.cancel()


async def test_progress_that_is_a_little_too_much_is_all_of_it(queue: TaskQueue):
    @task
    async def parts() -> None:
        done = 0.0
        for _ in range(9):
            done += 1 / 9
            current_task().progress(done)
        current_task().progress(-0.1)

    handle = await queue.enqueue(parts(), user_id="anna")
    await Worker(queue).run_until_idle()
    assert await handle.result(20) is None
