"""The README and the documentation tell the truth: what they show is run here."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import re
import shlex
import signal
import sys
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import typer

import fairque
from fairque import TaskQueue, TaskState, Worker
from fairque.checks import MAX_SECONDS
from fairque.cli.app import app
from fairque.config.codec import CodecConfig
from fairque.config.config import FairQueueConfig, QueueConfig, RedisConfig, SchedulerConfig, WorkerConfig
from fairque.config.duration import shown_duration
from fairque.config.policies import GroupConfig, LimitConfig, PolicyConfig
from fairque.config.section import Section
from fairque.tasks.registry import registry, unregister
from tests.support.eventually import eventually
from tests.support.process import ROOT, WorkerProcess
from tests.support.servers import URL_VARIABLE, Server

Start = Callable[..., Awaitable[WorkerProcess]]

QUICKSTART = ROOT / "examples" / "quickstart.py"
SHOP = ROOT / "examples" / "testing" / "shop.py"
README = "README.md"
TUTORIAL = "docs/tutorial.md"
DEPLOYING = "docs/guides/deploying.md"
WATCHING = "docs/guides/watching.md"
INSIDE = "docs/guides/inside-tasks.md"
PAGES = {
    file.relative_to(ROOT).as_posix(): file.read_text() for file in [ROOT / README, *(ROOT / "docs").rglob("*.md")]
}
COMMAND: Any = typer.main.get_command(app)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)


def file_of(block: str) -> str | None:
    """Where it belongs, by its first line."""
    found = re.match(r"# (\S+\.py)\n", block)
    return found[1] if found is not None else None


FILES = {(page, name): block for page in PAGES for block in blocks(page, "python") if (name := file_of(block))}
SNIPPETS = {
    page: [block for block in blocks(page, "python") if block != QUICKSTART.read_text() and file_of(block) is None]
    for page in PAGES
}


# Python


@pytest.fixture
def namespace(queue: TaskQueue, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Where the snippets of a page run, one after the other; their tasks are forgotten afterwards."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(SHOP.parent)
    known = set(registry)
    yield {"__name__": "readme", "queue": queue}
    sys.modules.pop("shop", None)
    for name in registry.keys() - known:
        unregister(name)


@pytest.fixture
async def worker(queue: TaskQueue) -> AsyncIterator[None]:
    async with Worker(queue):
        yield


async def run(page: str, namespace: dict[str, Any]) -> None:
    """Execute its snippets, ``await`` outside of functions included."""
    for snippet in SNIPPETS[page]:
        code = compile(snippet, page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        running = eval(code, namespace)
        if inspect.isawaitable(running):
            await running


@pytest.mark.leaves_keys("policy*", "limit*", "bytes*", "weighed")
@pytest.mark.parametrize("page", sorted(page for page in PAGES if SNIPPETS[page]))
async def test_every_snippet_of_a_page_does_what_it_says(
    page: str, namespace: dict[str, Any], queue: TaskQueue
) -> None:
    if page == "docs/guides/testing.md":  # its tasks run where it says so
        await run(page, namespace)
        await queue.purge("acme")
    else:
        async with Worker(queue):
            await run(page, namespace)


@pytest.mark.usefixtures("worker")
async def test_the_tasks_of_the_guide_end_as_it_says(
    namespace: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    await run("docs/guides/tasks.md", namespace)
    assert await namespace["later"].result(timeout=20) == "fetched example.org"
    assert [await handle.result(timeout=20) for handle in namespace["handles"][-2:]]
    assert "error ZeroDivisionError division by zero" in capsys.readouterr().out


@pytest.mark.timeout(180)
async def test_the_tutorial_runs_from_its_first_line_to_its_last(
    worker_process: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIRQUE_REDIS_URL", f"embedded://{tmp_path}/data")
    reader = Reader(worker_process, tmp_path)
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", PAGES[TUTORIAL], re.MULTILINE | re.DOTALL):
        await reader.follow(language, block)
    await reader.stop_worker()
    assert reader.commands > 10


class Reader:
    """Does what a page says in one directory: writes files, types commands, and compares what comes out."""

    def __init__(self, worker_process: Start, home: Path) -> None:
        self._start, self._home = worker_process, home
        self._worker: WorkerProcess | None = None
        self._output = ""
        self.commands = 0

    async def follow(self, language: str, block: str) -> None:
        if language == "python":
            name = file_of(block)
            assert name is not None
            (self._home / name).write_text(block)
        elif language == "sh":
            self._output = ""
            for line in block.splitlines():
                await self._type(shlex.split(line))
        else:
            assert block in self._output

    async def _type(self, words: list[str]) -> None:
        self.commands += 1
        if words[0] == "export":
            assert words[1] == "FAIRQUE_REDIS_URL=embedded://$PWD/data"
        elif words[:2] == ["fairque", "worker"]:
            await self.stop_worker()
            self._worker = await self._run(words)
            await self._worker.line("serves queue 'default'")
        else:
            process = await self._run(words)
            assert await process.wait(60) == 0, process.output
            self._output += process.output + "\n"

    async def _run(self, words: list[str]) -> WorkerProcess:
        command = words[1:] if words[0] == "python" else words
        arguments = [str(self._home / word) if word.endswith(".py") else word for word in command]
        path = os.pathsep.join([str(self._home), os.environ.get("PYTHONPATH", "")])
        return await self._start(*arguments, env={"PYTHONPATH": path})

    async def stop_worker(self) -> None:
        if self._worker is not None:
            self._worker.send(signal.SIGINT)
            assert await self._worker.wait() == 0, self._worker.output


@pytest.mark.parametrize(("page", "name"), [key for key in FILES if key[1] == "script.py"])
async def test_a_script_runs_as_it_is_shown(page: str, name: str, worker_process: Start, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(FILES[page, name])
    process = await worker_process(str(file))
    assert await process.wait() == 0, process.output
    assert process.lines


@pytest.mark.parametrize(
    ("name", "path"), [("app.py", "/users/acme/images/7"), ("two_queues.py", "/users/acme/double/7")]
)
async def test_an_app_answers_as_it_is_shown(name: str, path: str, worker_process: Start, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(FILES["docs/guides/embedding.md", name])
    process = await worker_process("uvicorn", "app:app", "--port", "0", "--app-dir", str(tmp_path))
    line = await process.line("Uvicorn running on ")
    async with httpx.AsyncClient(base_url=line.split(" on ")[1].split()[0], trust_env=False) as client:
        health = await client.get("/health")
        assert health.status_code == 200, health.text
        answer = await client.post(path)
        assert answer.status_code == 200, answer.text
        if name == "two_queues.py":
            state = await client.get(f"/users/acme/tasks/{answer.json()}")
            assert state.json() in list(TaskState)
            assert (await client.get("/users/acme/tasks/nothing")).status_code == 404
    process.send(signal.SIGTERM)
    await process.wait()


@pytest.mark.parametrize("page", [page for page, name in FILES if name == "test_shop.py"])
def test_a_test_passes_as_it_is_shown(
    page: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    monkeypatch.setenv(URL_VARIABLE, server.url)
    (pytester.path / "shop.py").write_text(FILES.get((page, "shop.py"), SHOP.read_text()))
    (pytester.path / "test_shop.py").write_text(FILES[page, "test_shop.py"])
    is_installed = any(plugin.name == "fairque" for plugin in entry_points(group="pytest11"))
    plugin = () if is_installed else ("-p", "_fairque_pytest")
    ran = pytester.runpytest_subprocess(
        *plugin, "-p", "no:valkey", "-p", "no:asyncio", "-p", "no:randomly", timeout=100
    )
    ran.assert_outcomes(passed=FILES[page, "test_shop.py"].count("\nasync def test_"))


async def test_the_worker_commands_and_the_program_serve_the_file_that_is_shown(
    worker_process: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = FILES[DEPLOYING, "myapp/tasks.py"]
    file = tmp_path / "myapp" / "tasks.py"
    file.parent.mkdir(parents=True)
    file.write_text(block)
    (tmp_path / "myapp" / "workers.py").write_text(FILES[DEPLOYING, "myapp/workers.py"])
    program = tmp_path / "serve.py"
    program.write_text(FILES[DEPLOYING, program.name])
    (tmp_path / "config").symlink_to(ROOT / "config")
    monkeypatch.setenv("FAIRQUE_REDIS_URL", f"embedded://{tmp_path}/server")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    lines = [
        line for block in blocks(DEPLOYING, "sh") for line in block.splitlines() if line.startswith("fairque worker")
    ]
    assert len(lines) == 3
    for line in [*lines, str(program)]:
        command = [str(ROOT / word) if word.startswith("config/") else word for word in line.split()]
        process = await worker_process(*command, env={"PYTHONPATH": path})
        await process.line("serves queue 'default'")
        async with TaskQueue() as queue:
            assert await queue.push_function_task("acme", tasks_of(file, "myapp.tasks")["greet"], ("ann",))
            await process.line("finished user=acme")
        process.send(signal.SIGTERM)
        assert await process.wait() == 0, process.output


def tasks_of(file: Path, module: str) -> dict[str, Any]:
    """What stands in that file; its tasks under the names under which a worker knows them, and forgotten here."""
    namespace: dict[str, Any] = {"__name__": module}
    known = set(registry)
    exec(compile(file.read_text(), file, "exec"), namespace)
    for name in registry.keys() - known:
        unregister(name)
    return namespace


@pytest.mark.parametrize(
    ("module", "name", "argument"), [("orders", "close_month", ["a", "b"]), ("reports", "render_all", 2)]
)
async def test_a_task_puts_in_others_as_it_is_shown(
    module: str, name: str, argument: Any, worker_process: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / f"{module}.py"
    file.write_text(FILES[INSIDE, file.name])
    monkeypatch.setenv("FAIRQUE_REDIS_URL", f"embedded://{tmp_path}/server")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    process = await worker_process("fairque", "worker", f"{module}:queue", env={"PYTHONPATH": path})
    await process.line("serves queue 'default'")
    async with TaskQueue() as queue:
        handle = await queue.enqueue(tasks_of(file, module)[name](argument), user_id="acme")
        assert await handle.result(timeout=20) == 2

        async def all_three() -> bool:
            return (await queue.user("acme")).finished == 3

        await eventually(all_three)
    process.send(signal.SIGTERM)
    assert await process.wait() == 0, process.output


async def test_the_quickstart_runs_as_it_is_shown(worker_process: Start) -> None:
    assert QUICKSTART.read_text() in blocks(README, "python")
    process = await worker_process("examples/quickstart.py")
    assert await process.wait() == 0, process.output
    first, second, last = process.lines
    assert first == "zoe has her logo, 200 px wide"
    served = int(re.fullmatch(r"acme had (\d+) of 1000 by then", second)[1])  # type: ignore[index]
    assert served < 200
    assert last == "in the end: 1001"


# Commands


def shown_commands(page: str) -> list[list[str]]:
    lines = [line for block in blocks(page, "sh") + blocks(page, "text") for line in block.splitlines()]
    found = [re.fullmatch(r"(?:\$ )?(?:[A-Z_]+=\S+ )*(fairque .*)", line) for line in lines]
    return [shlex.split(match[1], comments=True) for match in found if match is not None]


def mentioned_commands(page: str) -> list[list[str]]:
    return [shlex.split(text) for text in re.findall(r"(?<!`)`(fairque [^`\n]+)`(?!`)", PAGES[page])]


def named(words: list[str]) -> tuple[Any, list[str]]:
    """The command that these words call, and what they hand to it."""
    command, rest = COMMAND, words[1:]
    while rest and not rest[0].startswith("-") and hasattr(command, "commands"):
        assert rest[0] in command.commands, f"there is no command {' '.join(words)!r}"
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


@pytest.mark.parametrize("page", [page for page in PAGES if shown_commands(page)])
def test_every_command_that_is_shown_is_a_correct_call(page: str) -> None:
    for words in shown_commands(page):
        command, arguments = named(words)
        command.make_context(" ".join(words), list(arguments))  # raises for what is unknown, missing or out of range


@pytest.mark.parametrize("page", [page for page in PAGES if mentioned_commands(page)])
def test_every_command_that_is_mentioned_exists_with_its_options(page: str) -> None:
    for words in mentioned_commands(page):
        command, arguments = named(words)
        options = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help"}
        assert {word for word in arguments if word.startswith("-")} <= options, words


def test_every_session_of_nox_is_explained() -> None:
    sessions = re.findall(r"^def (\w+)\(session: nox.Session\)", (ROOT / "noxfile.py").read_text(), re.MULTILINE)
    assert len(sessions) > 5
    for session in sessions:
        assert re.search(rf"^\| `{session}(-[\d.]+)?`", PAGES["docs/contributing.md"], re.MULTILINE), session


def test_the_guide_names_every_command() -> None:
    mentioned = {id(named(words)[0]) for words in mentioned_commands(WATCHING)}
    missing = [name for name, command in leaves(COMMAND) if id(command) not in mentioned]
    assert not missing


def leaves(command: Any, path: str = "fairque") -> Iterator[tuple[str, Any]]:
    for name, child in command.commands.items():
        if hasattr(child, "commands"):
            yield from leaves(child, f"{path} {name}")
        else:
            yield f"{path} {name}", child


def test_the_thresholds_of_the_health_check_are_those_of_the_command() -> None:
    rows = re.findall(r"^\| `(--\w+)` \| .* \| (\S+) \|$", PAGES[WATCHING], re.MULTILINE)
    options = {option.opts[0]: str(option.default) for option in COMMAND.commands["health"].params}
    assert rows
    assert dict(rows).items() <= options.items()


def test_the_test_command_is_that_of_the_continuous_integration() -> None:
    command = (ROOT / ".ci" / "run").read_text().strip().splitlines()[-1]
    assert f"```sh\n{command}\n```" in PAGES[README]


# Names and numbers


@pytest.mark.parametrize(
    "module",
    [
        "fairque",
        "fairque.sync",
        "fairque.testing",
        "fairque.contrib.fastapi",
        "fairque.contrib.prometheus",
        "fairque.contrib.http",
        "fairque.contrib.opentelemetry",
        "fairque.contrib.sqlalchemy",
    ],
)
def test_every_public_name_is_in_the_reference_once(module: str) -> None:
    everything = "\n".join(text for page, text in PAGES.items() if page.startswith("docs/reference/"))
    shown = re.findall(rf"^::: {re.escape(module)}\.(\w+)$", everything, re.MULTILINE)
    assert sorted(shown) == sorted(set(importlib.import_module(module).__all__) - {"__version__"})


def test_every_public_name_is_in_the_overview() -> None:
    overview = PAGES["docs/reference/index.md"] + PAGES["docs/reference/errors.md"]
    assert not [name for name in fairque.__all__ if re.search(rf"\b{name}\b", overview) is None]


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page() -> None:
    site = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
    assert sorted(entries(site["nav"])) == sorted(page for page in PAGES if page != README)


def entries(tree: Any) -> Iterator[str]:
    """The pages of a navigation."""
    if isinstance(tree, str):
        yield f"docs/{tree}"
    else:
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from entries(part)


def test_the_readme_reads_well_where_nothing_else_of_the_project_is() -> None:
    assert len(PAGES[README].splitlines()) <= 250
    assert not re.findall(r"\]\((?!https://)", PAGES[README]), "a link that leads nowhere on PyPI"


def anchors(page: Path) -> set[str]:
    """Where a link to a part of it may lead: headings, as the site names them, and names of the reference."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}
    return slugs | set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))


def test_every_link_to_a_part_of_a_page_leads_there() -> None:
    links = [
        (page, (ROOT / page).parent / link if link else ROOT / page, part)
        for page, text in PAGES.items()
        for link, part in re.findall(r"\]\(([^):#]*)#([^)]+)\)", text)
    ]
    assert links
    assert not [(page, str(target), part) for page, target, part in links if part not in anchors(target)]


def test_every_file_that_is_mentioned_exists() -> None:
    links = [(page, link) for page, text in PAGES.items() for link in re.findall(r"\]\(([^):#]+)\)", text)]
    paths = re.findall(r"`((?:examples|config|docs|tests)/[\w./-]*)`", "\n".join(PAGES.values()))
    assert links
    assert paths
    assert not [(page, link) for page, link in links if not (ROOT / page).parent.joinpath(link).exists()]
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_every_extra_that_is_mentioned_exists_and_all_are_listed() -> None:
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    for page, text in PAGES.items():
        for names in re.findall(r"pip install [^`\n]*\[([\w,-]+)\]", text):
            assert set(names.split(",")) <= extras, f"{page}: {names}"
    table = PAGES[README].partition("| extra | ")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == extras


SECTIONS = {
    "redis": RedisConfig,
    "queue": QueueConfig,
    "workers[n]": WorkerConfig,
    "scheduler": SchedulerConfig,
    "policies[n]": PolicyConfig,
    "groups[n]": GroupConfig,
    "limits[n]": LimitConfig,
    "codec": CodecConfig,
}


def test_every_field_of_the_configuration_is_in_its_table() -> None:
    page = PAGES["docs/guides/configuration.md"]
    assert {name.removesuffix("[n]") for name in SECTIONS} == set(FairQueueConfig.__struct_fields__)
    for path, section in SECTIONS.items():
        part = page.partition(f"### `{path}`\n")[2].partition("\n###")[0]
        rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| \S.* \|$", part, re.MULTILINE)
        assert rows == fields_in_words(section), path


def fields_in_words(section: type[Section]) -> list[tuple[str, str, str]]:
    """Each field with its default and its values, as the table has them."""
    fields = msgspec.inspect.type_info(section).fields  # type: ignore[attr-defined]
    return [(field.name, default_in_words(field.default), values_in_words(field.type)) for field in fields]


def default_in_words(default: object) -> str:
    if default == "":
        return "must be given"
    if isinstance(default, float):
        return f"`{shown_duration(default)}`"
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


def values_in_words(kind: msgspec.inspect.Type) -> str:
    match kind:
        case msgspec.inspect.UnionType(types=(only, _)):
            return values_in_words(only)
        case msgspec.inspect.Metadata(type=only):
            return f"a number from {only.ge:g} to {only.le:g}"  # type: ignore[attr-defined]
        case msgspec.inspect.FloatType(ge=least, le=most) if most is not None and most < MAX_SECONDS:
            return f"a duration from {shown_duration(least)} to {shown_duration(most)}"
        case msgspec.inspect.FloatType(ge=least):
            return f"a duration of {shown_duration(least)} or more" if least else "a duration"
        case msgspec.inspect.IntType(ge=least, le=most):
            return f"{least} to {most:,}"
        case msgspec.inspect.BoolType():
            return "`true`, `false`"
        case msgspec.inspect.LiteralType(values=values):
            return ", ".join(f"`{value}`" for value in sorted(map(str, values)))
        case msgspec.inspect.VarTupleType(max_length=most):
            return f"at most {most:,} texts"
        case msgspec.inspect.StrType(max_length=most):
            return f"a text of 1 to {most} characters" if most else "a text"
    raise AssertionError(kind)
