"""What plugin authors and users meet: choosing, ordering, options, events and their errors."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file

from sae_plugins import Method, Plugin, PluginError, hookimpl, plugins
from sae_plugins.base.saelens import interruption
from sae_plugins.framework import attach, registry
from sae_plugins.framework.architectures import architecture
from sae_plugins.framework.host import EVENTS
from sae_plugins.framework.resolve import TrainingSettings, resolve
from sae_plugins.testing import (
    advance,
    differences,
    snapshot,
    tiny_batches,
    tiny_sae,
    tiny_trainer,
    train,
)


def define(name: str, base: type = Plugin, **attributes: Any) -> Any:
    """A plugin or method class, as a module of its author would define it."""
    return type(name.title().replace("-", ""), (base,), {"name": name, **attributes})


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Install a distribution with one module and its entry points, as pip would."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(distribution: str, module: str, source: str, points: dict[str, str]) -> None:
        (tmp_path / f"{module}.py").write_text(source)
        folder = tmp_path / f"{distribution.replace('-', '_')}-1.2.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n"
        )
        lines = [f"{name} = {target}" for name, target in points.items()]
        (folder / "entry_points.txt").write_text("\n".join(["[sae_plugins]", *lines]))
        monkeypatch.delitem(sys.modules, module, raising=False)

    yield write
    for module in [
        m
        for m, value in sys.modules.items()
        if str(tmp_path) in str(getattr(value, "__file__", ""))
    ]:
        del sys.modules[module]


GOOD_SOURCE = '''
from sae_plugins import Method, Plugin, hookimpl
class Shrink(Plugin):
    """Shrink the decoder.

    A longer text.
    """
    name = "shrink"
    @hookimpl
    def after_update(self, run):
        run.sae.W_dec.data *= 0.99
class Bundle(Method):
    """A published method."""
    name = "bundle"
    mechanisms = ("shrink", "nan-guard")
'''


# -- names and entry points --------------------------------------------------------------------


def test_an_installed_plugin_is_found_by_name(install: Any) -> None:
    points = {"shrink": "shrink_plugin:Shrink", "bundle": "shrink_plugin:Bundle"}
    install("sae-shrink", "shrink_plugin", GOOD_SOURCE, points)
    assert registry.load("shrink").__module__ == "shrink_plugin"
    plan = resolve(["bundle"])
    assert [plugin.name for plugin, _ in plan.plugins] == ["shrink", "nan-guard"]
    assert plan.methods == ("bundle",)
    (shrink,) = plan.provenance()["plugins"]
    assert shrink == {"name": "shrink", "package": "sae-shrink", "version": "1.2", "options": {}}
    with_plugin, without = train("shrink"), train()
    assert "W_dec" in differences(snapshot(with_plugin), snapshot(without))


def test_what_is_installed_meanwhile_is_found(install: Any) -> None:
    resolve(["nan-guard"])
    install("sae-late", "late_plugin", GOOD_SOURCE, {"shrink": "late_plugin:Shrink"})
    assert [plugin.name for plugin, _ in resolve(["shrink"]).plugins] == ["shrink"]


def test_a_broken_distribution_harms_nobody_who_did_not_name_it(install: Any) -> None:
    install(
        "sae-broken",
        "broken_plugin",
        "raise OSError('no such disk')",
        {"broken": "broken_plugin:It"},
    )
    assert "broken" in registry.installed()
    assert {entry.name for entry in registry.listing()} >= {"broken", "nan-guard"}
    resolve(["nan-guard"])
    assert "broken_plugin" not in sys.modules
    with pytest.raises(PluginError) as caught:
        resolve(["broken"])
    message = str(caught.value)
    assert "'broken' of sae-broken 1.2 cannot be imported from broken_plugin:It" in message
    assert "OSError: no such disk" in message


def test_listing_reads_sources_without_importing_them(install: Any) -> None:
    points = {
        "shrink": "shrink_plugin:Shrink",
        "bundle": "shrink_plugin:Bundle",
        "lost": "nowhere:X",
    }
    install("sae-shrink", "shrink_plugin", GOOD_SOURCE, points)
    found = {entry.name: entry for entry in registry.listing()}
    shrink = registry.Listing("shrink", "mechanism", "Shrink the decoder.", "sae-shrink", "1.2")
    assert found["shrink"] == shrink
    assert (found["bundle"].kind, found["bundle"].summary) == ("method", "A published method.")
    assert (found["lost"].kind, found["lost"].summary) == ("mechanism", "")
    assert found["nan-guard"].summary.startswith("Stop training")
    assert found["hybrid-order"].kind == "method"
    assert "shrink_plugin" not in sys.modules


def test_two_distributions_with_one_name_are_an_error_for_who_names_it(install: Any) -> None:
    install("sae-one", "one_plugin", GOOD_SOURCE, {"shrink": "one_plugin:Shrink"})
    install("sae-two", "two_plugin", GOOD_SOURCE, {"shrink": "two_plugin:Shrink"})
    resolve(["nan-guard"])
    with pytest.raises(PluginError, match="two distributions bring a plugin 'shrink'") as caught:
        resolve(["shrink"])
    assert "sae-one (one_plugin:Shrink)" in str(caught.value)
    assert "sae-two (two_plugin:Shrink)" in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("It = 3", "is 3: it must be a subclass of sae_plugins.Plugin"),
        ("from sae_plugins import Plugin\nIt = Plugin()", "the class itself, not an instance"),
        (
            "from sae_plugins import Plugin\nclass It(Plugin):\n    name = 'else'",
            "is called 'else', but its entry point is called 'it': make them equal",
        ),
        ("", "cannot be imported from it_plugin:It: AttributeError"),
    ],
)
def test_an_entry_point_must_lead_to_a_plugin_of_its_name(
    install: Any, source: str, message: str
) -> None:
    install("sae-it", "it_plugin", source, {"it": "it_plugin:It"})
    with pytest.raises(PluginError) as caught:
        resolve(["it"])
    assert message in str(caught.value)


def test_an_unknown_name_is_answered_with_near_ones() -> None:
    with pytest.raises(
        PluginError, match="no plugin 'reoder' is installed: did you mean 'reorder'"
    ):
        resolve(["reoder"])
    with pytest.raises(PluginError, match=r"known: .*nan-guard.*plugins list"):
        resolve(["zzzzzz"])


# -- options -----------------------------------------------------------------------------------


def test_options_are_validated_and_explained() -> None:
    def attempt(**options: Any) -> str:
        with pytest.raises(PluginError) as caught:
            resolve(["input-norm-l1"], options={"input-norm-l1": options})
        return str(caught.value)

    assert attempt(decai=0.5) == (
        "there is no option --input-norm-l1.decai: did you mean '--input-norm-l1.decay'?"
    )
    assert attempt(decay=1.5) == "--input-norm-l1.decay 1.5: it must be less than 1"
    assert attempt(per="word") == "--input-norm-l1.per 'word': it must be 'token' or 'batch'"
    assert attempt(decay=1.5, decai=1).count("\n") == 1  # both problems are told
    with pytest.raises(PluginError, match="given for 'reorder', which is not chosen; known: nan-g"):
        resolve(["nan-guard"], options={"reorder": {}})
    with pytest.raises(PluginError, match="did you mean 'nan-guard'"):
        resolve(["nan-guard"], options={"nan-gard": {}})


def test_options_are_frozen_and_reach_the_plugin() -> None:
    class Options(Plugin.Options):
        weight: float = Field(0.5, ge=0)

    plugin = define("weighty", Options=Options)
    ((_, options),) = resolve([plugin], options={"weighty": {"weight": "2"}}).plugins
    assert options.weight == 2.0
    with pytest.raises(ValueError, match="frozen"):
        options.weight = 3.0
    assert plugin().options.weight == 0.5
    trainer = train(plugin, options={"weighty": {"weight": 2}})
    assert trainer.host.plugins[0].options == options
    recorded = trainer.sae.cfg.metadata.sae_plugins
    assert recorded["plugins"] == [
        {"name": "weighty", "package": None, "version": None, "options": {"weight": 2.0}}
    ]
    assert recorded["training"] == TrainingSettings().model_dump()


# -- which plugins, and in which order ---------------------------------------------------------


def order(*names: Any, **arguments: Any) -> list[str]:
    return [plugin.name for plugin, _ in resolve(names, **arguments).plugins]


def test_the_users_order_stands_where_plugins_do_not_care() -> None:
    a, b, c, d = (define(name) for name in "abcd")
    assert order(c, a, d, b) == ["c", "a", "d", "b"]


def test_after_before_and_requires_order_only_what_they_name() -> None:
    first = define("first", before=("x", "absent"))
    last = define("last", after=("x", "absent"))
    x, y = define("x"), define("y")
    assert order(last, y, x, first) == ["y", "first", "x", "last"]
    assert order(last, y) == ["last", "y"]
    needy = define("needy", requires=("nan-guard",))
    assert order(needy) == ["nan-guard", "needy"]
    assert order(y, needy) == ["y", "nan-guard", "needy"]
    assert order("nan-guard", y, needy) == ["nan-guard", "y", "needy"]


def test_what_is_required_may_itself_require(install: Any) -> None:
    source = GOOD_SOURCE.replace(
        'name = "shrink"', 'name = "shrink"\n    requires = ("nan-guard",)'
    )
    install("sae-shrink", "shrink_plugin", source, {"shrink": "shrink_plugin:Shrink"})
    needy = define("needy", requires=("shrink",))
    assert order(needy) == ["nan-guard", "shrink", "needy"]
    with pytest.raises(PluginError, match="no plugin 'missing' is installed"):
        order(define("needy", requires=("missing",)))
    with pytest.raises(PluginError, match="'needy' needs 'hybrid-order', which is a method"):
        order(define("needy", requires=("hybrid-order",)))


def test_cycles_are_told() -> None:
    a, b = define("a", after=("b",)), define("b", after=("a",))
    with pytest.raises(PluginError, match=r"before one another: \['[ab]', '[ab]', '[ab]'\]"):
        order(a, b)
    assert order(a) == ["a"]


def test_conflicts_and_repeated_names_are_refused() -> None:
    a, b = define("a", conflicts=("b",)), define("b")
    for names in ((a, b), (b, a)):
        with pytest.raises(PluginError, match="plugins 'a' and 'b' cannot be combined"):
            order(*names)
    with pytest.raises(PluginError, match="plugin 'b' is chosen twice"):
        order(b, define("b"))
    with pytest.raises(PluginError, match="plugin 'nan-guard' is chosen twice"):
        order("nan-guard", "nan-guard")


def test_a_mechanism_may_be_named_beside_its_method_in_any_order() -> None:
    for names in (["hybrid-order", "reorder"], ["reorder", "hybrid-order"]):
        chosen = {plugin.name for plugin, _ in resolve(names).plugins}
        assert chosen == {"reorder", "input-norm-l1", "unit-norm-decoder"}
    assert order("hybrid-order", "nan-guard")[-1] == "nan-guard"


def test_all_names_that_are_unknown_are_said_at_once() -> None:
    with pytest.raises(PluginError) as caught:
        resolve(["hybrid-ordr", "resampel"], without=[])
    assert len(caught.value.args) == 2
    with pytest.raises(PluginError) as caught:
        resolve(["hybrid-order"], without=["reoder", "hybrid-order"])
    assert len(caught.value.args) == 2


def test_an_instance_in_place_of_a_class_is_explained() -> None:
    with pytest.raises(PluginError, match="give its name, or its class and not an instance"):
        resolve([define("p")()])


def test_without_leaves_a_mechanism_out() -> None:
    full = order("hybrid-order")
    assert "reorder" in full
    expected = [name for name in full if name != "reorder"]
    assert order("hybrid-order", without=["reorder"]) == expected
    with pytest.raises(
        PluginError, match="--without 'reoder': it is not chosen; did you mean 'reor"
    ):
        order("hybrid-order", without=["reoder"])
    needy = define("needy", requires=("nan-guard",))
    with pytest.raises(PluginError, match="--without 'nan-guard': plugin 'needy' requires it"):
        order(needy, "nan-guard", without=["nan-guard"])


def test_one_claim_has_one_owner() -> None:
    a = define("a", claims=("reconstruction_loss",))
    b = define("b", claims=("reconstruction_loss", "lr_schedule"))
    resolve([a, define("c", claims=("lr_schedule",))])
    with pytest.raises(PluginError, match="'a' and 'b' both claim the reconstruction_loss"):
        resolve([a, b])
    with pytest.raises(PluginError, match="'loss_form' and 'a' both claim the reconstruction_loss"):
        resolve([a], training={"loss_form": "mean"})
    with pytest.raises(PluginError, match=r"claims 'decoder_nrm': did you mean 'decoder_norm'\?"):
        resolve([define("d", claims=("decoder_nrm",))])


# -- methods -----------------------------------------------------------------------------------


def test_a_methods_settings_are_defaults_that_the_user_overrides() -> None:
    method = define(
        "m",
        Method,
        mechanisms=("reorder", "nan-guard"),
        options={"reorder": {"interval": 7, "start": 3}},
        training={"accumulate": 4, "clip": None},
        sae_lens={"lr_end": 0.0},
    )
    plan = resolve([method])
    (reorder, guard) = (options for _, options in plan.plugins)
    assert (reorder.interval, reorder.start, guard.every) == (7, 3, 50)
    assert plan.training == TrainingSettings(accumulate=4, clip=None)
    assert plan.sae_lens == {"lr_end": 0.0}
    plan = resolve([method], options={"reorder": {"start": 9}}, training={"clip": 2.0})
    assert (plan.plugins[0][1].interval, plan.plugins[0][1].start) == (7, 9)
    assert plan.training == TrainingSettings(accumulate=4, clip=2.0)


def test_two_methods_must_agree_or_the_user_decide() -> None:
    def method(name: str, **attributes: Any) -> Any:
        return define(name, Method, mechanisms=("reorder",), **attributes)

    one = method("one", options={"reorder": {"interval": 7}}, training={"accumulate": 4})
    other = method("other", options={"reorder": {"interval": 8}})
    third = method("third", training={"accumulate": 2})
    same = method("same", options={"reorder": {"interval": 7}}, training={"accumulate": 4})
    assert order(one, same) == ["reorder"]
    message = r"'one' and 'other' want different values for --reorder.interval \(7, 8\)"
    with pytest.raises(PluginError, match=message):
        resolve([one, other])
    plan = resolve([one, other], options={"reorder": {"interval": 9}})
    assert plan.plugins[0][1].interval == 9
    with pytest.raises(PluginError, match="--accumulate"):
        resolve([one, third])
    assert resolve([one, third], training={"accumulate": 1}).training.accumulate == 1


# -- events ------------------------------------------------------------------------------------


def test_a_misspelt_event_is_refused() -> None:
    plugin = define("p", after_foward=hookimpl(lambda self, run: None))
    with pytest.raises(
        PluginError, match=r"after_foward\(\), which is no event: did you mean 'aft"
    ):
        resolve([plugin])


def test_an_event_without_its_mark_is_refused() -> None:
    plugin = define("p", after_forward=lambda self, run: None)
    with pytest.raises(PluginError, match=r"after_forward\(\) without @sae_plugins.hookimpl"):
        resolve([plugin])


def test_an_argument_that_the_event_lacks_is_refused() -> None:
    plugin = define("p", after_forward=hookimpl(lambda self, run, outputs: None))
    message = (
        r"plugin 'p', after_forward\(\): the event has no argument 'outputs': did you mean 'out"
    )
    with pytest.raises(PluginError, match=message):
        resolve([plugin])


def test_what_is_wrong_with_several_plugins_is_said_at_once() -> None:
    one = define("one", after_foward=hookimpl(lambda self, run: None))
    other = define("other", after_forward=lambda self, run: None)
    with pytest.raises(PluginError) as caught:
        resolve([one, other])
    assert [sentence.split(" ")[1] for sentence in caught.value.args] == ["'one'", "'other'"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ZeroDivisionError("by nothing"), "'p' failed when it was built: ZeroDivisionError: by no"),
        (PluginError("give another"), "plugin 'p': give another"),
    ],
)
def test_a_constructor_that_raises_names_its_plugin(error: Exception, said: str) -> None:
    def fail(self: Any, options: Any = None) -> None:
        raise error

    with plugins(define("p", __init__=fail)), pytest.raises(PluginError, match=said):
        tiny_trainer(tiny_sae("standard"))


def test_what_is_no_plugin_is_refused() -> None:
    for wrong, said in (
        (Plugin, "the name None of Plugin must be"),
        (define("Two Words"), "the name 'Two Words' of"),
        (Path, "is no plugin"),
        (5, "is no plugin"),
    ):
        with pytest.raises(PluginError, match=said):
            resolve([wrong])  # type: ignore[list-item]
    with pytest.raises(PluginError, match="options of reorder are 5: give a mapping"):
        resolve(["reorder"], options={"reorder": 5})  # type: ignore[dict-item]
    with pytest.raises(PluginError, match="options of the training settings are 'x': give"):
        resolve(["reorder"], training="x")  # type: ignore[arg-type]
    with pytest.raises(PluginError, match="seed='x': give a whole number"), plugins(seed="x"):  # type: ignore[arg-type]
        pass


def every_event(trainer: Any, folder: Path) -> None:
    """Run a trainer through all eleven events (`attached` happened when it was built)."""
    advance(trainer, tiny_batches(steps=1))
    trainer.run.features.permute(torch.arange(24))
    advance(trainer, tiny_batches(steps=1))
    trainer.set_final_sae_metadata()
    trainer.sae.save_inference_model(folder)


@pytest.mark.parametrize("event", EVENTS)
def test_an_exception_names_the_plugin_and_the_event(event: str, tmp_path: Path) -> None:
    def fail(self: Any, run: Any) -> None:
        raise self.error

    def attempt(error: Exception) -> BaseException:
        plugin = define("culprit", error=error, claims=("decoder_norm",), **{event: hookimpl(fail)})
        expected = type(error) if isinstance(error, interruption()) else PluginError
        with pytest.raises(expected) as caught:  # noqa: PT012
            with plugins("nan-guard", plugin):
                trainer = tiny_trainer(tiny_sae("standard"))
            every_event(trainer, tmp_path)
        return caught.value

    error = ZeroDivisionError("by nothing")
    caught = attempt(error)
    said = f"plugin 'culprit' failed in event '{event}': ZeroDivisionError: by nothing ("
    assert str(caught).startswith(said)
    assert __file__ in str(caught)  # where in the plugin
    assert str(caught).endswith(": raise self.error)")
    assert caught.__cause__ is error
    expected = f"plugin 'culprit', event '{event}': turn it off"
    assert str(attempt(PluginError("turn it off"))) == expected
    # a signal may arrive inside a plugin: SAELens must see it, and save a checkpoint
    signalled = interruption()()
    assert attempt(signalled) is signalled


def test_a_loss_term_must_be_a_scalar() -> None:
    for value, shown in ((torch.ones(3), r"torch.Size\(\[3\]\)"), (0.5, "float")):
        plugin = define("p", extra_losses=hookimpl(lambda self, v=value: {"term": v}))
        with pytest.raises(
            PluginError, match=f"'p': the loss term 'term' must be a scalar.*{shown}"
        ):
            train(plugin)


def test_loss_terms_are_added_under_their_owners_name() -> None:
    plugin = define("p", extra_losses=hookimpl(lambda self, run: {"a": run.sae.b_dec.sum() + 2}))
    other = define("q", extra_losses=hookimpl(lambda self, run: {"a": run.sae.b_dec.sum() + 3}))
    plain, _ = trained(train_nothing := define("n"))
    trainer, losses = trained(plugin, other, train_nothing)
    assert losses[0]["p/a"] == 2
    assert losses[0]["q/a"] == 3
    assert losses[0]["loss"] == pytest.approx(plain_loss() + 5)
    assert "b_dec" in differences(snapshot(trainer), snapshot(plain))


def trained(*names: Any) -> tuple[Any, list[dict[str, float]]]:
    with plugins(*names):
        trainer = tiny_trainer(tiny_sae("standard"))
    return trainer, advance(trainer, tiny_batches())


def plain_loss() -> float:
    (losses,) = advance(tiny_trainer(tiny_sae("standard")), tiny_batches(steps=1))
    return losses["loss"]


def multiplier(value: Any, coefficient: str = "l1", name: str = "p") -> Any:
    def before_forward(self: Any, step_input: Any) -> Any:
        return {coefficient: value(step_input) if callable(value) else value}

    return define(name, before_forward=hookimpl(before_forward))


@pytest.mark.parametrize(
    ("architecture_name", "plugin", "message"),
    [
        (
            "standard",
            multiplier(2.0, "l0"),
            r"the coefficient 'l0', but standard SAEs have l1: ",
        ),
        ("topk", multiplier(2.0), r"the coefficient 'l1', but topk SAEs have k: "),
        (
            "gated",
            multiplier(lambda s: s.sae_in.norm(dim=1)),
            "'l1' per token, but gated SAEs apply it to the mean over tokens: return a scalar",
        ),
        (
            "standard",
            multiplier(lambda s: s.sae_in.norm(dim=1, keepdim=True)),
            r"shape \(32, 1\): return a scalar or one number per token, \(32,\)",
        ),
    ],
)
def test_multipliers_that_do_not_fit_are_refused(architecture_name, plugin, message) -> None:
    with pytest.raises(
        PluginError, match=f"plugin 'p' multiplies the coefficient.*{message}|{message}"
    ):
        train(plugin, architecture=architecture_name)


def test_multipliers_of_several_plugins_are_multiplied_and_logged() -> None:
    per_token = multiplier(lambda s: s.sae_in.norm(dim=1), name="q")
    with plugins(multiplier(3.0), per_token):
        trainer = tiny_trainer(tiny_sae("standard"))
    sae, (batch,) = tiny_sae("standard"), tiny_batches(steps=1)
    output = trainer.step(batch)
    weighted = sae.encode(batch) * sae.W_dec.norm(dim=1)
    expected = (3.0 * 0.1 * batch.norm(dim=1) * weighted.sum(dim=1)).mean()
    assert output.losses["l1_loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    logged = trainer.build_train_step_log_dict(output, trainer.n_training_samples)
    mean = batch.norm(dim=1).mean().item()
    assert logged["metrics/coefficients/l1/p"] == 3.0
    assert logged["metrics/coefficients/l1/q"] == pytest.approx(mean)
    assert logged["metrics/coefficients/l1"] == pytest.approx(0.3 * mean)


def test_events_run_outside_autocast() -> None:
    seen: dict[str, Any] = {}

    def implementation(event: str) -> Any:
        def listen(self: Any, run: Any) -> None:
            product = run.sae.W_dec.detach() @ run.sae.W_dec.detach().T
            seen[event] = (torch.is_autocast_enabled("cpu"), product.dtype)

        return hookimpl(listen)

    during = EVENTS[: EVENTS.index("step_ended") + 1]
    listening = {event: implementation(event) for event in during}
    train(define("p", claims=("decoder_norm",), **listening), autocast=True)
    assert seen == dict.fromkeys(during, (False, torch.float32))


def test_gradients_flow_only_from_extra_losses() -> None:
    enabled: dict[str, bool] = {}

    def implementation(event: str) -> Any:
        def listen(self: Any, run: Any) -> None:
            enabled[event] = torch.is_grad_enabled()

        return hookimpl(listen)

    during = EVENTS[: EVENTS.index("step_ended") + 1]
    listening = {event: implementation(event) for event in during}
    train(define("p", claims=("decoder_norm",), **listening))
    assert [event for event in during if enabled[event]] == ["extra_losses"]


def test_after_update_unwinds_in_reverse_order() -> None:
    calls: list[str] = []

    def implementation(event: str) -> Any:
        return hookimpl(lambda self: calls.append(f"{self.name} {event}"))

    events = ("before_update", "after_update", "step_ended")
    a, b = (define(name, **{e: implementation(e) for e in events}) for name in "ab")
    train(a, b, steps=1)
    assert calls == [
        *("a before_update", "b before_update"),
        *("b after_update", "a after_update"),
        *("a step_ended", "b step_ended"),
    ]


def test_metrics_logged_by_plugins_reach_saelens_and_do_not_linger() -> None:
    def step_ended(self: Any, run: Any) -> None:
        if run.step == 1:
            run.log("p/odd", torch.tensor(3.0))
        run.log("p/step", lambda: run.step)

    with plugins(define("p", step_ended=hookimpl(step_ended))):
        trainer = tiny_trainer(tiny_sae("standard"))
    outputs = [trainer.step(batch) for batch in tiny_batches(steps=1)]
    trainer.n_training_steps += 1
    outputs += [trainer.step(batch) for batch in tiny_batches(steps=1)]
    logs = [trainer.build_train_step_log_dict(output, 1) for output in outputs]
    assert logs[0]["metrics/p/odd"] == 3.0
    assert "metrics/p/odd" not in logs[1]
    assert logs[1]["metrics/p/step"] == 2


def test_firing_counts_and_counters_of_the_run() -> None:
    seen: list[Any] = []

    def step_ended(self: Any, run: Any, output: Any) -> None:
        counts = (output.feature_acts != 0).sum(dim=0)
        seen.append((run.step, run.updates, run.samples, run.total_steps, run.updated))
        assert torch.equal(run.firing_counts, counts.float())

    train(define("p", step_ended=hookimpl(step_ended)), steps=3)
    assert seen == [(1, 1, 32, 3, True), (2, 2, 64, 3, True), (3, 3, 96, 3, True)]


def test_the_inference_sae_is_exported_with_the_plugins_edits(tmp_path: Path) -> None:
    from sae_lens import SAE

    def export(self: Any, weights: Any, config: Any) -> None:
        weights["b_dec"] = weights["b_dec"] + 1
        config["metadata"]["touched"] = True

    trainer = train(define("p", export_inference=hookimpl(export)))
    trainer.sae.save_inference_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)
    assert torch.equal(loaded.b_dec.data, trainer.sae.b_dec.data + 1)
    assert torch.equal(loaded.W_dec.data, trainer.sae.W_dec.data)
    assert loaded.cfg.metadata.touched
    assert loaded.cfg.metadata.sae_plugins["plugins"][0]["name"] == "p"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cfg.json",
        "sae_weights.safetensors",
    ]


def test_the_activation_scale_is_told_after_it_was_folded() -> None:
    told: list[float | None] = []

    def training_ended(self: Any, activation_scale: float | None) -> None:
        told.append(activation_scale)

    plugin = define("p", training_ended=hookimpl(training_ended))
    with plugins(plugin):
        sae = tiny_sae("standard", normalize_activations="expected_average_only_in")
        batches = tiny_batches(steps=6)
        trainer = tiny_trainer(
            sae, batches, n_batches_for_norm_estimate=2, total_training_samples=128
        )
    trainer.fit()
    norms = torch.stack([batch.norm(dim=1).mean() for batch in batches[:2]])
    assert told == [pytest.approx(8**0.5 / norms.mean().item())]
    train(plugin)
    assert told[1] is None


# -- the context -------------------------------------------------------------------------------


def test_contexts_cannot_be_nested_and_leave_saelens_as_it_was() -> None:
    with plugins():
        assert type(tiny_trainer(tiny_sae("standard"))) is not SAETrainer
        with pytest.raises(RuntimeError, match="cannot be nested: name all in one call"), plugins():
            pass
        assert type(tiny_trainer(tiny_sae("standard"))) is not SAETrainer
    assert type(tiny_trainer(tiny_sae("standard"))) is SAETrainer
    with pytest.raises(KeyError), plugins():
        raise KeyError
    assert type(tiny_trainer(tiny_sae("standard"))) is SAETrainer

    class Own(SAETrainer[Any, Any]):
        pass

    plain = tiny_trainer(tiny_sae("standard"))
    arguments = (plain.cfg, plain.sae, iter(()))
    with plugins():
        assert isinstance(Own(*arguments), Own)  # with the plugins, see below
        assert isinstance(SAETrainer[Any, Any](*arguments), SAETrainer)
        assert type(SAETrainer[Any, Any](*arguments)) is not SAETrainer
    assert type(SAETrainer[Any, Any](*arguments)) is SAETrainer


def test_an_unsupported_architecture_is_refused_before_training() -> None:
    class Fussy(Plugin):
        name = "fussy"

        @classmethod
        def unsupported(cls, architecture, options):
            return "their activations are signed" if architecture.signed else None

        @hookimpl
        def attached(self):
            raise AssertionError("too late")

    message = "plugin 'fussy' does not work on abstopk SAEs: their activations are signed"
    with plugins(Fussy) as plan, pytest.raises(PluginError, match=message):
        tiny_trainer(tiny_sae("abstopk"))
    plan.check(architecture("standard"))
    with pytest.raises(
        PluginError, match="unknown architecture 'standart': did you mean 'standard'"
    ):
        architecture("standart")


def test_resuming_is_refused_with_plugins_and_possible_without(tmp_path: Path) -> None:
    plain, _ = trained()
    plain.save_trainer_state(tmp_path)
    for names, training in (((define("p"),), None), ((), {"accumulate": 2})):
        with plugins(*names, training=training):
            trainer = tiny_trainer(tiny_sae("standard"))
        with pytest.raises(PluginError, match=r"cannot resume.*--resume"):
            trainer.load_trainer_state(tmp_path)
    for names in ((), ("nan-guard",), (define("o", observes_only=True),)):
        with plugins(*names):
            trainer = tiny_trainer(tiny_sae("standard"))
        trainer.load_trainer_state(tmp_path)
        assert trainer.n_training_steps == 12
        assert torch.equal(trainer.act_freq_scores, plain.act_freq_scores)


def test_observers_are_no_part_of_how_a_sae_was_made() -> None:
    observer = define("o", observes_only=True)
    made = train(observer, define("p")).sae.cfg.metadata.sae_plugins
    assert [plugin["name"] for plugin in made["plugins"]] == ["p"]


# -- randomness --------------------------------------------------------------------------------


class Noisy(Plugin):
    """Draws from its own generator."""

    name = "noisy"

    @hookimpl
    def attached(self, run: Any) -> None:
        self.draws: list[float] = []

    @hookimpl
    def after_update(self, run: Any) -> None:
        noise = torch.randn(run.sae.W_dec.shape, generator=self.rng)
        run.sae.W_dec.data += 1e-3 * noise
        self.draws.append(noise[0, 0].item())


def draws(*names: Any, seed: int | None = 0) -> list[float]:
    with plugins(*names, seed=seed):
        trainer = tiny_trainer(tiny_sae("standard"))
    advance(trainer, tiny_batches(steps=4))
    (noisy,) = (plugin for plugin in trainer.host.plugins if isinstance(plugin, Noisy))
    return noisy.draws


def test_each_plugin_has_its_own_generator() -> None:
    alone = draws(Noisy)
    other = define("other-noise", Noisy.__mro__[0].__mro__[1], after_update=Noisy.after_update)
    other.attached = hookimpl(lambda self, run: setattr(self, "draws", []))
    assert draws(other, Noisy) == alone  # its neighbours draw without disturbing it
    with plugins(other, Noisy, seed=0):
        trainer = tiny_trainer(tiny_sae("standard"))
    advance(trainer, tiny_batches(steps=4))
    assert trainer.host.plugins[0].draws != trainer.host.plugins[1].draws


def test_a_seed_repeats_a_run_bitwise_and_another_seed_does_not() -> None:
    one, again, other = (train(Noisy, seed=seed) for seed in (1, 1, 2))
    assert differences(snapshot(one), snapshot(again)) == {}
    assert "W_dec" in differences(snapshot(one), snapshot(other))
    assert draws(Noisy, seed=1) != draws(Noisy, seed=2)


def test_the_seed_sets_the_global_random_state_and_none_leaves_it() -> None:
    import random

    import numpy as np

    def state() -> list[float]:
        return [random.random(), np.random.rand(), torch.rand(1).item()]

    with plugins(seed=3):
        one = state()
    state()
    with plugins(seed=3):
        assert state() == one
        rest = state()
    with plugins(seed=3):
        state()
    with plugins():
        assert state() == rest


# -- what a subclass, a copy and a forgetful user get ------------------------------------------


def test_a_subclass_of_the_trainer_keeps_its_methods_and_gets_the_plugins() -> None:
    class Mine(SAETrainer):  # type: ignore[type-arg]
        def step(self, batch: torch.Tensor) -> Any:
            self.seen = True
            return super().step(batch)

    plugin = define("p", after_update=hookimpl(lambda self, run: run.sae.W_dec.data.zero_()))
    sae, batches = tiny_sae("standard"), tiny_batches(steps=2)
    with plugins(plugin):
        trainer = Mine(tiny_trainer(tiny_sae("standard"), batches).cfg, sae, iter(batches))
    advance(trainer, batches)
    assert isinstance(trainer, Mine)
    assert trainer.seen
    assert not trainer.sae.W_dec.any()


def test_a_resolved_plan_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = resolve(["reorder"], options={"reorder": {"start": 9}}, training={"accumulate": 2})
    monkeypatch.setattr(attach, "resolve", lambda *_, **__: pytest.fail("resolved again"))
    with plugins(plan, seed=0) as taken:
        trainer = tiny_trainer(tiny_sae("standard"), tiny_batches(1))
    assert taken is plan
    assert [type(plugin) for plugin in trainer.host.plugins] == [p for p, _ in plan.plugins]
    assert trainer.host.plugins[-1].options.start == 9
    for names, more in (((plan, "nan-guard"), {}), ((plan,), {"options": {"reorder": {}}})):
        with pytest.raises(PluginError, match="give it alone"), plugins(*names, **more):
            pass


def test_an_observer_comes_last_and_keeps_the_options_that_it_has() -> None:
    class Options(Plugin.Options):
        every: int = 10
        figures: bool = True

    watch = define("watch", Options=Options)
    plan = resolve(["reorder"]).observed_by(watch, every=3)
    assert [plugin.name for plugin, _ in plan.plugins][-2:] == ["reorder", "watch"]
    again = plan.observed_by(watch, figures=False)
    assert len(again.plugins) == len(plan.plugins)
    assert again.plugins[-1][1].model_dump() == {"every": 3, "figures": False}


def test_a_context_in_which_nothing_was_trained_warns(caplog: pytest.LogCaptureFixture) -> None:
    with plugins(define("p")):
        pass
    assert "no trainer was built inside `sae_plugins.plugins(p)`" in caplog.text


def test_a_deep_copy_of_an_sae_exports_itself(tmp_path: Path) -> None:
    def double(self: Any, weights: dict[str, torch.Tensor]) -> None:
        weights["W_dec"] *= 2

    with plugins(define("p", export_inference=hookimpl(double))):
        trainer = tiny_trainer(tiny_sae("standard"), tiny_batches(steps=1))
    copied = copy.deepcopy(trainer.sae)
    copied.W_dec.data.fill_(3)
    copied.save_inference_model(tmp_path)
    assert (load_file(tmp_path / "sae_weights.safetensors")["W_dec"] == 6).all()
    assert {file.name for file in tmp_path.iterdir()} == {"cfg.json", "sae_weights.safetensors"}


def test_a_failing_export_leaves_no_file(tmp_path: Path) -> None:
    def fail(self: Any) -> None:
        raise ValueError("no")

    with plugins(define("p", export_inference=hookimpl(fail))):
        trainer = tiny_trainer(tiny_sae("standard"), tiny_batches(steps=1))
    with pytest.raises(PluginError, match="'p' failed in event 'export_inference'"):
        trainer.sae.save_inference_model(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_an_event_returns_must_be_by_name() -> None:
    for event in ("before_forward", "extra_losses"):
        for value in (0.5, torch.ones(()), [1]):
            plugin = define("p", **{event: hookimpl(lambda self, v=value: v)})
            with pytest.raises(PluginError, match=f"'p': {event} must return values by name"):
                train(plugin, steps=1)
    plugin = define("p", before_forward=hookimpl(lambda self: {"l1": "x"}))
    with pytest.raises(PluginError, match="'p' multiplies the coefficient 'l1' by 'x'"):
        train(plugin, steps=1)


def test_names_are_words_with_hyphens() -> None:
    for name in ("a.b", "a/b", "A", ""):
        with pytest.raises(PluginError, match="words-with-hyphens"):
            resolve([define(name)])


def test_a_failure_names_the_line_of_the_plugin() -> None:
    class Wrong(Plugin):
        name = "wrong"

        @hookimpl
        def after_update(self, run):
            torch.zeros(2) @ torch.zeros(3, 4)  # which torch refuses
            run.sae.W_decoder.sum()

        @hookimpl
        def step_ended(self, run):
            run.sae.W_decoder.sum()

    with pytest.raises(PluginError, match=r"test_plugins_api\.py, line \d+: torch\.zeros\(2\) @"):
        train(Wrong, steps=1)
    del Wrong.after_update
    with pytest.raises(PluginError, match=r"test_plugins_api\.py, line \d+: run\.sae\.W_decoder"):
        train(Wrong, steps=1)
