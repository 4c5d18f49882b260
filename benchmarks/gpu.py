"""What holds on a GPU, and what steps cost there: `benchmarks/gpu.sh` runs this.

    python benchmarks/gpu.py                          # a GPU, under six minutes
    python benchmarks/gpu.py --device cpu --tiny      # tries it: shapes that say nothing

Each part has its time. What a part does not use is the next one's; a case that would begin after
its part's time is left out, and the results name it. `results.json` is written after each case.
"""

import argparse
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gpu_table import markdown
from standins import stand_in

from sae_plugins.base import files

ROOT = Path(__file__).parents[1]
NOT_NEEDED = (
    *("transformers", "datasets", "wandb", "pandas", "plotly", "requests", "huggingface_hub"),
    *("tokenizers", "accelerate", "rich", "bitsandbytes"),
)
"""What SAELens and TransformerLens import, and no training step uses."""

Cases = Mapping[str, Callable[[], dict[str, Any]]]


def main() -> int:
    """Measure; 1 if a case failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, few rounds")
    parser.add_argument("--seconds", type=float, default=300, help="for all parts (default 300)")
    parser.add_argument("--part", nargs="+", help="default all")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "gpu", help="a folder")
    args = parser.parse_args()
    begin = time.monotonic()
    if (args.output / "results.json").exists():
        parser.error(f"{args.output} has results: remove them, or name another folder by --output")
    prepare(args.device)
    import torch
    from gpu_parts import parts
    from harness import machine

    known = parts(args.tiny)
    if unknown := set(args.part or ()) - known.keys():
        parser.error(f"there is no part {', '.join(sorted(unknown))}: there are {', '.join(known)}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --device cpu --tiny tries the script without one")
    results: dict[str, Any] = {"machine": machine(), "tiny": args.tiny, "parts": {}}

    def elapsed() -> float:
        return time.monotonic() - begin

    def write() -> None:
        save({**results, "seconds": round(elapsed(), 1)}, args.output)

    chosen = {name: known[name] for name in args.part or known}
    run(chosen, args.seconds, results["parts"], elapsed, write)
    print((args.output / "results.md").read_text("utf-8"))
    return int(any(part["failed"] for part in results["parts"].values()))


def save(results: dict[str, Any], folder: Path) -> None:
    """Write both files."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"results.json": json.dumps(results, indent=1), "results.md": markdown(results)}
    for name, text in texts.items():
        files.write(folder / name, text + "\n")


def prepare(device: str) -> None:
    """Say what is imported, before anything is."""
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["SAE_PLUGINS_TEST_DEVICE"] = device
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    stand_in(*NOT_NEEDED)


def run(
    parts: Mapping[str, tuple[float, Cases]],
    seconds: float,
    results: dict[str, Any],
    elapsed: Callable[[], float],
    write: Callable[[], None],
) -> None:
    """Measure the cases of all parts, each part up to its share of the time.

    Args:
        parts: by name, the part's share and its cases.
        seconds: for all parts.
        results: where the rows go.
        elapsed: gives how many of the seconds have passed.
        write: called after each case.
    """
    shares, used = sum(share for share, _ in parts.values()), 0.0
    for name, (share, cases) in parts.items():
        used += share
        until = seconds * used / shares
        part = results[name] = {"rows": [], "left_out": [], "failed": []}
        for case, measure in cases.items():
            if elapsed() > until:
                part["left_out"].append(case)
                continue
            print(f"{elapsed():6.1f} s  {name}: {case}", flush=True)
            try:
                part["rows"].append({"case": case, **measure()})
            except Exception as error:  # one that fails stops no other
                traceback.print_exc()
                part["failed"].append({"case": case, "error": f"{type(error).__name__}: {error}"})
            free()
            write()
    write()


def free() -> None:
    """Give back what a case has left."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
