"""Whether the loopback Hub is true: what others' clients do with it, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub import LoopbackHub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

REPO = "me/saes"


@pytest.fixture
def client(loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> HfApi:
    """Of somebody who may write."""
    token = loopback_hub.token("me")
    loopback_hub.here(monkeypatch, token)
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the client's tries
    return HfApi(endpoint=loopback_hub.endpoint, token=token)


def status_of(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return int(error.value.response.status_code)


def test_the_unmodified_client_uploads_and_downloads(
    loopback_hub: LoopbackHub, tmp_path: Path
) -> None:
    folder = tmp_path / "folder" / "sae"
    folder.mkdir(parents=True)
    (folder / "cfg.json").write_text('{"d_in": 1}')
    (folder / "sae_weights.safetensors").write_bytes(bytes(range(256)) * 40)
    out = loopback_hub.run(
        f"""
from pathlib import Path
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
api = HfApi()
print(api.whoami()["name"])
print(api.create_repo({REPO!r}, private=True))
commit = api.upload_folder(repo_id={REPO!r}, folder_path={str(folder.parent)!r})
print(sorted(api.list_repo_files({REPO!r})))
(info,) = api.get_paths_info({REPO!r}, ["sae/sae_weights.safetensors"])
print(info.size, info.lfs.sha256 is not None, info.xet_hash)
api.create_branch({REPO!r}, branch="v1")
print(sorted(branch.name for branch in api.list_repo_refs({REPO!r}).branches))
print(api.repo_info({REPO!r}, revision="v1").sha == commit.oid, api.repo_info({REPO!r}).private)
print(api.file_exists({REPO!r}, "sae/cfg.json"), api.file_exists({REPO!r}, "sae/none.json"))
file = hf_hub_download({REPO!r}, "sae/sae_weights.safetensors")
print(Path(file).read_bytes() == bytes(range(256)) * 40)
print(sorted(p.name for p in Path(snapshot_download({REPO!r}, revision="v1")).rglob("*.json")))
""",
        HF_TOKEN=loopback_hub.token("me"),
    )
    assert out.splitlines() == [
        "me",
        f"{loopback_hub.endpoint}/{REPO}",
        "['.gitattributes', 'sae/cfg.json', 'sae/sae_weights.safetensors']",
        "10240 True None",
        "['main', 'v1']",
        "True True",
        "True False",
        "True",
        "['cfg.json']",
    ]
    assert loopback_hub.files(REPO)["sae/cfg.json"] == b'{"d_in": 1}'


def test_sae_lens_uploads_and_loads(
    process: str, loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = loopback_hub.token("me")
    code = f"""
import torch
from sae_lens import SAE, StandardSAE, StandardSAEConfig
from sae_lens.training.upload_saes_to_huggingface import upload_saes_to_huggingface
sae = StandardSAE(StandardSAEConfig(d_in=4, d_sae=8))
upload_saes_to_huggingface({{"first": sae}}, {REPO!r}, show_progress=False)
upload_saes_to_huggingface({{"second": sae}}, {REPO!r}, show_progress=False)
again = SAE.from_pretrained({REPO!r}, "second")
print(torch.equal(again.W_enc, sae.W_enc))
"""
    if process == "here":
        out = loopback_hub.run_here(code, monkeypatch)
    else:
        out = loopback_hub.run(code, HF_TOKEN=token)
    assert out.split() == ["True"]
    names = set(loopback_hub.files(REPO))
    assert {"README.md", "first/cfg.json", "second/sae_weights.safetensors"} <= names
    titles = ["Upload SAE second", "Add README.md", "Upload SAE first", "initial commit"]
    assert loopback_hub.titles(REPO) == titles


def test_rights(loopback_hub: LoopbackHub, client: HfApi) -> None:
    client.create_repo(REPO, private=True)
    nobody = HfApi(endpoint=loopback_hub.endpoint, token=False)
    wrong = HfApi(endpoint=loopback_hub.endpoint, token="hf_wrong")
    stranger = HfApi(endpoint=loopback_hub.endpoint, token=loopback_hub.token("stranger"))
    reader = HfApi(endpoint=loopback_hub.endpoint, token=loopback_hub.token("me", "read"))
    for who, status in ((nobody, 401), (stranger, 404)):
        with pytest.raises(RepositoryNotFoundError) as missing:
            who.model_info(REPO)
        assert status_of(missing) == status
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as unknown:
        wrong.model_info(REPO)
    assert status_of(unknown) == 401
    assert reader.model_info(REPO).private
    client.create_repo("me/public")
    assert nobody.model_info("me/public").sha == stranger.model_info("me/public").sha
    for who in (reader, stranger):
        with pytest.raises(HfHubHTTPError) as forbidden:
            who.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="me/public")
        assert status_of(forbidden) == 403
    with pytest.raises(HfHubHTTPError, match="don't have the rights"):
        client.create_repo("nobody/saes")
    client.token = loopback_hub.token("me", organizations=("lab",))
    client.create_repo("lab/saes")


def test_a_commit_is_atomic_and_needs_the_newest_parent(
    loopback_hub: LoopbackHub, client: HfApi
) -> None:
    client.create_repo(REPO)
    first = client.create_commit(
        REPO, [CommitOperationAdd("a/x", b"1"), CommitOperationAdd("b/x", b"2")],
        commit_message="first",
    )  # fmt: skip
    with pytest.raises(EntryNotFoundError):
        client.create_commit(
            REPO, [CommitOperationAdd("c", b"3"), CommitOperationDelete("none")],
            commit_message="bad",
        )  # fmt: skip
    client.create_commit(REPO, [CommitOperationDelete("a/")], commit_message="second")
    with pytest.raises(HfHubHTTPError) as stale:
        client.create_commit(
            REPO, [CommitOperationAdd("c", b"3")], commit_message="third", parent_commit=first.oid
        )
    assert status_of(stale) == 412
    assert set(loopback_hub.files(REPO)) == {".gitattributes", "b/x"}
    assert set(loopback_hub.files(REPO, first.oid)) == {".gitattributes", "a/x", "b/x"}
    assert loopback_hub.titles(REPO) == ["second", "first", "initial commit"]
    with pytest.raises(RevisionNotFoundError):
        client.model_info(REPO, revision="none")
    with pytest.raises(ValueError, match="Invalid metadata"):
        client.upload_file(
            path_or_fileobj=b"---\n- a\n---\n", path_in_repo="README.md", repo_id=REPO
        )


def test_faults_come_when_they_are_told_to(
    loopback_hub: LoopbackHub, client: HfApi, tmp_path: Path
) -> None:
    client.create_repo(REPO)
    loopback_hub.fail("model", 503, times=1)
    with pytest.raises(HfHubHTTPError) as failing:
        client.model_info(REPO)
    assert status_of(failing) == 503
    client.model_info(REPO)
    for applied in (False, True):
        loopback_hub.cut(2, applied=applied)
        client.model_info(REPO)
        with pytest.raises(Exception, match="disconnected"):
            client.create_branch(REPO, branch=f"v{applied}")
        names = [branch.name for branch in client.list_repo_refs(REPO).branches]
        assert (f"v{applied}" in names) is applied
    weights = bytes(range(256)) * 40
    client.upload_file(path_or_fileobj=weights, path_in_repo="w.safetensors", repo_id=REPO)
    loopback_hub.truncate("w.safetensors", times=3)  # of the metadata, which have no body, too
    loopback_hub.requests.clear()
    file = client.hf_hub_download(REPO, "w.safetensors")
    assert Path(file).read_bytes() == weights
    assert [method for method, *_ in loopback_hub.requests] == ["HEAD", "GET", "GET", "GET"]
