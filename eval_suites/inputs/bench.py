"""What SAEs at one hook of one language model are evaluated with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae_plugins.eval_suites.inputs.cache import Cache
    from sae_plugins.eval_suites.inputs.data import Data
    from sae_plugins.eval_suites.inputs.models import LanguageModel


@dataclass(frozen=True)
class Bench:
    """What SAEs at one hook of one language model are evaluated with.

    `model` and `data` are there for suites that need a model only.
    """

    model: LanguageModel
    hook_name: str
    data: Data
    cache: Cache
    folder: Path
    """An empty scratch folder, removed afterwards."""
    stage: Callable[[str], None]
    """Called with what is being done now, for the progress bar."""
