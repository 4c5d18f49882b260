"""A run's settings: packaged recipes are valid, and a layer overrides those below it."""

from pathlib import Path

import pytest

from sae_plugins import recipes
from sae_plugins.base.errors import SaePluginsError
from sae_plugins.settings.checks import check_gpus
from sae_plugins.settings.settle import settle

GPT2 = {"model_name": "gpt2", "hook_name": "x", "dataset_path": "x"}


@pytest.mark.parametrize("name", recipes.names())
def test_packaged_recipes_are_valid(name: str):
    settings = settle({"recipe": name})
    method = name.removesuffix("-demo")
    of_sae_lens = name.startswith("baseline-") or name == "gemma-2-2b"
    assert settings.names == ([] if of_sae_lens else [method])
    assert not settings.notes


@pytest.mark.parametrize("name", [name for name in recipes.names() if name.endswith("-demo")])
def test_demos_say_all_that_another_model_s_defaults_would_change(name: str):
    flags = {"recipe": name, "model_name": "gpt2", "hook_name": "x", "dataset_path": "x"}
    here, there = settle({"recipe": name}), settle(flags)
    assert not there.notes
    assert there.plan.plugins == here.plan.plugins
    about_the_model = {*flags, "is_dataset_tokenized", "streaming", "device"}
    about_the_model |= {"context_size", "store_batch_size_prompts", "n_batches_in_buffer"}
    of_other_architectures = {"l0_coefficient", "k"}
    for flag in here.values.keys() - about_the_model - of_other_architectures:
        assert there.get(flag) == here.get(flag), flag


def test_defaults_then_method_then_recipe_then_flags(tmp_path: Path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("plugin: [hybrid-order]\naccumulate: 2\nlr: 5e-4\nreorder.interval: 7\n")
    method = settle({"plugin": ["hybrid-order"]})
    assert method.get("lr_scheduler_name") == "cosineannealing"
    assert method.plan.training.accumulate == 4
    assert method.get("training_tokens") == 1_000_000
    assert method.get("lr_warm_up_steps") == round(3000 / 4882 * 976)
    assert method.get("adam_beta1") == 0.9
    from_recipe = settle({"recipe": str(recipe)})
    assert (from_recipe.plan.training.accumulate, from_recipe.get("lr")) == (2, 5e-4)
    assert from_recipe.plan.plugins[0][1].interval == 7
    flagged = settle(
        {"recipe": str(recipe), "accumulate": 3, "reorder.interval": "9", "lr_warm_up_steps": 5}
    )
    assert flagged.plan.training.accumulate == 3
    assert flagged.plan.plugins[0][1].interval == 9
    assert flagged.get("lr_warm_up_steps") == 5


def test_who_replaces_the_plugins_of_a_recipe_is_told_how_to_keep_them():
    (note,) = settle({"recipe": "reorder-demo", "plugin": ["merge"]}).notes
    assert note.endswith("the recipe's reorder; to keep that, too, give --plugin reorder merge")
    assert not settle({"recipe": "reorder-demo", "plugin": ["reorder", "merge"]}).notes


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"architecture": "batchtopk", "k": 65, "d_sae": 64}, "--k 65 must be at most the --d_sae"),
        ({"architecture": "topk", "k": 769}, "--k 769 must be at most the --d_sae 768"),
        ({"architecture": "topk", "k": 768}, None),
        ({"architecture": "topk", "k": 769, "hook_name": "blocks.1.mlp.hook_post"}, None),
        (
            {"architecture": "topk", "k": 41, **GPT2, "d_in": 10},
            "--k 41 must be at most the --d_sa",
        ),
        ({"architecture": "topk", "k": 41, **GPT2}, None),
        ({"architecture": "topk", **GPT2, "d_sae": 64}, "--k 100 must be at most the --d_sae 64"),
        ({"architecture": "topk", "recipe": "big.yaml"}, "--k 1000 must be at most the --d_sae"),
        ({"architecture": "topk", "k": 3.5}, "--k 3.5: topk SAEs need a whole number"),
        ({"architecture": "batchtopk", "k": 3.5, "d_sae": 64}, None),
        ({"reshape_activations": "hook_z"}, "is for a --hook_name that ends in hook_z"),
        (
            {"architecture": "jumprelu", "jumprelu_sparsity_loss_mode": "quadratic"},
            "quadratic needs --target_l0",
        ),
        (
            {"architecture": "topk", "use_sparse_activations": True, "device": "cpu"},
            "PyTorch cannot train topk SAEs with them on a cpu",
        ),
    ],
)
def test_what_does_not_fit_together_in_an_sae_is_refused_before_anything_is_loaded(
    flags: dict[str, object], said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("big.yaml").write_text("architecture: topk\nk: 1000\n")
    if said is None:
        settle(flags)
        return
    with pytest.raises(SaePluginsError) as refused:
        settle(flags)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("device", "refused"), [("cuda:1", True), ("cuda", False), ("cpu", False), (None, False)]
)
def test_all_devices_of_ranks_are_without_a_number(device: str | None, refused: bool):
    names = ("device", "llm_device", "act_store_device")
    settings = settle({"hook_name": "x", "dataset_path": "x", "model_name": "gpt2"})
    settings.values |= dict.fromkeys(names, device)
    if not refused:
        return check_gpus(settings, ranks=2)
    check_gpus(settings)
    with pytest.raises(SaePluginsError) as caught:
        check_gpus(settings, ranks=2)
    for name, sentence in zip(names, caught.value.args, strict=True):
        assert sentence == (
            f"--{name} cuda:1: each of 2 ranks has a GPU of its own; give cuda, or leave torchrun "
            "out"
        )
    settings.values["resume"] = "run"  # whose device is what it was
    with pytest.raises(SaePluginsError, match="its own; leave torchrun out"):
        check_gpus(settings, ranks=2)


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("wandb_id", "me/run", "--wandb_id me/run: it must not have /; give a name without / "),
        ("wandb_id", "a:b?", "it must not have ? :"),
        ("wandb_id", " ", "--wandb_id ' ': it must not be empty"),
        ("wandb_project", "mine#1", "--wandb_project mine#1: it must not have #"),
        ("wandb_project", "x" * 129, "--wandb_project: it must have at most 128 characters"),
    ],
)
def test_what_weights_and_biases_refuses_is_refused_before_training(
    flag: str, value: str, said: str
) -> None:
    with pytest.raises(SaePluginsError) as refused:
        settle({flag: value, "log_to_wandb": True})
    assert said in str(refused.value)
    assert settle({"wandb_id": "a-b.c_1", "wandb_project": "of mine", "log_to_wandb": True})


def test_a_flag_that_leaves_a_plugin_out_takes_the_recipe_s_options_with_it(tmp_path: Path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("plugin: [hybrid-order]\nreorder.interval: 7\n")
    settings = settle({"recipe": str(recipe), "without": ["reorder"]})
    assert "reorder" not in [plugin.name for plugin, _ in settings.plan.plugins]


def test_another_architecture_drops_what_it_lacks_and_says_so(tmp_path: Path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("plugin: [reorder]\nl1_coefficient: 3\n")
    settings = settle({"recipe": str(recipe), "architecture": "topk"})
    assert "l1_coefficient" not in settings.values
    assert any("l1_coefficient" in note for note in settings.notes)


def test_recipes_extend_recipes(tmp_path: Path):
    (tmp_path / "base.yaml").write_text("plugin: [reorder]\nlr: 1.0\nk: 4\n")
    (tmp_path / "more.yaml").write_text("extends: base.yaml\nlr: 2.0\n")
    assert recipes.load(str(tmp_path / "more.yaml")) == {"plugin": ["reorder"], "lr": 2.0, "k": 4}
    (tmp_path / "demo.yaml").write_text("extends: hybrid-order-demo\nlr: 2.0\n")
    assert recipes.load(str(tmp_path / "demo.yaml"))["plugin"] == ["hybrid-order"]


def test_other_versions_are_a_note(tmp_path: Path):
    recipe = tmp_path / "run.yaml"
    recipe.write_text("versions: {torch: '1.0', python: '2.7', gone: '3'}\nplugin: reorder\n")
    (note,) = settle({"recipe": str(recipe)}).notes
    assert "torch 1.0 (now" in note
    assert "gone 3 (now None)" in note


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"architecture": "topk", "accumulate": 4}, "not fired for dead_feature_window micro"),
        ({"architecture": "batchtopk", "accumulate": 2}, "its k is shared by the whole batch"),
        ({"architecture": "topk", "accumulate": 1}, None),
        ({"architecture": "standard", "accumulate": 4}, None),
        ({"architecture": "jumprelu", "accumulate": 4}, None),
        ({"architecture": "jumprelu", "accumulate": 4, "pre_act_loss_coefficient": 0.1}, "dead"),
    ],
)
def test_accumulated_batches_that_are_no_large_one_are_a_note(
    flags: dict[str, object], reason: str | None
):
    notes = [note for note in settle(flags).notes if "accumulate" in note]
    assert len(notes) == (reason is not None)
    for note in notes:
        assert note.startswith(f"--accumulate {flags['accumulate']} is not the same as batches")
        assert str(reason) in note
