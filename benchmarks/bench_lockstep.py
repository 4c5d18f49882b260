"""Cost of training eight SAEs in lockstep, as a ratio to eight separate runs.

    OMP_NUM_THREADS=1 python benchmarks/bench_lockstep.py            # minutes on a CPU
    OMP_NUM_THREADS=1 python benchmarks/bench_lockstep.py --width 1024 --rounds 1

Both sides are whole: they load the language model, train, save and score on held-out text. The
separate runs are those of `sae-plugins train`, without figures, in one process. The language model
is a random one in the embedded world's place, with its tokenizer, and wide enough to take most of a
separate run's time. The SAEs that both sides save are compared, and must be the same.
"""

import argparse
import contextlib
import io
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import _ratio, _seconds, report
from safetensors.torch import load_file
from transformer_lens import HookedTransformer, HookedTransformerConfig

from sae_plugins import world
from sae_plugins.entrypoints.main import main as sae_plugins
from sae_plugins.runs import lockstep
from sae_plugins.runs.load import load_setup
from sae_plugins.settings.command_line import train_flags
from sae_plugins.settings.settle import settle

LAYERS = 4
ARMS = {
    "l1 low": "--l1_coefficient 0.5",
    "l1": "--l1_coefficient 1.5",
    "l1 high": "--l1_coefficient 4.5",
    "topk": "--architecture topk --k 32",
    "topk high": "--architecture topk --k 8",
    "batchtopk": "--architecture batchtopk --k 32",
    "batchtopk high": "--architecture batchtopk --k 8",
    "hybrid-order": "--plugin hybrid-order --reorder.start 2 --reorder.interval 2",
}
COMMON = (
    f"--hook_name blocks.{LAYERS - 1}.hook_resid_post --train_batch_size_tokens 1024 "
    "--n_batches_in_buffer 16 --n_batches_for_norm_estimate 1 --heldout_tokens 1024 "
    "--recorder.figures false"
)


def language_model(width: int) -> Callable[..., Any]:
    """A loader of a random model."""

    def load(device: str = "cpu", dtype: str = "float32") -> HookedTransformer:
        tokenizer = world.load_tokenizer()
        shape = {"n_layers": LAYERS, "d_model": width, "n_heads": 8, "d_head": width // 8}
        config = HookedTransformerConfig(
            **shape,
            d_mlp=4 * width,
            n_ctx=128,
            d_vocab=len(tokenizer),
            act_fn="gelu",
            seed=0,
            device=device,
        )
        return HookedTransformer(config, tokenizer)

    return load


def flags_of(arm: str, args: argparse.Namespace) -> list[str]:
    """What `sae-plugins train` is given."""
    size = f"--training_tokens {args.tokens} --d_sae {args.d_sae}"
    return [*COMMON.split(), *size.split(), *ARMS[arm].split()]


def separately(folder: Path, args: argparse.Namespace) -> None:
    """Eight runs, one after the other."""
    for arm in ARMS:
        with contextlib.redirect_stdout(io.StringIO()):
            sae_plugins(["train", *flags_of(arm, args), "--output_path", str(folder / arm)])


def together(folder: Path, args: argparse.Namespace) -> None:
    """Eight arms in lockstep."""
    setup, arms = None, []
    for name in ARMS:
        settings = settle(train_flags(flags_of(name, args)))
        setup = (
            setup.sharing(settings.for_saelens()) if setup else load_setup(settings.for_saelens())
        )
        arms.append(lockstep.LockstepRun(name, setup, folder / name, settings.plan))
    if failures := lockstep.train(arms):
        raise RuntimeError(f"arms failed: {failures}")


def check_same(left: Path, right: Path) -> None:
    """Fail unless all arms' weights are bitwise the same."""
    for arm in ARMS:
        one, other = (load_file(run / arm / "sae_weights.safetensors") for run in (left, right))
        if not all(torch.equal(tensor, other[name]) for name, tensor in one.items()):
            raise RuntimeError(f"{arm}: lockstep and the separate run gave different weights")


def main() -> None:
    """Measure as many rounds as asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=int, default=512, help="d_model (default 512)")
    parser.add_argument("--d_sae", type=int, default=512, help="latents (default 512)")
    parser.add_argument("--tokens", type=int, default=8192, help="to train on (default 8192)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds (default 2)")
    parser.add_argument("--json", help="append results to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    world.load_hooked_transformer = language_model(args.width)
    values = []
    for round_ in range(args.rounds + 1):
        if not round_:  # a warm-up
            own, args.tokens = args.tokens, 4096
        with tempfile.TemporaryDirectory() as made:
            sides = {name: Path(made) / name for name in ("before", "separate", "after")}
            works = {name: separately if name == "separate" else together for name in sides}
            seconds = {
                name: _seconds(partial(works[name], folder, args)) for name, folder in sides.items()
            }
            check_same(sides["before"], sides["separate"])
        if round_:
            values.append((seconds["before"] + seconds["after"]) / 2 / seconds["separate"])
            print({name: round(value, 1) for name, value in seconds.items()}, flush=True)
        else:
            args.tokens = own
    title = f"time of {len(ARMS)} arms in lockstep / of separate runs (d_model {args.width})"
    report(title, [_ratio("lockstep", values)], args.json)


if __name__ == "__main__":
    main()
