"""The Hugging Face Hub: what is read from it, tried again, and said when it fails."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sae_plugins.base.errors import HubError
from sae_plugins.base.nearby import meant

if TYPE_CHECKING:
    from huggingface_hub import HfApi


logger = logging.getLogger(__name__)
T = TypeVar("T")
MAIN, CARD = "main", "README.md"
TRIES = 6
"""How often something is done that the Hub or the network keeps from being done."""
_LONGEST_WAIT = 300.0
"""Seconds; the Hub counts requests in windows of five minutes."""
_PATIENCE = 900.0
"""Seconds after which nothing is tried again; the client's own waiting counts."""
_SHORT = 10.0
"""Seconds to wait for an answer that can be done without."""
_TRANSIENT = (408, 409, 412, 429, 500, 502, 503, 504)
"""Answers that another try may change; 409 and 412: somebody else is committing."""
_BROKEN = ("TransportError", "ConnectionError", "TimeoutError")
"""Classes of broken connections, by name: which HTTP library the client has is its own business."""
_MISCONFIGURED = ("UnsupportedProtocol", "LocalProtocolError", "SSLCertVerificationError")
"""Those that no other try would change."""


def api() -> HfApi:
    """The Hub that `HF_ENDPOINT` names, with the token of huggingface_hub's usual places."""
    from huggingface_hub import HfApi, get_token

    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    return HfApi(endpoint=endpoint or None, token=get_token() or False, library_name="sae-plugins")


def local(source: str, tries: int = TRIES) -> Path:
    """The folder of an SAE, downloaded as it is now if it is on the Hub.

    Raises:
        HubError: it is neither here nor there, or cannot be downloaded.
    """
    folder = Path(source).expanduser()
    repo, _, sae_id = source.partition(":")
    if folder.is_dir():
        return folder
    if "/" not in repo or not sae_id:
        cure = meant(folder) or "name one, or give USER/REPO:SAE_ID"
        raise HubError(f"{source} is no folder; {cure}")
    check_repo(repo)
    parts = sae_id.split("/")
    if {"", ".", ".."} & {*parts} or re.search(r"[*?\[\]\\]", sae_id):
        raise HubError(f"{source}: {sae_id!r} is no name of an SAE")
    try:
        files = retried(lambda: _downloaded(repo, f"{sae_id}/*"), logger.warning, tries)
    except Exception as error:  # of the network, the Hub and the disk
        cure = "; HF_HUB_OFFLINE=1 takes what was downloaded before" if _is_broken(error) else ""
        raise HubError(f"{source} cannot be downloaded: {why(error)}{cure}") from error
    if not (files / sae_id).is_dir():
        raise HubError(f"{source}: the repository {repo} has no SAE {sae_id!r}")
    return files / sae_id


def _downloaded(repo: str, pattern: str) -> Path:
    """A repository's newest commit; offline, what is in the cache."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    hub = api()
    try:
        # without a commit, the client takes an old one from its cache where the Hub fails
        commit = hub.model_info(repo).sha
        hub.snapshot_download(repo, revision=commit, allow_patterns=[pattern])
    except OfflineModeIsEnabled:
        commit = None
    # and only without one it remembers which commit was the newest, for work offline
    newest = hub.snapshot_download(repo, allow_patterns=[pattern])
    return Path(newest).with_name(commit) if commit else Path(newest)


def commit_of(repo: str, kind: str, revision: str | None = None) -> str | None:
    """The commit at which a repository is now, or else was when something was last read from it.

    Args:
        repo: such as `google/gemma-2-2b`.
        kind: "model" or "dataset".
        revision: a branch, a tag or a commit; the main branch by default.

    Returns:
        None where nobody could say: the Hub was not to be reached, and nothing is in the cache.
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    revision = revision or MAIN
    if is_commit(revision):
        return revision
    try:
        info = api().repo_info(repo, repo_type=kind, revision=revision, timeout=_SHORT)
        return info.sha
    except Exception:  # of the network, the Hub, and of names that are none
        try:
            folder = repo_folder_name(repo_id=repo, repo_type=kind)  # refuses what is no name
            refs = Path(constants.HF_HUB_CACHE, folder, "refs")
            return (refs / revision).read_text("utf-8").strip() or None
        except (OSError, ValueError):
            return None


def bytes_to_download(
    repo: str, kind: str, revision: str | None, wanted: Callable[[list[str]], list[str]]
) -> int:
    """How much of a repository is not in the cache yet; 0 where nobody can say.

    Args:
        repo: such as `google/gemma-2-2b`.
        kind: "model" or "dataset".
        revision: a branch, a tag or a commit; the main branch by default.
        wanted: of the repository's files, those that are read.
    """
    from huggingface_hub import try_to_load_from_cache

    try:
        info: Any = api().repo_info(
            repo, repo_type=kind, revision=revision, files_metadata=True, timeout=_SHORT
        )
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        return sum(
            sizes[name]
            for name in wanted([*sizes])
            if not isinstance(
                try_to_load_from_cache(repo, name, revision=info.sha, repo_type=kind), str
            )
        )
    except Exception:  # of the network, the Hub, and of names that are none: said when it is read
        return 0


def is_commit(revision: str) -> bool:
    """Whether a revision is a commit, and so always the same."""
    return re.fullmatch("[0-9a-f]{40}", revision) is not None


def check_repo(repo: str) -> None:
    """Refuse what is no name of a repository.

    Raises:
        HubError: it names what is wrong with it.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise HubError(f"{repo!r} is no repository: {error}") from error
    if repo.count("/") != 1:
        raise HubError(f"{repo!r} is no repository: name its owner, too: USER/REPO")


def check_branch(name: str) -> None:
    """Refuse what cannot be a branch.

    Raises:
        HubError: with an example.
    """
    is_commit = re.fullmatch("[0-9a-f]{7,40}", name)
    fits = re.fullmatch(r"\w[\w./-]*", name, re.ASCII) and not name.startswith("refs/")
    if is_commit or not fits or ".." in name or name.endswith(("/", ".", ".lock")):
        raise HubError(f"--revision {name!r} is no branch; give a name such as v1")


def retried(work: Callable[[], T], say: Callable[[str], None], tries: int = TRIES) -> T:
    """Do something that can be done again, a few times if the Hub or the network fails.

    Args:
        work: reads what there is before it changes anything.
        say: hears why it is tried again, and when.
    """
    began = time.monotonic()
    for number in range(1, tries + 1):
        try:
            return work()
        except Exception as error:
            late = time.monotonic() - began > _PATIENCE
            if number == tries or late or not _may_pass(error):
                raise
            wait = _wait(error, number)
            say(f"{why(error)}; try {number + 1} of {tries} in {wait:.0f} s")
        time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _may_pass(error: BaseException) -> bool:
    from huggingface_hub.errors import OfflineModeIsEnabled

    if any(isinstance(link, (OfflineModeIsEnabled, HubError)) for link in _chain(error)):
        return False
    status = http_status(error)
    return status in _TRANSIENT if status is not None else _is_broken(error)


def _wait(error: BaseException, number: int) -> float:
    """Seconds: as the Hub asks, else more and more."""
    response = next((link.response for link in _chain(error) if hasattr(link, "response")), None)
    asked = getattr(response, "headers", {}).get("Retry-After", "")
    return min(float(asked) if asked.isdigit() else 2.0 ** (number - 1), _LONGEST_WAIT)


def _chain(error: BaseException) -> Iterator[Any]:
    """An error, and those that it was made of."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        yield cause
        cause = cause.__cause__ or cause.__context__


def http_status(error: BaseException) -> int | None:
    """The Hub's answer, if it gave one."""
    responses = (getattr(link, "response", None) for link in _chain(error))
    return next((int(r.status_code) for r in responses if r is not None), None)


def _is_broken(error: BaseException) -> bool:
    names = {kind.__name__ for link in _chain(error) for kind in type(link).__mro__}
    return bool(names & {*_BROKEN}) and not names & {*_MISCONFIGURED}


def why(error: BaseException) -> str:
    """Why something at the Hub could not be had or done, and what helps, in words."""
    from huggingface_hub import errors

    from sae_plugins.base.secrets import without_secrets

    def is_any(kind: type[BaseException]) -> bool:
        return any(isinstance(link, kind) for link in _chain(error))

    status = http_status(error)
    if is_any(errors.OfflineModeIsEnabled):
        return "huggingface_hub is offline: unset HF_HUB_OFFLINE"
    if is_any(errors.GatedRepoError):
        return "access to it is restricted: accept its terms on the Hugging Face Hub and log in"
    if is_any(errors.RepositoryNotFoundError):
        return "there is no such repository, or it is shown only to those who are logged in"
    if status == 401:
        return "the Hub does not accept the token: `hf auth login`, or set HF_TOKEN to another"
    if status == 429:
        return "too many requests, says the Hub (429)"
    if status in (409, 412):
        return f"somebody else is changing the repository ({status})"
    if status in _TRANSIENT:
        return f"the Hub fails ({status})"
    if status is None and (_is_broken(error) or is_any(errors.LocalEntryNotFoundError)):
        return "the Hub cannot be reached, or the connection to it broke: go online"
    if is_any(errors.EntryNotFoundError):
        return "the repository lacks a file that is needed"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return without_secrets(f"{type(error).__name__}: {' '.join(lines)}")[:300]
