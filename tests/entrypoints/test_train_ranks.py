"""`sae-plugins train` on several ranks: the run of one process, or a sentence before it begins."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Array2D, Dataset, Features
from faults import contents
from ranked import TINY, Fault, Said, command, sentences, train, trained

from sae_plugins.base import ranks
from sae_plugins.entrypoints.main import main
from sae_plugins.framework.trainer import PluginTrainer

V4 = [*TINY, "--data_shards", "4"]
METHOD = ["--plugin", "hybrid-order", "--reorder.start", "2", "--reorder.interval", "2"]
KINDS = {
    "hybrid-order": METHOD,
    "hierarchical": ["--plugin", "hierarchical"],
    "matryoshka": ["--architecture", "matryoshka_batchtopk", "--k", "4"],
    "topk": ["--architecture", "topk", "--k", "4"],
    "jumprelu": ["--architecture", "jumprelu"],
    "gated": ["--architecture", "gated"],
    "whitening": ["--normalize_activations", "covariance_whitening"],
    "reading ahead": ["--prefetch_llm_batches", "2"],
    "cached": ["--use_cached_activations", "--cached_activations_path", "cached"],
    "a stream": ["--dataset_path", "data", "--streaming"],
}
PLAIN = ("cached", "a stream")
"""What has no norm to estimate beforehand."""
NO_THRESHOLDS = ("topk", "whitening")
"""What the plugin of thresholds refuses."""
TOY = [
    *("--model_name", "synthetic:toy", "--training_tokens", "480", "--d_sae", "64"),
    *("--train_batch_size_tokens", "96", "--eval_samples", "500", "--heldout_tokens", "500"),
    *("--n_batches_for_norm_estimate", "2", "--recorder.every", "1", "--recorder.figures", "false"),
    *("--data_shards", "4", *METHOD),
]


@pytest.fixture(autouse=True)
def world(tiny_world: Any, sketched: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty working directory, and a tiny model for the embedded world."""
    monkeypatch.setattr(ranks, "_GRACE", 1.0)
    return tiny_world


def words_of(kind: str) -> list[str]:
    words = [*V4, *KINDS[kind]]
    if kind in NO_THRESHOLDS:
        place = words.index("activation-threshold")
        del words[place - 1 : place + 1]
    if kind in PLAIN:
        place = words.index("--n_batches_for_norm_estimate")
        del words[place : place + 2]
        words += ["--normalize_activations", "none"]
    return words


def equal(words: list[str], *sizes: int) -> dict[str, Any]:
    """The files of a run on one rank, which on more must be the same."""
    wanted = trained(words, 1, "run")
    Path("run").rename("alone")
    for size in sizes:
        found = trained(words, size, "run")
        differ = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
        assert not differ, (size, differ)
        Path("run").rename(f"on-{size}")
    return wanted


def test_two_ranks_one_of_which_is_told_to_end_and_one_that_goes_on() -> None:
    words = [*V4, *METHOD, "--checkpoint_every", "2"]
    wanted = trained(words, 1, "run")
    assert {"sae_weights.safetensors", "metrics.jsonl", "summary.json"} <= {*wanted}
    assert len(wanted["metrics.jsonl"]) == 7
    Path("run").rename("alone")
    first, second = train([*words, "--output_path", "run"], 2, Fault("TERM", "step", 5, 1))
    assert isinstance(first, Said)
    assert "data shards 4, read by 2 ranks" in first.out
    assert "go on with it: sae-plugins train --resume run" in first.out
    assert (first.code, second) == (130, Said(130, "", ""))
    assert main(["train", "--resume", "run"]) == 0
    assert contents(Path("run")) == wanted
    assert not [*Path("run").rglob("*shard*")]


@pytest.mark.ci
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_on_two_ranks(kind: str, world: Any) -> None:
    rows = world.text("train")["tokens"]
    if kind == "a stream":
        Path("data").mkdir()
        for part in range(4):
            lines = (json.dumps({"tokens": row}) for row in rows[part::4])
            Path("data", f"{part}.jsonl").write_text("\n".join(lines))
    if kind == "cached":
        hook = "blocks.1.hook_resid_post"
        _, acts = world.model().run_with_cache(torch.tensor(rows), names_filter=[hook])
        features = Features({hook: Array2D((16, world.d_model), "float32")})
        Dataset.from_dict({hook: acts[hook].numpy()}, features=features).save_to_disk("cached")
    equal(words_of(kind), 2)


@pytest.mark.ci
def test_samples_of_a_synthetic_model_on_two_and_four_ranks() -> None:
    equal(TOY, 2, 4)


def test_rank_0_alone_writes_sae_lens_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    own = PluginTrainer.save_trainer_state

    def saving(trainer: Any, folder: Path) -> None:
        with Path("wrote").open("a") as file:
            file.write(f"{ranks.ranks().rank}")
        own(trainer, folder)

    monkeypatch.setattr(PluginTrainer, "save_trainer_state", saving)
    trained([*V4, "--n_checkpoints", "2"], 2, "run")
    assert len([*Path("run", "checkpoints").iterdir()]) == 2
    assert Path("wrote").read_text() == "00"


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in PLAIN])
def test_every_kind_on_four_ranks(kind: str) -> None:
    equal(words_of(kind), 4)


@pytest.mark.ci
@pytest.mark.parametrize("sizes", [(1, 2, 4), (4, 2, 1), (2, 1, 2)])
def test_a_run_goes_on_on_any_number_of_ranks(sizes: tuple[int, ...]) -> None:
    words = [*V4, *METHOD, "--checkpoint_every", "0"]
    wanted = trained(words, 1, "run")
    Path("run").rename("alone")
    first, *others = sizes
    train([*words, "--output_path", "run"], first, Fault("TERM", "step", 3, 0))
    train(["--resume", "run"], others[0], Fault("TERM", "step", 2, others[0] - 1))
    (said, *_) = train(["--resume", "run"], others[1])
    assert said.code == 0, said
    assert contents(Path("run")) == wanted


@pytest.mark.ci
def test_kept_activations_are_found_by_any_number_of_ranks() -> None:
    words = [*V4, "--activation_cache", "kept"]
    cold = trained(words, 2, "run")
    files = {path: path.read_bytes() for path in Path("kept").rglob("*.safetensors")}
    assert files
    Path("run").rename("cold")
    assert trained(words, 1, "run") == cold
    Path("run").rename("warm")
    assert trained(V4, 1, "run")["sae_weights.safetensors"] == cold["sae_weights.safetensors"]
    assert {path: path.read_bytes() for path in Path("kept").rglob("*.safetensors")} == files


@pytest.mark.ci
def test_a_step_is_one_exchange_of_rows_and_one_small_message() -> None:
    class Counting(Fault):
        """Nothing befalls the rank, whose exchanges are counted from its first step to its last."""

        def prepare(self) -> None:
            import torch.distributed as dist

            from sae_plugins.framework.trainer import PluginTrainer

            counted: Counter[str] = Counter()

            def watch(owner: Any, name: str, size: Callable[..., int]) -> None:
                own = getattr(owner, name)

                def counting(*args: Any, **kwargs: Any) -> Any:
                    counted[name] += 1
                    counted[f"{name}, bytes"] += size(*args)
                    if name == "step":
                        Path("counted.json").write_text(json.dumps(counted))
                    return own(*args, **kwargs)

                setattr(owner, name, counting)

            watch(dist, "all_gather_into_tensor", lambda all_, rows: rows.numel())
            watch(dist, "all_reduce", lambda flags, *_: flags.numel())
            watch(dist, "all_gather_object", lambda *_: 0)
            watch(dist, "barrier", lambda *_: 0)
            watch(PluginTrainer, "step", lambda *_: 0)

    words = [*V4, "--checkpoint_every", "0", "--check_ranks", "0"]
    for size in (2, 4):
        train([*words, "--output_path", f"run{size}"], size, Counting("KILL", "", 0, size - 1))
        counted = json.loads(Path("counted.json").read_text())
        norm, steps = 2, 7
        assert counted["step"] == steps
        assert counted["all_gather_into_tensor"] == norm + steps
        assert counted["all_gather_into_tensor, bytes"] == (norm + steps) * 64 // size * 16 * 4
        assert counted["all_reduce"] == steps
        assert counted["all_reduce, bytes"] <= 8 * steps
        assert counted["barrier"] < 20  # before the first step and after the last
        Path("counted.json").unlink()


# -- what is refused ---------------------------------------------------------------------------


def on_machines(*more: str, shared: bool = True) -> Callable[[int], list[str]]:
    """Ranks on machines of their own, with other files each, and one disk in common or none."""
    where = str(Path("run").absolute()) if shared else "run"

    def words(rank: int) -> list[str]:
        os.chdir(f"machine{rank}")
        return [*TINY, *more, "--output_path", where]

    return words


def on_rank_1(*more: str, act: Callable[[], Any] = bool) -> Callable[[int], list[str]]:
    """One rank has other flags, or does something before it begins."""

    def words(rank: int) -> list[str]:
        if rank == 1:
            act()
        return [*TINY, "--output_path", "run", *(more if rank == 1 else ())]

    return words


def everywhere(*more: str) -> Callable[[int], list[str]]:
    return lambda rank: [*TINY, "--output_path", "run", *more]


def another_torch() -> None:
    from sae_plugins.base import files

    own = files.versions
    files.versions = lambda *names: {**own(*names), "torch": "0.1"}


def another_code() -> None:
    from sae_plugins.base import identity

    identity.of_code = lambda *_: {"another": "file"}


ALIKE = "a run's settings, code, files and devices must be the same on all ranks: "
REFUSED = {
    "shards and ranks": (
        everywhere("--data_shards", "3"),
        "3 data shards cannot be shared by 2 ranks: .* set data_shards to 8",
    ),
    "no shards": (everywhere("--data_shards", "0"), "data_shards is 0: give 1 or more"),
    "shards and batch": (
        everywhere("--data_shards", "6"),
        "--data_shards 6: a batch of 64 tokens cannot be shared by them; give .* such as 66",
    ),
    "seed": (on_rank_1("--seed", "1"), f"{ALIKE}--seed is 42 on rank 0 and 1 on rank 1$"),
    "plugin": (
        on_rank_1("--plugin", "reorder"),
        rf"{ALIKE}--plugin is \['activation-threshold'\] on rank 0 and .*'reorder'.*more differ$",
    ),
    "version": (on_rank_1(act=another_torch), f"{ALIKE}--versions is .* on rank 0 and"),
    "code": (on_rank_1(act=another_code), f"{ALIKE}the code is .* on rank 0 and .* on rank 1$"),
    "file": (
        on_machines("--dataset_path", "texts.jsonl"),
        f"{ALIKE}.*the files of the dataset is .* on rank 0 and .* on rank 1$",
    ),
    "no text": (
        on_machines("--dataset_path", "texts0.jsonl"),
        "rank 1: --dataset_path texts0.jsonl: there is no such file",
    ),
    "a value on one rank": (on_rank_1("--d_sae", "many"), "rank 1: --d_sae 'many': it must be a"),
    "a value on all": (everywhere("--d_sae", "many"), "error: --d_sae 'many': it must be a whole"),
    "a flag": (everywhere("--trainin_tokens", "9"), "error: there is no flag --trainin_tokens"),
    "timeout": (everywhere("--rank_timeout", "-1"), "--rank_timeout -1: give seconds, more than"),
    "a GPU": (everywhere("--llm_device", "cuda:0"), "--llm_device cuda:0: each of 2 ranks has a"),
    "another disk": (
        on_machines(shared=False),
        "rank 1: .*run/unfinished is not on this rank's machine, and all ranks write .* share$",
    ),
    "a dry run": (everywhere("--dry_run"), "--dry_run says what a run needs in one process"),
    "nowhere": (lambda _: ["--resume", "nowhere"], "--resume nowhere: there is no such folder$"),
}
BY_DEFAULT = ("shards and ranks", "code", "nowhere")


@pytest.mark.parametrize(
    "what", [w if w in BY_DEFAULT else pytest.param(w, marks=pytest.mark.ci) for w in REFUSED]
)
def test_what_is_refused_is_said_once_before_training(what: str, world: Any) -> None:
    rows = world.text("train")["tokens"]
    for rank in range(2):
        Path(f"machine{rank}").mkdir()
        for name in ("texts.jsonl", f"texts{rank}.jsonl"):
            lines = (json.dumps({"tokens": row}) for row in rows[rank:])
            Path(f"machine{rank}", name).write_text("\n".join(lines))
    words, message = REFUSED[what]
    found = train(words, 2)
    said = [
        line
        for line in sentences(found).splitlines()
        if line.startswith("sae-plugins train: error")
    ]
    assert len(said) == 1, found
    assert re.search(message, said[0].removeprefix("sae-plugins train: ")), said
    assert [one.code for one in found] == [2, 2], found
    assert not [*Path().glob("**/sae_weights.safetensors")]


@pytest.mark.ci
def test_a_run_that_is_there_or_has_ended_is_refused_once() -> None:
    assert main(["train", *TINY, "--output_path", "run"]) == 0
    for words, message in (
        ([*TINY, "--output_path", "run"], "run is not empty"),
        (["--resume", "run"], "run is finished: there is nothing to go on with"),
    ):
        found = train(words, 2)
        said = sentences(found)
        assert said.count("error:") == 1, said
        assert message in said
        assert [one.code for one in found] == [2, 2]


@pytest.mark.parametrize("name", ["evaluate", pytest.param("features", marks=pytest.mark.ci)])
def test_other_commands_run_in_one_process(name: str) -> None:
    found = command([name, "run"], 2)
    assert f"sae-plugins {name} runs in one process, and 2 were started" in sentences(found)
    assert [one.code for one in found] == [2, 2]


def test_a_rank_whose_others_do_not_come_says_who_they_are() -> None:
    def words(rank: int) -> list[str]:
        os.environ["WORLD_SIZE"] = "3"
        return [*TINY, "--output_path", "run", "--rank_timeout", "1"]

    found = train(words, 1)
    assert "error: rank 0 waited 1 s for ranks 1, 2 (" in sentences(found)
    assert found[0].code == 1
    assert not Path("run").exists()
