"""Python processes that are started: what they import, and which signals they do not hear."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from sae_plugins.base.patches import replaced

SAFE_PATH = {"PYTHONSAFEPATH": "1"}
"""What tells Python 3.11 and later, in all processes below, to search no working directory."""


@contextmanager
def safe_path(**variables: str) -> Iterator[None]:
    """Processes that are started inside import no module from the working directory.

    `multiprocessing` starts `python -c ...`, for which Python puts the working directory first: a
    file called pickle.py there would be run in place of the library's.

    Args:
        variables: environment variables for these processes.
    """
    with environment(**SAFE_PATH, **variables):
        if sys.version_info >= (3, 11):
            yield
            return
        with working_in(os.sep):  # earlier versions do not know it; nobody else can write there,
            yield  # and a worker goes back when it is prepared


@contextmanager
def working_in(folder: str) -> Iterator[None]:
    """This process has another working directory inside."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def unheard(*numbers: signal.Signals) -> Iterator[None]:
    """Processes that are started inside do not hear these signals, which would kill them.

    A scheduler sends them to all processes of a group; who has started the others answers.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)  # which they inherit
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def in_sessions() -> Iterator[None]:
    """Processes that `subprocess` starts inside are in sessions of their own.

    So neither Ctrl-C in the terminal is for them nor its end.
    """
    own = partial(subprocess.Popen, start_new_session=True)
    with replaced(subprocess, Popen=own):
        yield


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Environment variables that are set inside, and for processes that are started there."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
