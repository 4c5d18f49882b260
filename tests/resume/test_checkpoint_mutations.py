"""A checkpoint folder that anything happened to: refused with a sentence, or harmless.

Each seed is one mutation of the folder of a real run, which is then resumed and trained to its end.
"""

from __future__ import annotations

import os
import pickle
import random
import re
import shutil
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import save_file
from torch import Tensor

from sae_plugins import Checkpoints, Plugin, PluginError, hookimpl, plugins
from sae_plugins.resume.files import files
from sae_plugins.resume.state import read_state, write_state
from sae_plugins.testing import equal_values, tiny_batches, tiny_sae

STEPS = 18
CURE = re.compile(r"start the run anew|go on with|choose another|build (all|as many)")
"""What a message may advise."""


class Batches(Iterator[Tensor]):
    """A data provider that knows its place."""

    def __init__(self, seed: int = 0) -> None:
        self.batches = tiny_batches(seed, steps=STEPS)
        self.place = 0

    def __next__(self) -> Tensor:
        self.place += 1
        return self.batches[self.place - 1]

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = state["place"]


class Averages(Plugin):
    """State of every kind: made at the start and later, tracked, random, and in containers."""

    name = "averages"

    class Options(Plugin.Options):
        """How slow."""

        decay: float = 0.5

    @hookimpl
    def attached(self, run):
        self.mean = run.features.track(self, "mean", torch.zeros(run.features.d_sae))
        self.last: Tensor | None = None
        self.seen: dict[int, Any] = {}

    @hookimpl
    def step_ended(self, run, output):
        self.mean.lerp_(run.firing_counts, 1 - self.options.decay)
        self.last = output.sae_out.detach().mean(0)
        self.seen[run.step] = (float(self.last.norm()), torch.rand(2, generator=self.rng))

    @hookimpl
    def extra_losses(self, run):
        if self.last is None:
            return None
        noise = torch.rand(run.sae.b_dec.shape, generator=self.rng)
        return {"noise": 1e-2 * (run.sae.b_dec * (noise + self.last)).sum()}


class Unknown:
    """Batches without a place."""

    def __init__(self, batches: Iterator[Tensor]) -> None:
        self.batches = batches

    def __next__(self) -> Tensor:
        return next(self.batches)


class AveragesAnew(Averages):
    state_version = 2


def run(
    checkpoints: Checkpoints | None = None,
    *,
    names: tuple[Any, ...] = ("hybrid-order", Averages),
    without: tuple[str, ...] = (),
    seed: int = 0,
    decay: float = 0.5,
    training: dict[str, Any] | None = None,
    architecture: str = "standard",
    d_sae: int = 24,
    provider: Any = None,
    **config: Any,
) -> Any:
    """The run; whatever is passed makes it another one."""
    options: dict[str, Any] = {"reorder": {"start": 0, "interval": 3, "adaptive": False}}
    options |= {"averages": {"decay": decay}, "input-norm-l1": {"per": "batch"}}
    fields = {
        "total_training_samples": STEPS * 32,
        "train_batch_size_samples": 32,
        "lr": 0.01,
        "lr_end": 0.001,
        "logger": LoggingConfig(log_to_wandb=False),
    }
    sae = tiny_sae(architecture, d_sae=d_sae)
    settled = {"without": without, "options": options, "training": training, "seed": seed}
    with plugins(*names, **settled, checkpoints=checkpoints):
        trainer = SAETrainer(SAETrainerConfig(**{**fields, **config}), sae, provider or Batches())
        trainer.fit()
    return trainer


OTHER_RUNS: dict[str, dict[str, Any]] = {
    "seed": {"seed": 1},
    "an option": {"decay": 0.25},
    "order": {"names": (Averages, "hybrid-order")},
    "a plugin less": {"without": ("unit-norm-decoder",)},
    "a plugin more": {"names": ("hybrid-order", Averages, "nan-guard")},
    "state_version": {"names": ("hybrid-order", AveragesAnew)},
    "training settings": {"training": {"accumulate": 2}},
    "architecture": {"architecture": "gated"},
    "d_sae": {"d_sae": 20},
    "learning rate": {"lr": 0.02},
    "another provider": {"provider": Unknown(Batches())},
}


@dataclass
class World:
    """What every mutation starts from, and what it must come to."""

    folder: Path
    others: list[Path]
    final: dict[str, Any]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("runs")
    final = run().state_dict()
    kept = run(Checkpoints(root / "run", every="5", keep=3)).state_dict()
    assert equal_values(final, kept)
    assert [path.name for path in files(root / "run")] == [step(n) for n in (15, 10, 5)]
    others = []
    for name, other in OTHER_RUNS.items():
        run(Checkpoints(root / name, every="5", keep=1), **other)
        others.append(root / name / step(15))
    return World(root / "run", others, final)


def step(number: int) -> str:
    return f"step-{number:09d}.safetensors"


# -- mutations -------------------------------------------------------------------------------------


def place(path: Path, rng: random.Random) -> int:
    """A byte of a file: of the header's length, of the header, of the tensors."""
    size = path.stat().st_size
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    start, end = rng.choice([(0, 8), (8, min(header, size)), (min(header, size - 1), size)])
    return rng.randrange(start, max(end, start + 1)) % size


def edited(path: Path, edit: Callable[[bytearray], Any]) -> None:
    content = bytearray(path.read_bytes())
    edit(content)
    path.write_bytes(content)


def flip(path: Path, rng: random.Random, world: World) -> None:
    def edit(content: bytearray) -> None:
        for _ in range(rng.choice([1, 1, 1, 2, 16])):
            content[place(path, rng)] ^= 1 << rng.randrange(8)

    edited(path, edit)


def truncate(path: Path, rng: random.Random, world: World) -> None:
    os.truncate(path, place(path, rng))


def zero(path: Path, rng: random.Random, world: World) -> None:
    start = place(path, rng)
    size = min(rng.choice([1, 8, 4096]), path.stat().st_size - start)
    edited(path, lambda content: content.__setitem__(slice(start, start + size), bytes(size)))


def append(path: Path, rng: random.Random, world: World) -> None:
    edited(path, lambda content: content.extend(rng.randbytes(rng.choice([1, 8, 5000]))))


def duplicate(path: Path, rng: random.Random, world: World) -> None:
    start, size = place(path, rng), rng.choice([1, 4, 64, 4096])
    edited(path, lambda content: content.__setitem__(slice(start, start), content[start:][:size]))


def exchange(path: Path, rng: random.Random, world: World) -> None:
    """Two ranges of equal length: each is well-formed, and in the wrong place."""
    one, other, size = place(path, rng), place(path, rng), rng.choice([1, 4, 64])

    def edit(content: bytearray) -> None:
        a, b = bytes(content[one : one + size]), bytes(content[other : other + size])
        content[one : one + len(b)] = b
        content[other : other + len(a)] = a

    edited(path, edit)


def rename(path: Path, rng: random.Random, world: World) -> None:
    names = [step(n) for n in (0, 1, 7, 12, 18, 99, 10**12)]
    path.rename(path.with_name(rng.choice([*names, "step-.safetensors", "step-x.safetensors"])))


def swap(path: Path, rng: random.Random, world: World) -> None:
    other = rng.choice(files(path.parent))
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    other.write_bytes(one)


def delete(path: Path, rng: random.Random, world: World) -> None:
    path.unlink()


def replace(path: Path, rng: random.Random, world: World) -> None:
    path.unlink()
    rng.choice(FOREIGN)(path)


def add(path: Path, rng: random.Random, world: World) -> None:
    """A file that nobody wrote, newer than all."""
    names = [step(n) for n in range(16, 30) if not os.path.lexists(path.with_name(step(n)))]
    rng.choice(FOREIGN)(path.with_name(rng.choice(names)))


def leave_partial(path: Path, rng: random.Random, world: World) -> None:
    path.rename(path.with_name(path.name + ".partial"))


def bring(path: Path, rng: random.Random, world: World) -> None:
    """Another run's checkpoint, in place of one, or newer than all."""
    target = path.with_name(step(rng.choice([5, 10, 15, 17])))
    target.write_bytes(rng.choice(world.others).read_bytes())


class Bomb:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('code from a file was run')",)


FOREIGN: list[Callable[[Path], Any]] = [
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(pickle.dumps({"format": Bomb()})),
    lambda path: torch.save({"format": Bomb()}, path),
    lambda path: path.write_text("print('hello')\n" * 50),
    lambda path: save_file({"W_enc": torch.ones(8, 24)}, path),
    lambda path: save_file({"W_enc": torch.ones(8, 24)}, path, {"format": "pt"}),
    lambda path: write_state(path, {}),
    lambda path: write_state(path, {"format": 1}),
    lambda path: path.mkdir(),
    lambda path: path.symlink_to("nowhere.safetensors"),
    lambda path: path.symlink_to(step(5)),
    lambda path: path.symlink_to(path),
]


# Files that are whole, with a digest that is right: what another version could have written.


def rewritten(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    tree = read_state(path)
    edit(tree)
    write_state(path, tree)


def other_format(path: Path, rng: random.Random, world: World) -> None:
    value = rng.choice([0, 2, 99, None, "1", 1.5, [1], {"a": 1}])
    rewritten(path, lambda tree: tree.update(format=value))


def containers(tree: Any, kinds: tuple[type, ...], at: tuple[Any, ...] = ()) -> Iterator[Any]:
    """Every container in a tree that is not empty, with its place."""
    if isinstance(tree, kinds) and len(tree):
        yield tree, at
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        if isinstance(value, (dict, list, tuple)):
            yield from containers(value, kinds, (*at, key))


def lose(path: Path, rng: random.Random, world: World) -> None:
    """A name less, anywhere."""

    def edit(tree: dict[str, Any]) -> None:
        depth = rng.randrange(6)
        found = [(c, at) for c, at in containers(tree, (dict,)) if len(at) <= depth]
        container, _ = rng.choice(found)
        container.pop(rng.choice(list(container)))

    rewritten(path, edit)


def reshape(path: Path, rng: random.Random, world: World) -> None:
    """A tensor of another shape; a plugin's own may have any."""

    def edit(tree: dict[str, Any]) -> None:
        found = [
            (container, key)
            for container, at in containers(tree["trainers"], (dict, list))
            for key in (container if isinstance(container, dict) else range(len(container)))
            if isinstance(container[key], Tensor) and "plugins" not in at
        ]
        container, key = rng.choice(found)
        tensor = container[key]
        twice = torch.cat([tensor, tensor]) if tensor.ndim else torch.stack([tensor, tensor])
        changes = [tensor[None], tensor[..., None], tensor.flatten()[1:], twice]
        container[key] = rng.choice(changes)

    rewritten(path, edit)


def other_facts(path: Path, rng: random.Random, world: World) -> None:
    """An option, a setting or a version of another value."""

    def edit(tree: dict[str, Any]) -> None:
        found = [c for c, _ in containers(tree["facts"], (dict,))]
        container = rng.choice(found)
        container[rng.choice([*container, "new"])] = rng.choice([None, 7, "else", {"a": 1}])

    rewritten(path, edit)


def less_of_a_list(path: Path, rng: random.Random, world: World) -> None:
    """An SAE, a group of parameters, a parameter or a gradient less, or one more."""

    def edit(tree: dict[str, Any]) -> None:
        trainer = tree["trainers"][0]
        groups = trainer["optimizer"]["param_groups"]
        held = trainer["window"]["held"]
        changed = rng.choice([tree["facts"], tree["trainers"], groups, groups[0]["params"], held])
        changed.append(changed[-1]) if rng.random() < 0.3 else changed.pop()

    rewritten(path, edit)


MUTATIONS = [
    *(flip, flip, flip, truncate, zero, append, duplicate, exchange),
    *(rename, swap, delete, replace, add, leave_partial, bring, bring),
    *(other_format, lose, lose, lose, reshape, other_facts, less_of_a_list),
]


def _put(tree: Any, path: str, value: Any) -> None:
    *names, last = path.split("/")
    for name in names:
        tree = tree[name]
    tree[last] = value


IN_COUNTERS: dict[str, list[Any]] = {
    "counters/n_training_steps": [16, 14, 0, -1, 10**9, "15", 15.0, None, [15]],
    "counters/n_training_samples": [-32, 3, STEPS * 32, 10**9, "480", 480.0, None],
    "counters/n_frac_active_samples": [0, -32, 481, 10**6, "480", None],
    "counters/started_fine_tuning": [None, 1, "no"],
    "counters/checkpoint_thresholds": [None, 3, ["a"], [None]],
    "counters/n_forward_passes_since_fired": [torch.full((24,), v) for v in (-1.0, 99, torch.nan)],
    "counters/act_freq_scores": [torch.full((24,), v) for v in (-1.0, torch.inf, torch.nan)],
    "run/updates": [-1, 99, "15", None],
    "lr_scheduler/last_epoch": [0, 14, 17, 10**9, "15", None],
    "coefficient_schedulers/l1/current_step": [0, 14, 99, "15", None],
    "optimizer/state/0/step": [torch.tensor(-1.0), torch.tensor(99.0)],
}
"""Where a run counts, and what cannot be there after 15 steps."""


@pytest.mark.parametrize("place", IN_COUNTERS)
def test_counters_that_do_not_fit_their_step_are_refused(
    world: World, tmp_path: Path, place: str
) -> None:
    for number, value in enumerate(IN_COUNTERS[place]):
        path = tmp_path / str(number) / step(15)
        shutil.copytree(world.folder, path.parent)
        tree = read_state(path)
        trainer = tree["trainers"][0]
        if place.startswith("optimizer"):
            trainer["optimizer"]["state"][0]["step"] = value
        else:
            _put(trainer, place, value)
        write_state(path, tree)
        with pytest.raises(PluginError) as refused:
            run(Checkpoints(path.parent, resume=True))
        assert path.name in str(refused.value), value
        assert CURE.search(str(refused.value)), value


# -- what came of it -------------------------------------------------------------------------------


def mutated(folder: Path, seed: int, world: World) -> str:
    """Mutate the newest checkpoint, or each of them; says how."""
    rng = random.Random(seed)
    mutation = rng.choice(MUTATIONS)
    paths = files(folder) if rng.random() < 0.3 else files(folder)[:1]
    for path in paths:
        if path.is_file():
            mutation(path, rng, world)
    return f"{mutation.__name__} of {len(paths)}"


def outcome(folder: Path, world: World, caplog: pytest.LogCaptureFixture) -> str:
    """ "refused" or "equal", or what is wrong."""
    names = [path.name for path in files(folder)]
    caplog.clear()
    try:
        checkpoints = Checkpoints(folder, every="5", keep=3, resume=True)
        used = checkpoints.path
        trainer = run(checkpoints)
    except PluginError as error:
        text = str(error)
        if not any(name in text for name in names):
            return f"no file is named: {text}"
        return "refused" if CURE.search(text) else f"no cure is named: {text}"
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "sae_plugins" in frame.filename][-1]
        return f"{type(error).__name__} in {ours.name}:{ours.lineno}: {error}"
    final = trainer.state_dict()
    wrong = [name for name in final if not equal_values(final[name], world.final[name])]
    if wrong:
        return f"loaded wrongly: {wrong}"
    skipped = names[: names.index(used.name)] if used else names
    silent = [name for name in skipped if name not in caplog.text]
    return f"skipped without a word: {silent}" if silent else "equal"


def check(
    seeds: range, world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> dict[str, int]:
    counts = {"refused": 0, "equal": 0}
    wrong = []
    for seed in seeds:
        folder = tmp_path / str(seed)
        shutil.copytree(world.folder, folder)
        how = mutated(folder, seed, world)
        result = outcome(folder, world, caplog)
        shutil.rmtree(folder)
        if result in counts:
            counts[result] += 1
        else:
            wrong.append(f"seed {seed} ({how}): {result}")
    assert not wrong, f"{len(wrong)} of {len(seeds)}\n" + "\n".join(wrong)
    return counts


@pytest.fixture(autouse=True)
def _no_code_from_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(*args: Any, **kwargs: Any) -> None:
        raise SystemExit("something that runs code was reached")

    for name in ("pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load"):
        monkeypatch.setattr(name, reached)


def test_a_mutated_checkpoint_is_refused_or_harmless(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counts = check(range(50), world, tmp_path, caplog)
    assert min(counts.values()) >= 5, counts


@pytest.mark.slow
@pytest.mark.parametrize("hundred", range(10))
def test_a_thousand_mutations(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture, hundred: int
) -> None:
    check(range(100 * hundred, 100 * (hundred + 1)), world, tmp_path, caplog)


@pytest.mark.parametrize("name", OTHER_RUNS)
def test_another_runs_checkpoint_is_refused_with_the_difference(
    world: World, tmp_path: Path, name: str
) -> None:
    path = tmp_path / step(15)
    shutil.copy(world.others[list(OTHER_RUNS).index(name)], path)
    with pytest.raises(PluginError, match=path.name):
        run(Checkpoints(tmp_path, resume=True))
