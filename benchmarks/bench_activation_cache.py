"""Cost of a study's training with kept activations, as a ratio to the same without.

    OMP_NUM_THREADS=1 python benchmarks/bench_activation_cache.py            # minutes on a CPU
    OMP_NUM_THREADS=1 python benchmarks/bench_activation_cache.py --model world --rounds 5

Both sides are whole: they load the language model, train eight SAEs in lockstep, save them and
score them on held-out text. A round trains without a cache, with an empty one, with that one again,
and without. The SAEs that all of them save are compared, and must be the same. The language model
is the random one of `bench_lockstep.py`, or the embedded world.
"""

import argparse
import shutil
import tempfile
from functools import partial
from pathlib import Path

import torch
from bench_lockstep import ARMS, check_same, flags_of, language_model
from harness import _ratio, _seconds, report

from sae_plugins import world
from sae_plugins.base.files import size
from sae_plugins.base.kept import total
from sae_plugins.runs import lockstep
from sae_plugins.runs.load import load_setup
from sae_plugins.settings.command_line import train_flags
from sae_plugins.settings.settle import settle


def study(folder: Path, args: argparse.Namespace, cache: Path | None) -> None:
    """Eight arms in lockstep, as a pass of a study trains them."""
    setup, arms = None, []
    flags = [] if cache is None else ["--activation_cache", str(cache)]
    for name in ARMS:
        line = [*flags_of(name, args), *flags]
        if args.model == "world":
            line += ["--hook_name", "blocks.1.hook_resid_post"]
        settings = settle(train_flags(line))
        wanted = settings.for_saelens()
        setup = setup.sharing(wanted) if setup else load_setup(wanted)
        arms.append(lockstep.LockstepRun(name, setup, folder / name, settings.plan))
    if failures := lockstep.train(arms):
        raise RuntimeError(f"arms failed: {failures}")


def main() -> None:
    """Measure as many rounds as asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=("random", "world"), default="random")
    parser.add_argument("--width", type=int, default=512, help="d_model (default 512)")
    parser.add_argument("--d_sae", type=int, default=512, help="latents (default 512)")
    parser.add_argument("--tokens", type=int, default=8192, help="to train on (default 8192)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--json", help="append results to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.model == "random":
        world.load_hooked_transformer = language_model(args.width)
    values: dict[str, list[float]] = {"an empty cache": [], "a full cache": []}
    for round_ in range(args.rounds + 1):  # the first is a warm-up
        with tempfile.TemporaryDirectory() as made:
            cache = Path(made) / "cache"
            sides = {"before": None, "an empty cache": cache, "a full cache": cache, "after": None}
            seconds = {
                name: _seconds(partial(study, Path(made) / name, args, where))
                for name, where in sides.items()
            }
            for name in [*sides][1:]:
                check_same(Path(made) / "before", Path(made) / name)
            held = size(total(cache))
            shutil.rmtree(cache)
        if round_:
            reference = (seconds["before"] + seconds["after"]) / 2
            for name, ratios in values.items():
                ratios.append(seconds[name] / reference)
            print({name: round(value, 1) for name, value in seconds.items()}, held, flush=True)
    title = f"time of {len(ARMS)} arms with kept activations / without ({args.model})"
    report(title, [_ratio(*each) for each in values.items()], args.json)


if __name__ == "__main__":
    main()
