"""The flags of `sae-plugins evaluate`, and what its help says besides them; no slow imports."""

from __future__ import annotations

from collections.abc import Mapping

from sae_plugins.eval_suites import PRESETS
from sae_plugins.settings.flags import Flag

FLAGS = {
    flag.name: flag
    for flag in (
        Flag("suite", "list[str]", "suites to run; repeatable (default: all those above)",
             adds=True),
        Flag(
            "preset",
            "choice",
            "canonical: SAEBench's own settings, hours for Gemma-2-2B; quick: much less data, "
            "minutes, for a first look; paper: what the papers of the methods report (default "
            "quick for SAEs of the embedded model, canonical for others)",
            choices=PRESETS,
        ),
        Flag("seed", "list[int]", "one or more; each is a row of its own", [42], adds=True),
        Flag("output_path", "str", "folder of the results; what is there already is kept and not "
             "computed again", "evaluations"),
        Flag("data", "none | str", "where the suites' data come from: world (embedded, offline), "
             "hub (the Hugging Face Hub), or a folder (default: what suits the model)"),
        Flag("device", "none | str", "cpu, cuda, cuda:1 (default: cuda if there is one)"),
        Flag("model_name", "none | str", "the language model to evaluate on, such as gemma-2-2b-it "
             "for SAEs of gemma-2-2b (default: the one that each was trained on)"),
        Flag("model_class_name", "none | choice", "how language models are loaded (default: as a "
             "HookedTransformer where TransformerLens can do that)",
             choices=("HookedTransformer", "TransformerBridge")),
        Flag("cache_path", "none | str", "folder of activations and probes of language models, "
             "which all SAEs share (default: sae-plugins/evaluation in the user's cache folder)"),
        Flag("exact", "bool", "switch off every shortcut that can move a number",
             False),
        Flag("dry_run", "bool", "say what would be done, and about what it takes; do nothing",
             False),
        Flag("list", "bool", "print each suite's metrics and settings, and what they mean", False),
    )
}  # fmt: skip

ABOUT = """\
Evaluate SAEs with SAEBench: reconstruction, feature absorption, spurious correlation removal,
targeted probe perturbation, sparse probing, unlearning, and explanations by a language model that
you name; SAEs of synthetic models against the ground truth.
An SAE is the folder of a run, any folder that SAELens or dictionary_learning saved, or
RELEASE:SAE_ID from the Hugging Face Hub.
"""
EXAMPLES = """\
  sae-plugins evaluate runs/demo                                 minutes, and offline for the demos
  sae-plugins evaluate runs/a runs/b --suite core absorption --seed 42 43 44
  sae-plugins evaluate runs/a --suite core --core.context_size 64
  sae-plugins evaluate runs/a --suite sparse-probing --sparse-probing.k_values 1 5
  sae-plugins evaluate gemma-scope-2b-pt-res-canonical:layer_12/width_16k/canonical --dry_run
  sae-plugins evaluate --list --suite core                       metrics and settings, explained
"""
NOTES = """\
The same command again computes only what is missing or has failed. Evaluate SAEs of one hook
together: they share what is computed of the language model alone. Exit code: 0 all is well (a suite
that does not apply to an SAE says so), 1 a row has failed, 2 something is to be changed.
"""
_SETTINGS = """\
the suites' settings:
  --SUITE.SETTING VALUE..., as in --core.context_size 64; `sae-plugins evaluate --list` shows them.
"""
GROUPS = {"": "flags:", "settings": _SETTINGS}


def suite_list() -> Mapping[str, Mapping[str, str]]:
    """The installed suites, with what they are."""
    from sae_plugins.eval_suites.registry import summaries

    return {"suites:": summaries()}
