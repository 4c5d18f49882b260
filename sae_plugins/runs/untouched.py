"""The folder of a run that is only thought of: every check of a real one, and nothing written."""

from __future__ import annotations

import errno
import os

from sae_plugins.runs import journal
from sae_plugins.runs.run_folder import RunFolder


class UntouchedFolder(RunFolder):
    """A `RunFolder` that stays as it is; a folder that is there is locked meanwhile."""

    def _make(self) -> None:
        self._check_writable()

    def _check_writable(self) -> None:
        """The folder, or the nearest one above it that is there, must take new files."""
        here = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        reason = errno.EACCES if here.is_dir() else errno.ENOTDIR
        if not here.is_dir() or not os.access(here, os.W_OK | os.X_OK):
            raise self._not_writable(OSError(reason, os.strerror(reason), str(here)))

    def _take_lock(self) -> None:
        if self.path.is_dir():
            super()._take_lock()

    def _taken(self) -> list[str]:
        return super()._taken() if self.path.is_dir() else []

    def _moved_rest(self) -> bool:
        return journal.pending(self.path) is not None

    def _remove_half_saved(self) -> None: ...
