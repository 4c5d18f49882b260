"""SAEs on the Hugging Face Hub: how a repository takes them, and what is said when it does not.

An SAE is a folder of the repository in SAELens' layout, with what reproduces and explains it, and
gets there in one commit together with the card. A commit names the one that it was made for: when
somebody else was faster, everything is read again. So an SAE is visible whole or not at all, and a
commit whose answer got lost is recognised by the files that are there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sae_plugins.base.errors import HubError, SaePluginsError
from sae_plugins.base.hub import CARD, MAIN, TRIES, T, api, http_status, retried, why
from sae_plugins.share.content import HUB_RESULTS, Content, size_of

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

    from sae_plugins.eval_suites.evaluation.results import Result
    from sae_plugins.share.content import Upload


# -- the Hub ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """What a repository holds at one commit."""

    commit: str
    has_branch: bool
    files: Mapping[str, RepoFile]
    """By path."""


@dataclass(frozen=True)
class Commit:
    """What a commit would change."""

    additions: Mapping[str, Content]
    """By path in the repository; without what is there already."""
    deletions: Sequence[str]
    card: str


class Repository:
    """A repository of SAEs on the Hub.

    Attributes:
        repo: such as `user/saes`.
        branch: made when it is needed.
        private: whether the repository is to be so where this upload makes it.
    """

    def __init__(
        self,
        repo: str,
        branch: str = MAIN,
        private: bool = False,
        tries: int = TRIES,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Name it; nothing is sent yet. `say` hears why something is tried again."""
        self.repo, self.branch, self.private = repo, branch, private
        self.api = api()
        self._tries, self._say = tries, say

    @property
    def url(self) -> str:
        """Its page."""
        tree = "" if self.branch == MAIN else f"/tree/{self.branch}"
        return f"{self.api.endpoint}/{self.repo}{tree}"

    def read(self) -> State | None:
        """What it holds now; None if there is no such repository.

        Raises:
            HubError: the Hub does not say, or it is public and is to be private.
        """
        return self._do(self._read)

    def plan(self, upload: Upload, state: State | None, overwrite: bool) -> Commit:
        """What a commit of an SAE would change.

        Raises:
            HubError: it would overwrite files, and shall not; the card cannot be read.
        """
        return self._do(lambda: self._plan(upload, state, overwrite))

    def send(self, upload: Upload, overwrite: bool) -> bool:
        """Commit an SAE with its card; whether anything of it was still to be sent.

        Raises:
            HubError: nothing of it is there, or all of it was there before.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        sent = False

        def attempt() -> None:
            nonlocal sent
            state = self._made()
            plan = self._plan(upload, state, overwrite)
            if not plan.additions and not plan.deletions:
                return
            sent = True
            self.api.create_commit(
                self.repo,
                [
                    *(CommitOperationDelete(path) for path in plan.deletions),
                    *(CommitOperationAdd(path, file) for path, file in plan.additions.items()),
                ],
                commit_message=f"Upload SAE {upload.sae_id}",
                revision=self.branch,
                parent_commit=state.commit,
            )

        self._do(attempt)
        return sent

    def _read(self) -> State | None:
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
        from huggingface_hub.hf_api import RepoFile

        has_branch = True
        try:
            try:
                info = self.api.model_info(self.repo, revision=self.branch)
            except RevisionNotFoundError:  # it will begin where the main one is
                info, has_branch = self.api.model_info(self.repo), False
        except RepositoryNotFoundError:
            return None
        if self.private and not info.private:
            raise HubError(
                f"{self.repo} is public: make it private on its page {self.url}/settings, or leave "
                "--private out"
            )
        tree = self.api.list_repo_tree(self.repo, recursive=True, revision=info.sha)
        files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
        return State(str(info.sha), has_branch, files)

    def _plan(self, upload: Upload, state: State | None, overwrite: bool) -> Commit:
        from sae_plugins.share.card import card
        from sae_plugins.share.facts import facts_of

        there = state.files if state else {}
        files = {f"{upload.sae_id}/{name}": content for name, content in upload.files.items()}
        others = [path for path in there if path.startswith(f"{upload.sae_id}/")]
        changed = [path for path in others if path in files and not _same(files[path], there[path])]
        additions = {path: files[path] for path in files if path not in there or path in changed}
        results = f"{upload.sae_id}/{HUB_RESULTS}/"
        is_new = not all(path.startswith(results) for path in additions)
        if changed and not overwrite:
            names = f"{', '.join(changed[:3])}{', ...' if len(changed) > 3 else ''}"
            raise HubError(
                f"{self.repo} has other results of {upload.sae_id} already, as when an evaluation "
                f"is repeated: {names} differ; --overwrite replaces them"
                if all(path.startswith(results) for path in changed)
                else f"{self.repo} has another SAE {upload.sae_id} already: {names} differ; rename "
                f"the folder {upload.folder}, or --overwrite"
            )
        extra = [path for path in others if path not in files]
        kept = self._kept([path for path in extra if path.startswith(results)], state, upload.hash)
        raw = {f"{results}{result.raw}" for result in kept.values()}
        deletions = [path for path in extra if path not in kept and path not in raw]
        previous = self._text(CARD, state) if CARD in there else None
        facts = facts_of(
            upload.sae_id, upload.folder, [*upload.results, *kept.values()], upload.failed
        )
        text = card(facts, previous, self.repo, self.branch, results_only=not is_new)
        if text != previous:
            additions[CARD] = text.encode()
        return Commit(additions, deletions if overwrite else [], text)

    def _made(self) -> State:
        """What it holds, after it has been made, with the branch, where that is to be done."""
        state = self._read()
        if state is not None and state.has_branch:
            return state
        if state is None:
            # None: as its owner has it by default
            self.api.create_repo(self.repo, private=self.private or None, exist_ok=True)
        if self.branch != MAIN:
            self.api.create_branch(self.repo, branch=self.branch, exist_ok=True)
        state = self._read()
        if state is None:
            raise HubError(
                f"{self.repo} is not there though it was made: the token may not read it, or try "
                "again in a minute"
            )
        return state

    def _kept(self, paths: Iterable[str], state: State | None, sae_hash: str) -> dict[str, Result]:
        """Results of this SAE that were uploaded earlier and stay, by path."""
        from sae_plugins.eval_suites.evaluation.results import Result

        found = {}
        for path in paths:
            if path.endswith(".json") and not path.endswith(".saebench.json"):
                try:
                    found[path] = Result.model_validate_json(self._text(path, state))
                except ValueError:  # somebody else's file
                    continue
        return {path: result for path, result in found.items() if result.sae.hash == sae_hash}

    def _text(self, path: str, state: State | None) -> str:
        assert state is not None
        file = self.api.hf_hub_download(self.repo, path, revision=state.commit)
        try:
            return Path(file).read_bytes().decode("utf-8-sig")  # line ends as they are
        except UnicodeDecodeError as error:
            raise HubError(f"{self.repo}: {path} is no text in UTF-8: {error}") from error

    def _do(self, work: Callable[[], T]) -> T:
        try:
            return retried(work, self._say, self._tries)
        except SaePluginsError:
            raise
        except Exception as error:  # of the network, the Hub and the disk
            raise HubError(f"{self.repo}: {self._no_right(error) or why(error)}") from error

    def _no_right(self, error: BaseException) -> str | None:
        """Who has no right to write here, and who has it; None if that is not the reason."""
        if http_status(error) != 403:
            return None
        try:
            me = self.api.whoami()
        except Exception:
            return "the token has no right to write here: make one that has, and `hf auth login`"
        role = me.get("auth", {}).get("accessToken", {}).get("role")
        if role == "read":
            return (
                f"{me['name']} is logged in with a token that can only read: make one with the "
                f"right to write at {self.api.endpoint}/settings/tokens, and `hf auth login`"
            )
        owner = self.repo.split("/")[0]
        owners = [me["name"], *(each["name"] for each in me.get("orgs", []))]
        if role == "write" and owner in owners:
            return None
        return (
            f"{me['name']} may not write to {self.repo}, whose owner is {owner}; the token's "
            f"owners are {', '.join(owners)}"
            + ("" if role == "write" else ", and it may be limited to some repositories")
        )


def _same(content: Content, there: RepoFile) -> bool:
    """Whether a file is that at the Hub, by its hash there."""
    count = size_of(content)
    if count != there.size:
        return False
    digest = hashlib.sha256() if there.lfs else hashlib.sha1(b"blob %d\0" % count)
    if isinstance(content, bytes):
        digest.update(content)
    else:
        with content.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest() == (there.lfs.sha256 if there.lfs else there.blob_id)
