"""What SAELens makes of documents: prompts, and what is said when there are too few."""

from __future__ import annotations

import logging
from collections.abc import Generator
from typing import Any

from sae_lens.training.activations_store import ActivationsStore
from torch import Tensor

from sae_plugins.base import saelens
from sae_plugins.base.errors import PluginError
from sae_plugins.runs.texts.documents import Documents
from sae_plugins.runs.texts.loading import reason

logger = logging.getLogger(__name__)


def watch(store: ActivationsStore, documents: Documents, config: Any) -> None:
    """Say once when documents end before the run does, and name those that cannot be read.

    SAELens begins again with them, of which nothing else tells.

    Args:
        store: it reads the documents, and has not begun.
        documents: what it was given.
        config: SAELens' of the run.
    """
    is_told = False

    def epoch() -> Generator[Tensor, None, None]:
        nonlocal is_told
        prompts = 0
        sequences = own()
        while True:
            try:
                prompt = next(sequences)
            except StopIteration:
                break
            except (PluginError, saelens.interruption()):
                raise
            except Exception as error:  # of tokenizers and of chat templates
                raise PluginError(
                    f"{documents.where}: the tokenizer cannot read it {reason(error)}"
                ) from error
            prompts += 1
            yield prompt
        if not prompts:
            raise PluginError(_no_prompt(documents, config))
        if not is_told:
            is_told = True
            _tell(documents, prompts * store.training_context_size, prompts, config)

    own = saelens.replace_text(store, epoch)
    store.iterable_sequences = epoch()


def _no_prompt(documents: Documents, config: Any) -> str:
    how = "no document has" if config.disable_concat_sequences else "all documents together lack"
    return (
        f"{documents.place} gives not one prompt: {how} --context_size {config.context_size} "
        "tokens; lower it, or give more text"
    )


def _tell(documents: Documents, tokens: int, prompts: int, config: Any) -> None:
    """Say that documents are read again."""
    parts = {"to train on": config.training_tokens}
    if config.sae.normalize_activations in saelens.ESTIMATED:
        estimate = config.n_batches_for_norm_estimate * config.train_batch_size_tokens
        parts["to estimate norms"] = estimate
    parts["that wait in the buffer"] = config.n_batches_in_buffer * (tokens // prompts)
    needed = ", ".join(f"{number:,} {what}" for what, number in parts.items())
    logger.warning(
        "%s ends after %s tokens (%s prompts), and the run needs up to %s (%s), so that it is "
        "trained on the same text again; give more text, or lower --training_tokens",
        *(documents.place, f"{tokens:,}", f"{prompts:,}", f"{sum(parts.values()):,}", needed),
    )
