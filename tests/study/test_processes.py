"""The processes of a study: what they import, and from where."""

import operator
from pathlib import Path

import pytest

from sae_plugins.study.processes import Pass, run_passes

TASKS = [Pass("", Path("there"), "toy", seed, False, 2, 1) for seed in (0, 1)]


class Nobody:
    def stage(self, text: str) -> None:
        raise AssertionError(text)

    def advance(self, share: float) -> None:
        raise AssertionError(share)


@pytest.mark.parametrize("version", [(3, 11), (3, 10)])
def test_workers_import_nothing_from_the_working_directory(
    version: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -c`, as which they are started, would import these in the library's place."""
    ran = tmp_path / "ran"
    for name in ("pickle", "random", "torch", "multiprocessing"):
        (tmp_path / f"{name}.py").write_text(f"open({str(ran)!r}, 'a').write('{name} ')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sae_plugins.base.children.sys.version_info", version)
    if version < (3, 11):  # which ignores the variable
        monkeypatch.setattr("sae_plugins.base.children.SAFE_PATH", {})
    # a function that any process can import
    run_passes(operator.is_, TASKS, 2, Nobody())  # type: ignore[arg-type]
    assert not ran.exists(), ran.read_text()
    assert Path.cwd() == tmp_path
