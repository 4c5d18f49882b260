"""An SAE by its source, whatever its format."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_plugins.eval_suites.evaluation.sources import check_source, name_of
from sae_plugins.eval_suites.inputs.saelens import from_folder, from_hub
from sae_plugins.eval_suites.inputs.subjects import SAEBENCH, Reader, Subject, subject_of
from sae_plugins.eval_suites.saebench.dictionary_learning import FILES, load_dictionary_learning


def load_subject(source: str, device: str = "cpu", reader: Reader = SAEBENCH) -> Subject:
    """Load an SAE.

    Args:
        source: a folder, of a run, of anything else that SAELens saved, or of dictionary_learning
            (`ae.pt` and `config.json`); or `RELEASE:SAE_ID`, a release that SAELens knows or a
            repository on the Hugging Face Hub.
        device: where to keep it.
        reader: who works with it.

    Raises:
        SuiteError: there is no such SAE, it is damaged, or its reader cannot work with it.
        PluginError: its config is damaged.
        HubError: it cannot be downloaded.
    """
    folder = Path(source)
    facts: Mapping[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what matters of them is said in our own words
        if folder.is_dir():
            if all((folder / file).is_file() for file in FILES):
                sae = load_dictionary_learning(folder, device)
            else:
                sae, facts = from_folder(folder, device)
        else:
            check_source(source)
            sae, facts = from_hub(source, device)
    return subject_of(name_of(source), source, sae, facts, reader)
