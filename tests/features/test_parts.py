"""The parts of feature pages by themselves: scripts, places, words, logits, neighbours, order."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from language_models import tokenizer as on_bytes

from sae_plugins.base.errors import SaePluginsError
from sae_plugins.features import neighbours
from sae_plugins.features.folder import check_place, new_folder
from sae_plugins.features.history import history
from sae_plugins.features.logits import promoted, readout
from sae_plugins.features.neighbours import decoder_twins, directions, nearest
from sae_plugins.features.order import order_of
from sae_plugins.features.shards import INDEX, read, script
from sae_plugins.features.vocabulary import Vocabulary, _bytes
from sae_plugins.runs.feature_history import Past
from sae_plugins.runs.folder import METRICS_BY_FEATURE

NASTY = ["</script><script>alert(1)</script>", "<!--", "\u2028\u2029", '"`${1}\\', "\ud800", "ä\0"]


def test_no_text_can_leave_its_script(tmp_path: Path) -> None:
    made = script("shard", 0, 3, {"words": NASTY})
    assert made.isascii()
    assert "<" not in made
    assert len(made.splitlines()) == 1
    (tmp_path / "one.js").write_text(made)
    assert read(tmp_path / "one.js") == {"words": NASTY}


# -- the place -------------------------------------------------------------------------------------


def pages_in(folder: Path, text: str = "old") -> Path:
    (folder / INDEX).parent.mkdir(parents=True)
    (folder / INDEX).write_text(text)
    return folder


def test_a_place_that_is_taken_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SaePluginsError, match="is a file; name a folder"):
        check_place(tmp_path / "file", True)
    with pytest.raises(SaePluginsError, match="holds something else than feature pages"):
        check_place(tmp_path, True)
    with pytest.raises(SaePluginsError, match="add --overwrite"):
        check_place(pages_in(tmp_path / "old"), False)
    check_place(tmp_path / "old", True)
    (tmp_path / "empty").mkdir()
    check_place(tmp_path / "empty", False)
    (tmp_path / "old" / "notes.md").touch()
    with pytest.raises(SaePluginsError, match=r"holds notes\.md besides feature pages"):
        check_place(tmp_path / "old", True)


def test_the_working_folder_may_be_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with new_folder(Path(), False) as folder:
        pages_in(folder, "new")
    assert (tmp_path / "here" / INDEX).read_text() == "new"


def test_a_folder_is_replaced_at_the_end_alone(tmp_path: Path) -> None:
    old = pages_in(tmp_path / "pages")
    with pytest.raises(ValueError, match="Expecting value"), new_folder(old, True) as folder:
        json.loads(pages_in(folder, "new").name)
    assert (old / INDEX).read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["pages"]
    with new_folder(old, True) as folder:
        pages_in(folder, "new")
        assert (old / INDEX).read_text() == "old"
        with pytest.raises(SaePluginsError, match="another process"), new_folder(old, True):
            pass
    assert (old / INDEX).read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["pages"]


def test_what_killed_processes_left_is_put_right(tmp_path: Path) -> None:
    pages_in(tmp_path / "pages.before")  # killed between the two moves
    pages_in(tmp_path / "pages.partial", "half")
    with (
        pytest.raises(SaePluginsError, match="add --overwrite"),
        new_folder(tmp_path / "pages", False),
    ):
        pass
    assert (tmp_path / "pages" / INDEX).read_text() == "old"
    pages_in(tmp_path / "pages.before", "older")  # killed after the second move
    with new_folder(tmp_path / "pages", True) as folder:
        assert not [*folder.iterdir()]
        pages_in(folder, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["pages"]


# -- words -----------------------------------------------------------------------------------------


def test_bytes_are_letters_where_they_can_be() -> None:
    made = on_bytes()
    made.add_tokens(["Ġĉ"])  # makes it one that writes spaces so
    words = Vocabulary(made)
    assert words.text(made.convert_tokens_to_ids("Ġ")) == " "
    assert words.text(made.convert_tokens_to_ids("a")) == "a"
    assert words.text(made.convert_tokens_to_ids("Ã")) == "⟨C3⟩"
    for byte, shown in ((0x00, "⟨00⟩"), (0x1B, "⟨1B⟩"), (0x7F, "⟨7F⟩"), (0x0A, "\n"), (0x09, "\t")):
        assert words.text(made.convert_tokens_to_ids(LETTERS[byte])) == shown
    next_line = [made.convert_tokens_to_ids(LETTERS[byte]) for byte in "\x85".encode()]
    assert words.text(*next_line) == "⟨C2⟩⟨85⟩"
    assert words.text(made.bos_token_id) == "<s>"
    assert words.text(10**6) == "[1000000]"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" \u200bof", " ⟨E2⟩⟨80⟩⟨8B⟩of"),  # of no width
        ("\ufeff", "⟨EF⟩⟨BB⟩⟨BF⟩"),
        ("a\u202eb", "a⟨E2⟩⟨80⟩⟨AE⟩b"),  # which turns the rest of the page round
        ("\u2028", "⟨E2⟩⟨80⟩⟨A8⟩"),
        ("\u200d", "⟨E2⟩⟨80⟩⟨8D⟩"),
        (" \ufe0f", " ⟨EF⟩⟨B8⟩⟨8F⟩"),
        ("\U0001f468\u200d\U0001f469", "\U0001f468\u200d\U0001f469"),  # one emoji
        ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u200c\u062e"),  # Persian
        ("\u2764\ufe0f", "\u2764\ufe0f"),
        ("é \u00a0ß", "é \u00a0ß"),
    ],
)
def test_what_nobody_would_see_is_shown_as_bytes(text: str, shown: str) -> None:
    made = on_bytes()
    made.add_tokens([text])
    assert Vocabulary(made).text(made.convert_tokens_to_ids(text)) == shown


LETTERS = {byte: letter for letter, byte in _bytes().items()}


def test_sentencepiece_has_spaces() -> None:
    words = Vocabulary(
        SimpleNamespace(
            get_vocab=lambda: {"▁of": 0, "<0xE4>": 1, "<0x0A>": 2},
            convert_ids_to_tokens=["▁of", "<0xE4>", "<0x0A>"].__getitem__,
        )
    )
    assert [words.text(0), words.text(1), words.text(2)] == [" of", "⟨E4⟩", "\n"]


def test_tokens_that_make_letters_together_are_found() -> None:
    made = on_bytes()
    made.add_tokens(["Ġĉ"])
    words = Vocabulary(made)

    def passages(text: bytes) -> list[str]:
        tokens = [made.convert_tokens_to_ids(byte_letter) for byte_letter in map(LETTERS.get, text)]
        begins = words.letters(tokens)
        ends = [*begins[1:], len(tokens)]
        return [words.text(*tokens[i:j]) for i, j in zip(begins, ends, strict=True)]

    assert passages("aö€b🦉c".encode()) == ["a", "ö", "€", "b", "🦉", "c"]
    assert passages("ö€".encode()[1:-1]) == ["⟨B6⟩", "⟨E2⟩", "⟨82⟩"]
    assert passages(b"\xc3a\xb6") == ["⟨C3⟩", "a", "⟨B6⟩"]


# -- logits ----------------------------------------------------------------------------------------


class Norm:
    """RMSNorm or LayerNorm with a weight and a bias."""

    def __init__(self, centred: bool) -> None:
        generator = torch.Generator().manual_seed(1)
        self.weight, self.bias = torch.randn(2, 8, generator=generator)
        self.centred = centred

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        return x / x.square().mean(-1, keepdim=True).sqrt() * self.weight + self.bias


def hooked(norm: Any = None) -> Any:
    generator = torch.Generator().manual_seed(0)
    return SimpleNamespace(
        W_U=torch.randn(8, 20, generator=generator),
        W_O=torch.randn(2, 3, 5, 8, generator=generator),
        W_out=torch.randn(2, 11, 8, generator=generator),
        ln_final=norm,
    )


@pytest.mark.parametrize(
    ("norm", "path"),
    [
        (None, "W_dec · W_U"),
        (Norm(False), "W_dec · scale of the final norm · W_U"),
        (Norm(True), "W_dec, centred · scale of the final norm · W_U"),
    ],
    ids=["none", "RMSNorm", "LayerNorm"],
)
def test_logits_go_through_the_final_norm(norm: Any, path: str) -> None:
    model = hooked(norm)
    found = readout(model, "blocks.1.hook_resid_post", 8, words=18)
    assert found is not None
    assert found.path == path
    rows = torch.randn(3, 8)
    expected = rows - rows.mean(1, keepdim=True) if norm and norm.centred else rows
    expected = expected * (norm.weight if norm else 1) @ model.W_U[:, :18]
    expected = expected - expected.mean(1, keepdim=True)
    assert torch.allclose(found.logits(rows), expected, atol=1e-4)
    up, ups, down, downs = promoted(found, rows, 4)
    assert torch.allclose(ups, expected.topk(4).values, atol=1e-4)
    assert torch.allclose(downs, -(-expected).topk(4).values, atol=1e-4)
    assert up.max() < 18
    assert (expected.gather(1, down) - downs).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("hook", "head", "d_in", "path"),
    [
        ("blocks.0.attn.hook_z", None, 15, "W_dec · W_O · W_U"),
        ("blocks.1.attn.hook_z", 2, 5, "W_dec · W_O of head 2 · W_U"),
        ("blocks.0.mlp.hook_post", None, 11, "W_dec · W_out · W_U"),
        ("blocks.0.hook_mlp_out", None, 8, "W_dec · W_U"),
        ("blocks.0.attn.hook_q", None, 8, None),
        ("blocks.0.attn.hook_q", 1, 5, None),
        ("hook_embed", None, 8, None),
    ],
)
def test_hooks_that_write_into_the_residual_stream_have_logits(
    hook: str, head: int | None, d_in: int, path: str | None
) -> None:
    model = hooked()
    found = readout(model, hook, d_in, words=20, head=head)
    assert (found and found.path) == path
    if head == 2:
        assert found is not None
        row = torch.randn(1, 5)
        expected = row @ model.W_O[1, 2] @ model.W_U
        assert torch.allclose(found.logits(row), expected - expected.mean(), atol=1e-4)
    if found is not None:
        assert found.logits(torch.randn(2, d_in)).shape == (2, 20)


# -- neighbours and order --------------------------------------------------------------------------


def test_nearest_rows_are_those_of_all_cosines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_BLOCK", 30)
    rows, other = directions(torch.randn(11, 4)), directions(torch.randn(7, 4))
    cosines = rows @ rows.T
    cosines.fill_diagonal_(-2)
    index, values = nearest(rows, 3)
    assert torch.equal(index, cosines.topk(3).indices)
    assert torch.allclose(values, cosines.topk(3).values)
    assert nearest(rows[:1], 3)[0].shape == (1, 0)
    best, cosine = decoder_twins(rows, other)
    assert torch.equal(best, (rows @ other.T).argmax(1))
    assert torch.allclose(cosine, (rows @ other.T).max(1).values)


def test_the_order_of_features() -> None:
    density = np.linspace(0.5, 0.0, 100)
    rows = directions(torch.eye(50).repeat_interleave(2, 0))  # pairs of equal rows
    order = order_of(density, rows)
    assert order.correlation == pytest.approx(-1)
    assert (order.edges[0], order.edges[-1], len(order.edges)) == (0, 100, 49)
    first = density[: order.edges[1]]
    assert order.density[0] == pytest.approx(np.quantile(first, (0.16, 0.5, 0.84)).tolist())
    assert np.mean(order.related) == pytest.approx(0.5, abs=0.1)
    assert order.by_chance < 0.1
    assert order_of(np.zeros(3), rows[:3]).correlation is None


# -- history ---------------------------------------------------------------------------------------


def test_nothing_is_said_where_nothing_is_known(tmp_path: Path) -> None:
    assert (
        history(None, None, 4) == history(tmp_path, {"reorderings": 3}, 4) == history(None, [], 4)
    )
    assert history(None, None, 4).sentences == []


def test_the_log_tells_what_was_merged_and_started_again(tmp_path: Path) -> None:
    rows = [{"step": 5, "changes/merged": 2}, {"step": 9, "changes/merged": 1, "changes/reset": 3},
            {"step": 10, "changes/permuted": 4}]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = history(tmp_path, {"reorderings": {"steps": [10]}}, 4)
    assert found.sentences == [
        "The features were reordered once, at step 10.",
        "3 features were merged into others, from step 5 to 9.",
        "3 features were started again, at step 9.",
    ]
    assert found.is_ordered
    assert found.past == {}


def test_rows_by_feature_tell_what_happened_to_each(tmp_path: Path) -> None:
    known = {"reorderings": {"steps": [10]}}
    (tmp_path / METRICS_BY_FEATURE).write_text('{"feature": 1, "place": 0, "started": 12}\n')
    assert history(tmp_path, known, 2).past == {1: Past(0, started=12)}
    (tmp_path / METRICS_BY_FEATURE).write_text('{"feature": 2, "place": 0}\n')
    found = history(tmp_path, known, 2)
    assert found.sentences[-1].startswith("metrics_by_feature.jsonl is damaged (feature 2: ")
    assert found.past == {}
