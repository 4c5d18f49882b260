"""The four papers' methods on a real language model, trained with BOS and without.

    python benchmarks/smollm2.py FOLDER             # makes the folder
    python benchmarks/smollm2_methods.py FOLDER     # half an hour of an idle core
    python docs/generate.py                         # makes a table of it in docs/papers.md

Every method trains 300 steps at layer 15 of SmolLM2-135M, all of them on the same batches: once on
all positions, and once without those of special tokens, of which BOS is one. All SAEs are scored on
the same held-out text without BOS.
"""

from __future__ import annotations

import argparse
import json
import shlex
import tempfile
from pathlib import Path
from typing import Any

from harness import machine
from sae_lens import SAE

from sae_plugins.runs.load import load_setup
from sae_plugins.runs.lockstep import LockstepRun, train
from sae_plugins.settings.command_line import train_flags
from sae_plugins.settings.settings import Settings
from sae_plugins.settings.settle import settle

RESULTS = Path(__file__).parent / "results" / "smollm2.json"
D_SAE, TOKENS = 1152, 512
"""Features, and tokens of a step."""
METHODS = {
    "hybrid-order": "--l1_coefficient 0.04 --reorder.start 0.41 --reorder.interval 0.1 "
    "--reorder.unit mean --reorder.threshold 3",
    "hierarchical": f"--l1_coefficient {D_SAE**-0.5}",
    "adaptive-threshold": "--l1_coefficient 0.04 --activation-threshold.start 0.205 "
    "--decoder-orthogonality.start 0.205 --reconstruction-warm-up.steps 0.205",
    "adaptive-orthogonality": "--l1_coefficient 0.04",
}
"""The papers' coefficients; what they do after so many of 4,882 steps, as shares of the run."""
COMMON = (
    f"--hook_name blocks.15.hook_resid_post --streaming false --d_sae {D_SAE} --lr 1e-3 "
    f"--train_batch_size_tokens {TOKENS} --context_size 64 --store_batch_size_prompts 8 "
    "--n_batches_in_buffer 64 --heldout_tokens 20000 --device cpu"
)
SCORES = ("explained_variance", "cosine", "l0", "never_fired")


def settings_of(method: str, excluded: bool, folder: Path, kept: Path, steps: int) -> Settings:
    """A method's run, as `sae-plugins train` would settle it.

    The language model reads each prompt once, whatever is left out of it: activations are kept.
    """
    words = ["--plugin", method, *shlex.split(COMMON), *shlex.split(METHODS[method])]
    words += ["--model_name", str(folder / "model"), "--dataset_path", str(folder / "text")]
    words += ["--exclude_special_tokens", str(excluded).lower(), "--activation_cache", str(kept)]
    return settle(train_flags([*words, "--training_tokens", str(TOKENS * steps)]))


def trained(
    excluded: bool, folder: Path, scratch: Path, steps: int, setup: Any
) -> list[LockstepRun]:
    """All methods, in lockstep."""
    arms = []
    for method in METHODS:
        settings = settings_of(method, excluded, folder, scratch / "activations", steps)
        wanted = settings.for_saelens()
        setup = load_setup(wanted) if setup is None else setup.sharing(wanted)
        place = scratch / str(excluded) / method
        arms.append(LockstepRun(method, setup, place, settings.plan, figures=False))
    if failures := train(arms, lambda done, total: print(f"  {done}/{total}", end="\r")):
        raise RuntimeError(f"methods failed: {failures}")
    print(f"trained {len(arms)} methods {'without' if excluded else 'with'} BOS", flush=True)
    return arms


def measured(folder: Path, steps: int) -> list[dict[str, Any]]:
    """Scores of all methods, with BOS and without; a row each."""
    with tempfile.TemporaryDirectory() as made:
        scratch = Path(made)
        with_bos = trained(False, folder, scratch, steps, None)
        without = trained(True, folder, scratch, steps, with_bos[0].setup)
        arms = [(arm, arm in with_bos) for arm in (*with_bos, *without)]
        saes = [SAE.load_from_disk(str(arm.folder)) for arm, _ in arms]
        found = without[0].setup.heldout(saes)  # which leaves BOS out
        return [
            {"method": arm.name, "bos": bos} | {name: scores[name] for name in SCORES}
            for (arm, bos), scores in zip(arms, found, strict=True)
        ]


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="of benchmarks/smollm2.py")
    parser.add_argument("--steps", type=int, default=300, help="of training (default 300)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file of the results")
    args = parser.parse_args()
    folder: Path = args.folder.expanduser().absolute()
    results = {"machine": machine(), "steps": args.steps, "rows": measured(folder, args.steps)}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    for row in results["rows"]:
        print(json.dumps(row))
    print(f"{args.output}: python docs/generate.py makes a table of it")


if __name__ == "__main__":
    main()
