"""What a contributor types: ``nox`` for all that must pass, ``nox -s bench`` for the figures.

What follows ``--`` goes to the tool: ``nox -s tests -- -k fair --server=redis``.
"""

import nox

nox.needs_version = ">=2026.2"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.download_python = "never"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "tests"]

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
def tests(session: nox.Session) -> None:
    install_wheel(session, "test")
    session.run("pytest", "-n", "auto", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    install_wheel(session, "bench")
    session.run("python", "tests/bench/run.py", *session.posargs)
