"""The time that `study run` is given: it then pauses, as by a scheduler's signal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sae_plugins.base.clock import age, seconds_in
from sae_plugins.base.errors import Paused, SaePluginsError


@contextmanager
def pausing(max_time: str | None, folder: Path) -> Iterator[None]:
    """Stop what is done inside when this process is as old as it may be.

    Args:
        max_time: that age; None for no end.
        folder: the study's.

    Raises:
        Paused: the time is over.
        SaePluginsError: and nothing was finished in it, so that a study would never get on.
    """
    if max_time is None:
        yield
        return
    main, over = threading.main_thread(), threading.Event()

    def end() -> None:
        over.set()
        signal.pthread_kill(main.ident or 0, signal.SIGUSR1)

    before = _finished(folder)
    timer = threading.Timer(max(0, seconds_in(max_time) - age()), end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except Paused as error:
        if not over.is_set() or _finished(folder) != before:
            raise
        raise SaePluginsError(
            f"--max_time {max_time}: in this time no SAE was trained and scored, and none was "
            "evaluated, so that the study would never get on; give it more, or fewer SAEs that "
            "train together"
        ) from error
    finally:
        timer.cancel()


def _finished(folder: Path) -> set[Path]:
    """The scores and checkpoints in a study's folder, which stay when it is interrupted."""
    from sae_plugins.resume.together import CHECKPOINTS
    from sae_plugins.runs.folder import SUMMARY
    from sae_plugins.study.cells import SAES
    from sae_plugins.study.evaluated import EVALUATIONS

    scores = {*folder.glob(f"{SAES}/*/*/{SUMMARY}"), *folder.glob(f"{EVALUATIONS}/*/*/*/*.json")}
    return scores | {*folder.glob(f"{CHECKPOINTS}/*/step-*.safetensors")}
