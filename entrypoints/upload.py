"""`sae-plugins upload`: SAEs, with what explains them, to a repository on the Hugging Face Hub."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sae_plugins.base.errors import SaePluginsError

if TYPE_CHECKING:
    from sae_plugins.share.content import Upload
    from sae_plugins.share.repository import Commit, Repository

_DESCRIPTION = """\
Upload SAEs to a repository on the Hugging Face Hub, in SAELens' layout: afterwards
SAE.from_pretrained("USER/REPO", "SAE_ID") loads them, with nothing of sae-plugins installed. An SAE
is called as its folder, and comes with run.yaml, metrics, figures, the results of evaluations and a
section of the model card. Checkpoints and other files stay here.

Each SAE is one commit: it is there whole or not at all. After an error the same command goes on.
You need a token with the right to write: `hf auth login`, or the variable HF_TOKEN.
"""
_EXAMPLES = """\
examples:
  sae-plugins upload runs/demo me/saes --dry_run      what would be sent, and the card
  sae-plugins upload runs/demo me/saes
  sae-plugins upload runs/demo-1 runs/demo-2 me/saes --private
  sae-plugins upload runs/demo me/saes --results evaluations more-evaluations
"""


def main(arguments: Sequence[str]) -> int:
    """Run `sae-plugins upload`; the exit code: 1 if an SAE could not be uploaded.

    Raises:
        SaePluginsError: the user should change something; nothing was sent.
    """
    parser = parser_of_upload()
    if not arguments:
        parser.print_help()
        return 2
    parsed = parser.parse_intermixed_args(list(arguments))
    sources, repo = _names(parsed.names)
    from sae_plugins.base.hub import TRIES, check_branch
    from sae_plugins.share.repository import Repository

    check_branch(parsed.revision)
    _check_token(parsed.dry_run)
    uploads = _prepared(sources, repo, parsed.results)
    tries = 1 if parsed.dry_run else TRIES
    repository = Repository(repo, parsed.revision, parsed.private, tries, _note)
    _check(repository, uploads, parsed)
    if parsed.dry_run:
        return 0
    return _send(repository, uploads, parsed.overwrite)


def parser_of_upload() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(
        prog="sae-plugins upload",
        usage="sae-plugins upload RUN [RUN ...] USER/REPO [flags]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="RUN ... USER/REPO",
        help="folders of runs, or USER/REPO:SAE_ID of other SAEs on the Hub; the repository is the "
        "last, and is made if there is none",
    )
    parser.add_argument(
        "--private",
        action="store_true",
        help="make a repository that only its owner sees (default: public, or what an organisation "
        "has chosen)",
    )
    parser.add_argument(
        "--revision", metavar="BRANCH", default="main",
        help="upload to this branch, which is made if there is none (default: main)",
    )  # fmt: skip
    parser.add_argument(
        "--results", metavar="DIR", nargs="+", action="extend",
        help="folders of `sae-plugins evaluate`, whose results of these SAEs go along (default: "
        "evaluations, if it is here)",
    )  # fmt: skip
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace SAEs of the same names, with all files in their folders but other results of "
        "the very same SAE",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="say what would be sent, and show the card; send nothing",
    )
    return parser


# -- before anything is sent -----------------------------------------------------------------------


def _names(names: Sequence[str]) -> tuple[list[str], str]:
    from sae_plugins.base.hub import check_repo

    *sources, repo = names or [""]
    if not sources or (Path(repo) / "cfg.json").is_file():
        raise SaePluginsError("name the folders of runs, and last the repository: USER/REPO")
    check_repo(repo)
    return list(dict.fromkeys(sources)), repo


def _check_token(dry_run: bool) -> None:
    from huggingface_hub import get_token

    if get_token() is None and not dry_run:
        raise SaePluginsError(
            "there is no token of the Hugging Face Hub: `hf auth login`, or set HF_TOKEN to one "
            "with the right to write"
        )


def _prepared(sources: Sequence[str], repo: str, given: Sequence[str] | None) -> list[Upload]:
    """All SAEs, each loaded once to see that it can be."""
    from sae_plugins.share.content import prepare

    folders = _evaluations(given)
    uploads: dict[str, Upload] = {}
    for source in sources:
        _note(f"checking {source} ...")
        upload = prepare(source, folders, repo)
        if upload.sae_id in uploads:
            raise SaePluginsError(
                f"{uploads[upload.sae_id].folder} and {upload.folder} would both be called "
                f"{upload.sae_id}: rename one of the folders"
            )
        uploads[upload.sae_id] = upload
    return list(uploads.values())


def _evaluations(given: Sequence[str] | None) -> list[Path]:
    from sae_plugins.entrypoints.evaluate_flags import FLAGS
    from sae_plugins.eval_suites.evaluation.manifest import MANIFEST

    usual = Path(str(FLAGS["output_path"].default))
    if given is None:
        if not (usual / MANIFEST).is_file():
            return []
        print(f"results are taken from {usual}; --results DIR names other folders")
        return [usual]
    folders = [Path(name).expanduser() for name in given]
    for folder in folders:
        if not (folder / MANIFEST).is_file():
            raise SaePluginsError(
                f"--results {folder} is no folder of `sae-plugins evaluate`: it has no {MANIFEST}"
            )
    return folders


def _check(repository: Repository, uploads: Sequence[Upload], parsed: argparse.Namespace) -> None:
    """See, and in a dry run show, what each upload would change in the repository."""
    from sae_plugins.base.errors import HubError

    try:
        state = repository.read()
    except HubError as error:
        if not parsed.dry_run:
            raise
        state = None
        print(f"note: what is in the repository is not known: {error}")
    for upload in uploads:
        plan = repository.plan(upload, state, parsed.overwrite)
        if parsed.dry_run:
            _print_plan(upload, plan)
    if parsed.dry_run:
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
