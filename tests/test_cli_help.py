"""What the command line says to those who do not know it yet, or got something wrong."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from fairque import __version__
from fairque.cli.app import PANELS, app
from fairque.cli.app import run as run_here
from fairque.embedded.server import EmbeddedServer
from tests.support.command import call_command, run_command
from tests.support.process import ROOT

NOWHERE = {
    "FAIRQUE_REDIS_URL": "redis://localhost:1",
    "FAIRQUE_REDIS_TIMEOUT": "0.1",
    "SERVED_URL": "redis://localhost:1",
    "SERVED_QUEUE": "q",
    "SERVED_TIMEOUT": "0.1",
}
NEEDS_SIGNALS = ("worker", "scheduler", "outbox", "http", "dashboard")
PASSWORD = "hunter2"


def leaves(command: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every command by its words, also those of groups."""
    for name, child in command.commands.items():
        words = f"{path} {name}".strip()
        if hasattr(child, "commands"):
            yield from leaves(child, words)
        else:
            yield words, child


ROOT_COMMAND: Any = typer.main.get_command(app)
COMMANDS: dict[str, Any] = dict(leaves(ROOT_COMMAND))

UNREACHABLE = "Redis at redis://localhost:1 is not available"
# How each command ends where Redis is not there: arguments, exit code, and what it says.
INVOCATIONS: dict[str, tuple[list[str], int, str]] = {
    "worker": (["tests.apps.served:queue"], 1, UNREACHABLE),
    "scheduler": (["tests.apps.served:queue"], 1, UNREACHABLE),
    "outbox": (["tests.apps.outbox:relay", "--once"], 1, UNREACHABLE),
    "server": (["--dir=/dev/null/data"], 2, "the embedded server cannot be started"),
    "http": ([], 1, UNREACHABLE),
    "demo": (["--flood=0"], 2, "--flood"),
    "dashboard": (["--port=0"], 1, UNREACHABLE),
    "info": ([], 1, UNREACHABLE),
    "top": (["--once"], 1, UNREACHABLE),
    "users": ([], 1, UNREACHABLE),
    "user": (["acme"], 1, UNREACHABLE),
    "tasks": (["acme"], 1, UNREACHABLE),
    "task": (["acme", "t"], 1, UNREACHABLE),
    "explain": (["acme"], 1, UNREACHABLE),
    "usage": ([], 1, UNREACHABLE),
    "demand": ([], 1, UNREACHABLE),
    "health": ([], 2, UNREACHABLE),
    "doctor": ([], 1, UNREACHABLE),
    "enqueue": (["--name=a.b", "--user=acme"], 1, UNREACHABLE),
    "change": (["acme", "t", "--now"], 1, UNREACHABLE),
    "cancel": (["acme", "t"], 1, UNREACHABLE),
    "cancel-all": (["acme", "--yes"], 1, UNREACHABLE),
    "pause": (["acme"], 1, UNREACHABLE),
    "resume": (["acme"], 1, UNREACHABLE),
    "purge": (["acme", "--yes"], 1, UNREACHABLE),
    "export-user": (["acme", "acme.fairque"], 1, UNREACHABLE),
    "import-user": (["nowhere.fairque"], 1, "nowhere.fairque"),
    "move": (["acme", "1"], 1, UNREACHABLE),
    "move-group": (["acme", "1"], 1, UNREACHABLE),
    "dead list": ([], 1, UNREACHABLE),
    "dead groups": ([], 1, UNREACHABLE),
    "dead show": (["acme", "t"], 1, UNREACHABLE),
    "dead requeue": (["--all"], 1, UNREACHABLE),
    "dead discard": (["acme", "t"], 1, UNREACHABLE),
    "limits pause": (["a.b"], 1, UNREACHABLE),
    "limits resume": (["a.b"], 1, UNREACHABLE),
    "policy show": ([], 1, UNREACHABLE),
    "policy set": (["acme", "--weight=2"], 1, UNREACHABLE),
    "policy clear": (["acme"], 1, UNREACHABLE),
    "policy group": (["team", "--weight=2"], 1, UNREACHABLE),
    "limits list": ([], 1, UNREACHABLE),
    "limits set": (["a.b", "--max-running=2"], 1, UNREACHABLE),
    "limits clear": (["a.b"], 1, UNREACHABLE),
    "limits forfeit": (["3"], 1, UNREACHABLE),
    "policy apply": (["config/fairque.yaml"], 1, "is not available"),
    "schedule list": ([], 1, UNREACHABLE),
    "schedule add": (["--name=a.b", "--user=acme", "--every=5"], 1, UNREACHABLE),
    "schedule remove": (["s"], 1, UNREACHABLE),
    "schedule pause": (["s"], 1, UNREACHABLE),
    "schedule resume": (["s"], 1, UNREACHABLE),
    "schedule run": (["s"], 1, UNREACHABLE),
    "schedule next": (["s"], 1, UNREACHABLE),
    "config check": (["nowhere.yaml"], 2, "nowhere.yaml"),
    "settings": ([], 1, UNREACHABLE),
    "acl": (["--role=nobody"], 2, "'nobody' is not one of"),
    "functions load": ([], 1, UNREACHABLE),
    "simulate": (["nowhere.csv"], 2, "nowhere.csv"),
}


def test_every_command_is_invoked_here_and_has_its_place_in_the_help() -> None:
    assert set(INVOCATIONS) == set(COMMANDS)
    assert {name for names in PANELS.values() for name in names} == set(ROOT_COMMAND.commands)
    assert len({id(info.callback or info.typer_instance) for info in registered()}) == len(ROOT_COMMAND.commands)


def registered() -> list[Any]:
    return [*app.registered_commands, *app.registered_groups]


@pytest.mark.parametrize("words", COMMANDS)
async def test_a_command_without_what_it_needs_says_so_in_a_line_and_a_hint(words: str) -> None:
    arguments, code, error = INVOCATIONS[words]
    start = run_command if words in NEEDS_SIGNALS else call_command
    ended = await start(*words.split(), *arguments, env=NOWHERE)
    assert ended.code == code, ended.err
    if words == "health":  # that is what it is asked for
        assert error in ended.out
    else:
        assert ended.out == ""
        assert error in ended.error[0]
        hint = "hint: start that server, or name one that runs: --url redis://host:6379"
        assert ended.error[1] == hint or UNREACHABLE not in ended.error[0]


@pytest.mark.parametrize("words", COMMANDS)
def test_help_has_a_purpose_an_example_and_the_exit_codes(
    words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert run_here([*words.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    usage, purpose, *_ = [line.strip() for line in shown.splitlines() if line.strip()]
    assert usage.startswith(f"Usage: fairque {words} ")
    assert re.fullmatch(r"[A-Z].{8,67}\.", purpose), "one sentence, which is one line in the list of a terminal"
    assert f"Example: fairque {words}" in shown
    assert re.search(r"Exit codes: 0 .*1 .*2 ", shown, re.DOTALL)
    assert not re.search(r"<(?:bool|str|list\[)|\[\[", shown), "no names of Python's types"
    assert "{" not in usage
    for parameter in COMMANDS[words].params:
        assert parameter.help, f"{parameter.name} is not explained"
        if parameter.opts[0].startswith("--"):
            assert parameter.opts[0] in shown


@pytest.mark.parametrize("words", COMMANDS)
def test_an_example_parses(words: str) -> None:
    """Its options exist and its arguments suffice. What they name does not exist, and is not looked for."""
    examples = re.findall(rf"Example: (fairque {words}\b.*)", COMMANDS[words].help or "")
    assert examples
    for example in examples:
        rest = shlex.split(example)[1 + len(words.split()) :]
        COMMANDS[words].make_context(words, rest)


def test_a_letter_means_the_same_in_every_command() -> None:
    options = [option for command in COMMANDS.values() for option in command.params if option.opts[0][:2] == "--"]
    meanings = {(letter, option.opts[0]) for option in options for letter in option.opts[1:]}
    assert len({letter for letter, _ in meanings}) == len(meanings), sorted(meanings)
    assert meanings >= {("-c", "--config"), ("-q", "--queue"), ("-u", "--url")}
    for option in options:
        common = [letter for letter, name in meanings if name == option.opts[0] and letter in ("-c", "-q", "-u")]
        assert option.opts[1:] == common or not common, f"{option.opts[0]} has its letter in every command"


async def test_the_help_lists_every_command_by_purpose() -> None:
    ended = await call_command("--help", env={"COLUMNS": "120"})
    assert (ended.code, ended.err) == (0, "")
    found = re.findall(r"─ ([A-Z][a-z ]+) ─|^│ ([a-z][a-z-]*) ", ended.out, re.MULTILINE)
    titles = [title for title, _ in found if title not in ("", "Options")]
    assert titles == list(PANELS)
    assert [name for _, name in found if name] == [name for names in PANELS.values() for name in names]


@pytest.mark.parametrize("arguments", [[], ["dead"], ["schedule"], ["policy"], ["config"]])
async def test_a_group_alone_shows_its_help(arguments: list[str]) -> None:
    ended = await call_command(*arguments)
    assert (ended.code, ended.err) == (2, "")
    assert f"Usage: {' '.join(['fairque', *arguments])} [OPTIONS] COMMAND" in ended.out


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["wrker"], "No such command 'wrker'. Did you mean 'worker'?", "fairque --help"),
        (["dead", "lst"], "No such command 'lst'. Did you mean 'list'?", "fairque dead --help"),
        (["--versoin"], "No such option: --versoin", "fairque --help"),
        (["enqueue", "--usr=a"], "No such option: --usr", "fairque enqueue --help"),
        (["enqueue", "--user"], "Option '--user' requires an argument", "--help"),
        (["pause"], "Missing argument 'USER'", "fairque pause --help"),
        (["pause", "a", "b"], "Got unexpected extra argument(s) (b)", "fairque pause --help"),
        (["worker", "tests.apps:torn"], "there is no 'torn' in tests.apps", "define torn there"),
    ],
)
async def test_wrong_words_are_told_in_a_line_and_a_hint(arguments: list[str], error: str, hint: str) -> None:
    ended = await call_command(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert error in ended.error[0]
    assert hint in ended.error[1]


@pytest.mark.parametrize("command", ["worker", "enqueue", "scheduler", "outbox"])
async def test_a_broken_module_is_told_in_a_line_and_a_hint(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torn_module.py").write_text("\n1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    ended = await call_command(command, "torn_module:thing")
    assert (ended.code, ended.out) == (2, "")
    assert "importing 'torn_module' failed: ZeroDivisionError" in ended.error[0]
    assert "torn_module.py, line 2" in ended.error[0]
    assert 'python -c "import torn_module" shows the traceback' in ended.error[1]


@pytest.mark.parametrize("arguments", [["info"], ["pause", "acme"]])
async def test_a_wrong_password_is_told_without_it(
    own_server: Callable[..., EmbeddedServer], arguments: list[str]
) -> None:
    server = own_server(requirepass=PASSWORD, tcp=True)
    for url in (server.tcp_url.replace("//", f"//:x{PASSWORD}@"), server.url.replace("//", f"//:x{PASSWORD}@")):
        ended = await call_command(*arguments, f"--url={url}")
        assert (ended.code, ended.out) == (1, "")
        assert "invalid username-password pair" in ended.error[0]
        assert "give user and password in the URL" in ended.error[1]
        assert PASSWORD not in ended.err


async def test_without_a_password_the_hint_is_to_give_one(own_server: Callable[..., EmbeddedServer]) -> None:
    ended = await call_command("resume", "acme", f"--url={own_server(requirepass=PASSWORD).url}")
    assert (ended.code, ended.out) == (1, "")
    assert "Authentication required" in ended.error[0]
    assert "give user and password in the URL" in ended.error[1]


@pytest.mark.parametrize(
    ("url", "code", "error"),
    [
        ("localhost:6379", 2, "error: --url: it begins with a scheme, such as redis://"),
        (f"rdis://:{PASSWORD}@host", 2, "error: --url: unknown URL scheme 'rdis'; there are redis://"),
        (
            f"redis://:{PASSWORD}@host:port",
            2,
            "error: --url: the URL 'redis://:***@host:port' cannot be used: a host is",
        ),
        ("redis://127.0.0.1:1", 1, "Redis at redis://127.0.0.1:1 is not available: Connection refused (127.0.0.1:1)"),
        ("unix:///nowhere/at/all", 1, "is not available: No such file or directory (/nowhere/at/all)"),
        ("cluster://127.0.0.1:1", 1, "is not available: node 127.0.0.1:1: Connection refused (127.0.0.1:1)"),
        ("sentinel://127.0.0.1:1/s", 1, "is not available: sentinel 127.0.0.1:1: Connection refused (127.0.0.1:1)"),
    ],
)
async def test_a_wrong_url_is_told_in_words_with_an_example(url: str, code: int, error: str) -> None:
    ended = await call_command("info", f"--url={url}", env={"FAIRQUE_REDIS_TIMEOUT": "0.3"})
    assert (ended.code, ended.out) == (code, "")
    assert error in ended.error[0]
    assert "redis://host:6379" in ended.error[1]
    assert PASSWORD not in ended.err


# Completion, and other ways to call it


async def test_completion_of_a_word_gives_the_command() -> None:
    for line, cword, wanted in (
        ("fairque wo", "1", {"worker"}),
        ("fairque dead re", "2", {"requeue"}),
        ("fairque pause --un", "2", {"--until"}),
        ("fairque p", "1", {"pause", "purge", "policy"}),
    ):
        asked = {"_FAIRQUE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": cword}
        ended = await call_command(env=asked)
        assert (ended.code, ended.err) == (0, "")
        assert set(ended.out.split()) == wanted, line


async def test_the_completion_script_of_bash_works_in_bash(tmp_path: Path) -> None:
    (tmp_path / "fairque").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fairque "$@"\n')
    (tmp_path / "fairque").chmod(0o755)
    script = """
        fairque --show-completion > completion.sh && . ./completion.sh
        COMP_WORDS=(fairque wo) COMP_CWORD=1
        _fairque_completion fairque
        printf '%s\\n' "completed: ${COMPREPLY[*]}"
        complete -p fairque
    """
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    python_path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    process = await asyncio.create_subprocess_exec(
        *("bash", "--norc", "-c", script),
        cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "PATH": path, "PYTHONPATH": python_path},
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 40)
    lines = out.decode().splitlines()
    assert "completed: worker" in lines, out.decode()
    assert any("_fairque_completion fairque" in line for line in lines[1:])


async def test_it_runs_as_a_module() -> None:
    ended = await run_command("--version")
    assert (ended.code, ended.out, ended.err) == (0, f"fairque {__version__}\n", "")


async def test_a_reader_that_leaves_early_is_no_error() -> None:
    process = await asyncio.create_subprocess_shell(
        f'set -o pipefail; "{sys.executable}" -m fairque --help | true',
        cwd=ROOT, executable="/bin/bash", stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 40)
    assert b"Traceback" not in out
    assert b"error" not in out


async def test_colours_are_for_terminals() -> None:
    assert "\x1b" not in (await call_command("wrker")).err
    terminal, other_end = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fairque", "wrker"),
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=other_end, stderr=other_end,
    )  # fmt: skip
    try:
        assert await asyncio.wait_for(process.wait(), 40) == 2
        assert b"\x1b[31m" in os.read(terminal, 65536)
    finally:
        os.close(terminal)
        os.close(other_end)
