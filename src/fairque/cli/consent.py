"""Asking before something is erased."""

from __future__ import annotations

import sys

import typer

from fairque.cli.problem import FAILED, Problem

__all__ = ["insist"]


def insist(question: str, yes: bool) -> None:
    """Ask, unless `yes` says that the answer is known; where nobody can answer, that is needed. Raises `Problem`."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise Problem("this cannot be undone, and there is no terminal to ask on", "add --yes")
    typer.echo(f"{question} [y/N] ", nl=False, err=True)  # stdout is for what a program reads
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Problem("not confirmed", "nothing was changed", FAILED)
