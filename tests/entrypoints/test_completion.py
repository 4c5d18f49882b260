"""What the shell is told may come next, and the scripts that ask for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sae_plugins import recipes, studies
from sae_plugins.entrypoints.main import COMMANDS, main
from sae_plugins.eval_suites import registry as suites
from sae_plugins.framework import registry
from sae_plugins.settings.flags import all_flags, architectures


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ([""], COMMANDS),
        (["ev"], ["evaluate"]),
        (["study", ""], ["list", "show", "run", "status", "report"]),
        (["study", "run", ""], studies.names()),
        (["study", "status", "mine.yaml", "--"], ["--help", "--noise_from", "--output_path"]),
        (["plugins", "show", "h"], ["hierarchical", "hybrid-order"]),
        (["recipes", "show", ""], recipes.names()),
        (["completion", ""], ["bash", "zsh"]),
        (["train", "--"], [f"--{name}" for name in ("help", *all_flags())]),
        (["train", "--plugin", ""], registry.installed()),
        (["train", "--plugin", "reorder", "--without", "reo"], ["reorder"]),
        (["train", "--plugin", "merge", "reo"], ["reorder"]),  # which takes several
        (["train", "--recipe", "hybrid"], ["hybrid-order", "hybrid-order-demo"]),
        (["train", "--recipe", "=", "hybrid"], ["hybrid-order", "hybrid-order-demo"]),  # as bash
        (["train", "--architecture", ""], architectures()),
        (["train", "--architecture", "topk", ""], []),  # which takes one
        (["train", "--reorder.sta"], ["--reorder.start", "--reorder.statistic"]),
        (["evaluate", "runs/"], []),  # files, which the shell knows
        (["evaluate", "runs/a", "--suite", "core", ""], suites.names()),
        (["evaluate", "--core.context"], ["--core.context_size"]),
        (["upload", "--re"], ["--results", "--revision"]),
    ],
)
def test_what_may_come_next(typed: list[str], expected, capsys: pytest.CaptureFixture[str]):
    assert main(["completion", "words", *typed]) == 0
    assert capsys.readouterr().out.split() == sorted(expected)


def test_bash_asks_the_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["completion", "bash"]) == 0
    (tmp_path / "sae-plugins").write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -m sae_plugins.entrypoints.main "$@"\n'
    )
    (tmp_path / "sae-plugins").chmod(0o755)
    script = capsys.readouterr().out + (
        'COMP_WORDS=(sae-plugins train --plugin "reo" --lr) COMP_CWORD=3\n_sae_plugins\n'
        'echo "${COMPREPLY[@]}"\ncomplete -p sae-plugins\n'
    )
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    assert done.stdout.splitlines() == [
        "reorder",
        "complete -o default -F _sae_plugins sae-plugins",
    ], done.stderr


def test_zsh_has_a_script_too(capsys: pytest.CaptureFixture[str]):
    assert main(["completion", "zsh"]) == 0
    script = capsys.readouterr().out
    assert script.startswith("#compdef sae-plugins")
    assert 'sae-plugins completion words "${(@)words[2,CURRENT]}"' in script
