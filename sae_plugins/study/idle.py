"""Keys of a study that would do nothing where they stand, which is never what somebody meant."""

from __future__ import annotations

from collections.abc import Iterator

from sae_plugins.study.spec import Arm, Model, Override, Study


def idle(study: Study) -> Iterator[str]:
    """A sentence for each such key: the culprit and the cure."""
    for name, arm in study.arms.items():  # not the rows of a paper, whose settings are its own
        if not arm.exists:  # of which `existing` speaks
            yield from _of_arm(f"arms.{name}", arm, study)
    for name, model in study.models.items():
        yield from _of_model(f"models.{name}", name, model, study)


def _of_arm(where: str, arm: Arm, study: Study) -> Iterator[str]:
    there = {model: arm.models.get(model, Override()) for model in study.models}
    if arm.untrained:
        places: dict[str, Override] = {where: arm}
        places |= {f"{where}.models.{model}": has for model, has in arm.models.items()}
        for place, has in places.items():
            given = {"tune": has.tune, "train.lr": has.train.get("lr")}
            given |= {"grid.lr": has.grid.get("lr")} if isinstance(has, Arm) else {}
            for key in (key for key, value in given.items() if value is not None):
                yield f"{place}.{key} would do nothing to SAEs that are not trained; leave it out"
        return
    rates = {f"{where}.models.{m}": [m] for m, has in there.items() if "lr" in has.train}
    if "lr" in arm.train:
        rates[where] = [m for m, has in there.items() if "lr" not in has.train]
    for place, models in rates.items():
        if models and all(there[model].tune or arm.tune for model in models):
            yield (
                f"{place}.train.lr would do nothing beside the arm's own tune, which tries other "
                "learning rates; leave one of the two out"
            )


def _of_model(where: str, name: str, model: Model, study: Study) -> Iterator[str]:
    arms = [arm for arm in study.all_arms().values() if not arm.exists]
    if model.tune and all(arm.tuned_on(name, model) is not model.tune for arm in arms):
        yield (
            f"{where}.tune would do nothing: each arm has an lr or a tune of its own, or is not "
            "trained; leave it out"
        )
    fixed = not any(arm.on_model(name, model)[1] for arm in arms)
    if arms and model.target_l0 and model.exact_l0 is False and fixed:
        yield (
            f"{where}.target_l0 would do nothing: exact_l0 is false, and no arm has values under "
            "sparsity with which the L0s could be reached; name some, or leave it out"
        )
