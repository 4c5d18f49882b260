"""`sae-plugins upload`: SAEs, with what explains them, to a repository on the Hugging Face Hub."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sae_plugins.base.errors import Problems, SaePluginsError
from sae_plugins.entrypoints.command import Command
from sae_plugins.settings.command_line import Line
from sae_plugins.settings.flags import Flag

if TYPE_CHECKING:
    from sae_plugins.share.content import Upload
    from sae_plugins.share.repository import Commit, Repository

_ABOUT = """\
Upload SAEs to a repository on the Hugging Face Hub, in SAELens' layout: afterwards
SAE.from_pretrained("USER/REPO", "SAE_ID") loads them, with nothing of sae-plugins installed. An SAE
is called as its folder, and comes with run.yaml, metrics, figures, the results of evaluations and a
section of the model card. Checkpoints and other files stay here.

Each SAE is one commit: it is there whole or not at all. After an error the same command goes on.
You need a token with the right to write: `hf auth login`, or the variable HF_TOKEN.
"""
_EXAMPLES = """\
  sae-plugins upload runs/demo me/saes --dry_run      what would be sent, and the card
  sae-plugins upload runs/demo me/saes
  sae-plugins upload runs/demo-1 runs/demo-2 me/saes --private
  sae-plugins upload runs/demo me/saes --results evaluations more-evaluations
"""


_NOTES = """\
RUN is the folder of a run, or USER/REPO:SAE_ID of another SAE on the Hub. The repository comes
last, and is made if there is none.
"""
_FLAGS = {
    flag.name: flag
    for flag in (
        Flag("private", "bool", "make a repository that only its owner sees (default: public, or "
             "what an organisation has chosen)", False),
        Flag("revision", "str", "upload to this branch, which is made if there is none", "main"),
        Flag("results", "list[str]", "folders of `sae-plugins evaluate`, whose results of these "
             "SAEs go along (default: evaluations, if it is here)", adds=True),
        Flag("overwrite", "bool", "replace SAEs of the same names, with all files in their folders "
             "but other results of the very same SAE", False),
        Flag("dry_run", "bool", "say what would be sent, and show the card; send nothing", False),
    )
}  # fmt: skip


def _run(line: Line, problems: Problems) -> int:
    """Upload; 1 if an SAE could not be uploaded."""
    from sae_plugins.base.hub import TRIES, check_branch
    from sae_plugins.share.repository import Repository

    given = {name: line.given.get(name, flag.default) for name, flag in _FLAGS.items()}
    sources, repo = _names(line.operands, problems) if not line.unclear else ([], "")
    with problems:
        check_branch(given["revision"])
    with problems:
        _check_token(given["dry_run"])
    with problems:
        folders = _evaluations(given["results"])
    problems.stop()
    uploads = _prepared(sources, repo, folders)
    tries = 1 if given["dry_run"] else TRIES
    repository = Repository(repo, given["revision"], given["private"], tries, _note)
    _check(repository, uploads, given["overwrite"], given["dry_run"])
    return 0 if given["dry_run"] else _send(repository, uploads, given["overwrite"])


COMMAND = Command(
    "upload",
    "share SAEs",
    _run,
    "RUN... USER/REPO",
    about=_ABOUT,
    examples=_EXAMPLES,
    notes=_NOTES,
    flags=lambda: _FLAGS,
)


# -- before anything is sent -----------------------------------------------------------------------


def _names(names: Sequence[str], problems: Problems) -> tuple[list[str], str]:
    """The SAEs, and the repository."""
    from sae_plugins.base.hub import check_repo

    *sources, repo = names or [""]
    if not sources or (Path(repo) / "cfg.json").is_file():
        problems.add("name the folders of runs, and last the repository: USER/REPO")
    else:
        with problems:
            check_repo(repo)
    return list(dict.fromkeys(sources)), repo


def _check_token(dry_run: bool) -> None:
    from huggingface_hub import get_token

    if get_token() is None and not dry_run:
        raise SaePluginsError(
            "there is no token of the Hugging Face Hub: `hf auth login`, or set HF_TOKEN to one "
            "with the right to write"
        )


def _prepared(sources: Sequence[str], repo: str, folders: Sequence[Path]) -> list[Upload]:
    """All SAEs, each loaded once to see that it can be."""
    from sae_plugins.share.content import prepare

    uploads: dict[str, Upload] = {}
    problems = Problems()
    for source in sources:
        _note(f"checking {source} ...")
        with problems:
            upload = prepare(source, folders, repo)
            if upload.sae_id in uploads:
                raise SaePluginsError(
                    f"{uploads[upload.sae_id].folder} and {upload.folder} would both be called "
                    f"{upload.sae_id}: rename one of the folders"
                )
            uploads[upload.sae_id] = upload
    problems.stop()
    return list(uploads.values())


def _evaluations(given: Sequence[str] | None) -> list[Path]:
    from sae_plugins.base.nearby import meant
    from sae_plugins.entrypoints.evaluate_flags import FLAGS
    from sae_plugins.eval_suites.evaluation.manifest import MANIFEST

    usual = Path(str(FLAGS["output_path"].default))
    if given is None:
        if not (usual / MANIFEST).is_file():
            return []
        print(f"results are taken from {usual}; --results DIR names other folders")
        return [usual]
    folders, problems = [Path(name).expanduser() for name in given], Problems()
    for folder in folders:
        if not (folder / MANIFEST).is_file():
            cure = None if folder.exists() else meant(folder)
            problems.add(
                f"--results {folder} is no folder of `sae-plugins evaluate`: it has no {MANIFEST}"
                f"{f'; {cure}' if cure else ''}"
            )
    problems.stop()
    return folders


def _check(
    repository: Repository, uploads: Sequence[Upload], overwrite: bool, dry_run: bool
) -> None:
    """See, and in a dry run show, what each upload would change in the repository."""

    try:
        state = repository.read()
    except SaePluginsError as error:
        if not dry_run:
            raise
        state = None
        print(f"note: what is in the repository is not known: {error}")
    for upload in uploads:
        plan = repository.plan(upload, state, overwrite)
        if dry_run:
            _print_plan(upload, plan)
    if dry_run:
        print("\nnothing was sent")


def _print_plan(upload: Upload, plan: Commit) -> None:
    """The files of an SAE, what becomes of them, and the card."""
    from sae_plugins.base.files import size
    from sae_plugins.base.hub import CARD
    from sae_plugins.share.content import size_of

    names = {f"{upload.sae_id}/{name}": content for name, content in upload.files.items()}
    print(f"\n{upload.sae_id}, from {upload.folder}:")
    for path, content in {**names, CARD: plan.card.encode()}.items():
        state = "to be sent" if path in plan.additions else "there already"
        print(f"  {size(size_of(content)):>10}  {path}  ({state})")
    for path in plan.deletions:
        print(f"  {'':>10}  {path}  (to be deleted)")
    print(f"\nREADME.md would be:\n\n{plan.card.rstrip()}")


# -- sending ---------------------------------------------------------------------------------------


def _send(repository: Repository, uploads: Sequence[Upload], overwrite: bool) -> int:
    """Commit one SAE after another; one that fails does not keep the others."""
    from sae_plugins.base.files import size
    from sae_plugins.share.card import loading_lines

    done: list[Upload] = []
    for number, upload in enumerate(uploads, 1):
        files = f"{len(upload.files)} files, {size(upload.size)}"
        _note(f"{number}/{len(uploads)} {upload.sae_id}: {files} ...")
        try:
            sent = repository.send(upload, overwrite)
        except SaePluginsError as error:
            print(f"FAILED: {upload.sae_id}: {error}")
            continue
        print(f"{upload.sae_id}: {'uploaded' if sent else 'there already'}")
        done.append(upload)
    if len(done) < len(uploads):
        print("the same command goes on; what has been uploaded is not sent again")
    if done:
        print(f"\n{repository.url}\n")
        for line in loading_lines(repository.repo, done[0].sae_id, repository.branch):
            print(f"    {line}".rstrip())
    return int(len(done) < len(uploads))


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
