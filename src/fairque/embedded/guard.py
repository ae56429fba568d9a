"""Runs an embedded server for as long as somebody uses it, and no longer.

`fairque.embedded.server` starts this file as a script, with neither site-packages nor fairque on its path: it starts in
milliseconds, so it imports what the interpreter has at hand anyway. Waiting for the users is one blocking `flock`:
the kernel drops the lock of a process however it ends, SIGKILL included, and nothing has to poll.

Usage: ``embedded_guard.py USERS_LOCK SIGNAL GLIBC_TUNABLES [DIRECTORY_TO_REMOVE ...] -- SERVER [ARGUMENT ...]``
"""

import fcntl
import os
import signal
import sys

_GRACE_SECONDS = 30
"""How long a server with data on disk may take to write the rest of it."""


def main(users_lock: str, how: str, tunables: str, leftovers: list[str], command: list[str]) -> None:
    # A session of its own: a Ctrl-C in the terminal is for the workers, which still need the server to drain.
    os.setsid()
    # Not in this process's own environment: glibc cuts what it has read there off behind the first.
    server = os.posix_spawn(command[0], command, {"GLIBC_TUNABLES": tunables, **os.environ})
    signal.signal(signal.SIGCHLD, lambda *_: _leave_if_ended(server))
    _leave_if_ended(server)
    fcntl.flock(os.open(users_lock, os.O_RDWR | os.O_CLOEXEC), fcntl.LOCK_EX)
    _end(server, signal.Signals[how])
    _remove(leftovers)


def _leave_if_ended(server: int) -> None:
    pid, status = os.waitpid(server, os.WNOHANG)
    if pid:
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF or 1)


def _end(server: int, how: signal.Signals) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(server, signal.SIGKILL))
    os.kill(server, how)
    signal.alarm(_GRACE_SECONDS)
    os.waitpid(server, 0)
    signal.alarm(0)


def _remove(leftovers: list[str]) -> None:
    if leftovers:
        from shutil import rmtree

        for directory in leftovers:
            rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    _end_of_directories = sys.argv.index("--")
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:_end_of_directories], sys.argv[_end_of_directories + 1 :])
