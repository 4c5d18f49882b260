"""What every way to load a language model has in common."""

from __future__ import annotations

import contextlib
import io
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from sae_plugins import world
from sae_plugins.base.errors import PluginError, did_you_mean, nearest
from sae_plugins.base.hub import why


@dataclass(frozen=True)
class Looks:
    """What a language model looks like, from its config alone.

    Attributes:
        model: on the device `meta`, where it has shapes and no numbers; with its hooks.
        context: the longest prompt in tokens, if it is bounded.
        vocabulary: how many tokens there are.
    """

    model: Any
    context: int | None
    vocabulary: int | None

    @property
    def hooks(self) -> list[str]:
        """The names of its hooks."""
        return [name for name in self.model.hook_dict if name]


class Loader(ABC):
    """A way to load one language model."""

    model_class: ClassVar[str]
    kind: ClassVar[str]
    """What it is called in results and messages."""

    def __init__(self, name: str, kwargs: Mapping[str, Any]) -> None:
        """Nothing is read yet."""
        self.name = name
        self.kwargs = {key: value for key, value in kwargs.items() if value is not None}
        dtype = self.kwargs.pop("torch_dtype", None)  # an older name
        if dtype := self.kwargs.get("dtype", dtype):
            self.kwargs["dtype"] = getattr(torch, dtype)

    @property
    def dtype(self) -> str | None:
        """In which dtype its numbers are kept, if its config says so."""
        return None

    @property
    def label(self) -> str:
        """The name for a part of a path: a folder's last one."""
        return Path(self.name).name if is_folder(self.name) else self.name

    def looks(self) -> Looks:
        """What it looks like; only its config is read, and, of a folder, its tokenizer.

        Raises:
            PluginError: it cannot be loaded.
        """
        with self._explained():
            return self._looks()

    def load(
        self, device: str, dtype: torch.dtype | None = None, hook_name: str | None = None
    ) -> Any:
        """The model with its numbers.

        Args:
            device: where it shall be.
            dtype: in place of the one that the arguments or its class have.
            hook_name: the one hook that will be read, where others cost.

        Raises:
            PluginError: it cannot be loaded.
        """
        with self._explained():
            return self._load(device, dtype, hook_name)

    @abstractmethod
    def _looks(self) -> Looks: ...

    @abstractmethod
    def _load(self, device: str, dtype: torch.dtype | None, hook_name: str | None) -> Any: ...

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what the loading libraries raise into a sentence, and silence what they print."""
        try:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except PluginError:
            raise
        except Exception as error:  # of the network, the Hub, the disk, the memory, the config
            near = near_models(self.name)
            raise PluginError(
                f"{self.name} cannot be loaded as {_a(self.model_class)}: {why(error)}"
                + (f"; {near}" if near else "")
            ) from error


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def is_folder(name: str) -> bool:
    """Whether a model's name is a folder here."""
    return (Path(name) / "config.json").is_file()


def near_models(name: str) -> str:
    """A suggestion, for a name that TransformerLens does not know; empty where there is none."""
    from transformer_lens.supported_models import MODEL_ALIASES, OFFICIAL_MODEL_NAMES

    aliases = [alias for names in MODEL_ALIASES.values() for alias in names]
    known = [world.NAME, *OFFICIAL_MODEL_NAMES, *aliases]
    if name in known or not nearest(name, known) or Path(name).exists():
        return ""
    return did_you_mean(name, known)
