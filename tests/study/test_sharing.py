"""What ranks and processes must have alike to share a study."""

import pytest

from sae_plugins.base.errors import SaePluginsError
from sae_plugins.base.ranks import Ranks
from sae_plugins.study import sharing
from sae_plugins.study.plan import plan
from sae_plugins.study.spec import Study

STUDY = Study.model_validate(
    {
        "description": "Where?",
        "reference": "l1",
        "models": {
            "toy": {
                "train": {"model_name": "synthetic:toy", "training_tokens": 4608, "d_sae": 32},
                "sparsity": {"l1_coefficient": [0.3]},
                "suites": {},
            }
        },
        "arms": {"l1": {}, "there": {"train": {"device": "cuda:1"}}},
        "seeds": [0],
    }
)
MESSAGE = "models.toy.train: --device cuda:1: each of 2 {} has a GPU of its own; give cuda, or {}"


@pytest.mark.parametrize(
    ("ranks", "jobs", "gpus", "message"),
    [
        (1, 2, ["0", "1"], MESSAGE.format("processes", "--jobs 1")),
        (2, 1, ["0", "1"], MESSAGE.format("ranks", "leave torchrun out")),
        (1, 1, ["0", "1"], None),
        (1, 2, [], None),
    ],
)
def test_a_gpu_by_its_number_is_not_for_ranks_and_processes_that_have_one_each(
    ranks: int, jobs: int, gpus: list[str], message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "ranks", lambda: Ranks(0, ranks))
    monkeypatch.setattr(sharing, "visible", lambda: gpus)
    cells = plan(STUDY, lambda _: None).cells
    assert len(cells) == 2
    if message is None:
        sharing.check_devices(cells, jobs)
        return
    with pytest.raises(SaePluginsError) as caught:
        sharing.check_devices(cells, jobs)
    assert caught.value.args == (message,)
