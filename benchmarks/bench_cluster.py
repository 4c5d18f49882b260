"""How busy a study keeps its workers: a simulation of its tasks, from costs that were measured.

    python benchmarks/bench_cluster.py                      # 3 seeds x 12 arms, 8 workers
    python benchmarks/bench_cluster.py --costs studies/mine # with the costs of that study's tasks

The tasks are those that `study run --jobs` cuts. A worker takes the next one when it is free, and
evaluations are handed over when the training that they follow from has ended. `busy` is the share
of the workers' time in which they work, `useful` the share without what further tasks repeat, and
`sooner` how many times sooner than one worker they are done.
"""

import argparse
import heapq
from collections import deque
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

from sae_plugins.study.tasks import Cutter, Task
from sae_plugins.study.told import reports

SETUP = 20.0
"""Seconds until a process that is new has imported everything."""
MEASURED = {
    # CPU seconds by task and by SAE, of 1,000 steps: bench_ranks.py, layer 14, d_sae 2304
    "SmolLM2-135M": {"training": (5_250.0, 480.0)},
    # seconds of 1,500 steps of 384 samples, d_sae 96: --costs of a study of 8 SAEs for each seed
    "synthetic:toy": {"training": (6.0, 5.5), "evaluation": (1.0, 0.8)},
}
Costs = dict[str, tuple[float, float]]


def costs_of(folder: Path) -> Iterator[tuple[str, Costs]]:
    """The medians of what the tasks of a study have told, by model."""
    told = [one.facts["costs"] for one in reports(folder).values() if one.facts.get("costs")]
    for model in {one["model"] for one in told}:
        found: Costs = {}
        for what in ("training", "evaluation"):
            own = [one for one in told if (one["model"], one["what"]) == (model, what)]
            if own:
                middle = [median(one[name] for one in own) for name in ("shared", "each")]
                found[what] = (middle[0], middle[1])
        if len(found) == 2:
            yield model, found


def simulated(costs: Costs, seeds: int, saes: int, workers: int) -> dict[str, float]:
    """Of a study of so many SAEs for each seed."""
    study: Any = SimpleNamespace(
        models={"model": SimpleNamespace(suites={"suite": {}} if "evaluation" in costs else {})}
    )
    cells: Any = [
        SimpleNamespace(
            model="model",
            seed=seed,
            folder=Path(f"sae{number}"),
            settings=SimpleNamespace(is_synthetic=False),
        )
        for seed in range(seeds)
        for number in range(saes)
    ]
    cutter = Known(study, Task("", Path(), "", 0), workers, costs)
    waiting = deque(cutter.training(cells))
    passes, ended, now, work = len(waiting), list[tuple[float, int, Task]](), 0.0, 0.0
    free, order = workers, count()
    while waiting or ended:
        while waiting and free:
            task, free = waiting.popleft(), free - 1
            shared, each = costs["evaluation" if task.suites else "training"]
            takes = SETUP + shared + each * len(task.saes)
            work += takes
            heapq.heappush(ended, (now + takes, next(order), task))
        now, _, task = heapq.heappop(ended)
        free += 1
        waiting.extend(cutter.evaluating(task, passes))
    alone = seeds * sum(SETUP + shared + each * saes for shared, each in costs.values())
    return {
        "tasks": passes,
        "busy": work / (workers * now),
        "useful": alone / (workers * now),
        "sooner": alone / now,
    }


class Known(Cutter):
    """Cuts by costs that are known."""

    def __init__(self, study: Any, alike: Task, workers: int, known: Costs) -> None:
        super().__init__(study, alike, workers)
        object.__setattr__(self, "known", known)

    def _measured(self, what: str) -> dict[str, float]:
        shared, each = self.known[what]  # type: ignore[attr-defined]
        return {"model": (shared + SETUP) / each}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--costs", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--saes", type=int, default=12, help="of each seed: arms times L0s")
    parser.add_argument("--workers", type=int, default=8)
    given = parser.parse_args()
    known = dict(costs_of(given.costs)) if given.costs else MEASURED
    print(f"{given.seeds} seeds x {given.saes} SAEs, {given.workers} workers")
    for name, costs in known.items():
        found = simulated(costs, given.seeds, given.saes, given.workers)
        print(f"{name:<16}" + "".join(f"  {key} {value:5.2f}" for key, value in found.items()))


if __name__ == "__main__":
    main()
