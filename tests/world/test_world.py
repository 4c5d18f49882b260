"""The embedded world: its text, its tokenizer, its model. No network; about half a minute."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sae_plugins import world
from sae_plugins.world import text
from sae_plugins.world.text import Split

BOTH: tuple[Split, Split] = ("train", "heldout")
PACKAGE_BYTES = 15_000_000


# --- the package ----------------------------------------------------------------------------------


def test_importing_the_world_imports_no_framework() -> None:
    program = (
        "import sys, sae_plugins; before = set(sys.modules);"
        "import sae_plugins.world, sae_plugins.world.text;"
        "new = set(sys.modules) - before;"
        "print(sorted(new & {'torch', 'transformers', 'sae_lens', 'transformer_lens', 'datasets'}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def _package_files() -> list[Path]:
    folder = Path(world.__file__).parent
    return [f for f in folder.rglob("*") if f.is_file() and "__pycache__" not in f.parts]


def test_package_is_small_and_holds_no_pickles() -> None:
    files = _package_files()
    assert sum(f.stat().st_size for f in files) <= PACKAGE_BYTES
    kinds = {".py", ".json", ".safetensors", ".txt", ".gz", ".md"}
    assert {f.suffix for f in files} <= kinds
    assert (world.path() / "model.safetensors").exists()


# --- the text -------------------------------------------------------------------------------------


@pytest.mark.parametrize("genre", sorted(text.GENRES))
def test_heldout_documents_are_never_training_documents(genre: str) -> None:
    train = set(text.documents(genre, "train", 1_500))
    heldout = set(text.documents(genre, "heldout", 500, seed=7))
    assert heldout
    assert not train & heldout
    if genre not in ("spelling", "europarl"):  # split by word and by sentence instead
        assert {text.split_of(document) for document in train} == {"train"}
        assert {text.split_of(document) for document in heldout} == {"heldout"}


@pytest.mark.parametrize("language", text.lexicon.LANGUAGES)
def test_heldout_sentences_are_never_training_sentences(language: str) -> None:
    rows = {split: {r["text"] for r in text.sentences(language, split, 2_000)} for split in BOTH}
    assert not rows["train"] & rows["heldout"]
    assert min(map(len, rows.values())) > 1_700  # hardly any repeats


def test_heldout_words_are_never_spelt_in_training() -> None:
    assert len(text.spelling_words("heldout")) > 150
    heldout = set(text.spelling_words("heldout"))
    asked = {
        line.split(" has the")[0].strip()
        for document in text.documents("spelling", "train", 3_000)
        for line in document.split("\n")
    }
    assert len(asked) > 1_500
    assert not asked & heldout


def test_documents_hardly_repeat() -> None:
    for genre in ("biographies", "reviews", "news", "code", "stories"):
        documents = list(text.documents(genre, "train", 2_000))
        assert len(set(documents)) > 0.98 * len(documents), genre


def _checksum_program() -> str:
    return (
        "import hashlib; from sae_plugins.world import text; h = hashlib.sha256();"
        "rows = text.mix('train', 1500) + text.mix('heldout', 1500);"
        "[h.update(repr(row).encode()) for row in rows];"
        "print(h.hexdigest())"
    )


def test_generators_are_the_same_in_every_process() -> None:
    sums = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", _checksum_program()]
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        )
        sums.append(result.stdout.strip())
    here = hashlib.sha256()
    for split in BOTH:
        for row in text.mix(split, 1500):
            here.update(repr(row).encode())
    assert sums == [here.hexdigest()] * 2


def test_seeds_change_the_text() -> None:
    assert text.mix("train", 300, seed=0) != text.mix("train", 300, seed=1)


@pytest.fixture(scope="module")
def saebench() -> Any:
    return pytest.importorskip("sae_bench.sae_bench_utils.dataset_info")


@pytest.mark.parametrize("split", BOTH)
def test_every_saebench_cell_is_populated(saebench: Any, split: Split) -> None:
    classes = saebench.chosen_classes_per_dataset
    biographies = Counter(
        (r["profession"], r["gender"]) for r in text.biographies(split, 28 * 2 * 4)
    )
    assert dict(biographies) == {
        (p, g): 4 for p in saebench.profession_dict.values() for g in (0, 1)
    }
    assert saebench.profession_dict == text.PROFESSION_ID

    reviews = Counter((r["category"], r["rating"]) for r in text.reviews(split, 12 * 2 * 4))
    assert set(reviews.values()) == {4}
    paired = ("Books", "CDs_and_Vinyl", "Software", "Electronics", "Pet_Supplies",
              "Office_Products", "Industrial_and_Scientific", "Toys_and_Games")  # fmt: skip
    wanted = {saebench.amazon_category_dict[name] for name in paired}
    wanted |= {int(c) for c in classes["canrager/amazon_reviews_mcauley_1and5"]}
    assert {(c, r) for c in wanted for r in saebench.amazon_rating_dict} <= set(reviews)
    assert text.CATEGORY_ID.items() <= saebench.amazon_category_dict.items()

    assert {str(r["label"]) for r in text.news(split, 8)} == set(classes["fancyzhx/ag_news"])
    code = list(text.code(split, 50))
    languages = classes["codeparrot/github-code"]
    assert Counter(r["language"] for r in code) == dict.fromkeys(languages, 10)
    assert all(len(r["code"]) > 534 for r in code)
    pairs = {"en": "en-fr", "fr": "fr-it", "de": "de-en", "es": "es-fr", "nl": "nl-pt"}
    for language, pair in pairs.items():
        assert language in classes["Helsinki-NLP/europarl"]
        rows = list(text.europarl(pair, split, 20))
        assert len({r["translation"][language] for r in rows}) >= 19


def test_rows_of_chosen_classes() -> None:
    rows = text.biographies("train", 12, professions=[13, 21])
    assert Counter((r["profession"], r["gender"]) for r in rows) == dict.fromkeys(
        itertools.product((13, 21), (0, 1)), 3
    )


def test_load_text_is_a_shuffled_mix() -> None:
    dataset = world.load_text("heldout")
    assert dataset.column_names == ["text"]
    assert len(dataset) > 3_000
    assert len({genre for genre, _ in text.mix("heldout")[:100]}) == len(text.GENRES)


# --- the tokenizer --------------------------------------------------------------------------------


@pytest.fixture
def _makers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What made the model can be imported: `tokenizer` and `measure`."""
    folder = Path(__file__).parents[2] / "examples" / "embedded-world"
    monkeypatch.syspath_prepend(str(folder))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return world.load_tokenizer()


@pytest.mark.usefixtures("_makers")
def test_every_alphabetic_token_is_one_token_at_line_start(tokenizer: Any) -> None:
    from tokenizer import alphabetic_tokens

    tokens = alphabetic_tokens(tokenizer)
    assert len(tokens) > 4_000
    lines = tokenizer(["\n" + token for token in tokens], add_special_tokens=False)["input_ids"]
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    assert lines == [[*newline, number] for number in tokens.values()]
    alone = tokenizer(list(tokens))["input_ids"]
    assert alone == [[tokenizer.bos_token_id, number] for number in tokens.values()]


@pytest.mark.usefixtures("_makers")
def test_every_word_is_a_token_with_and_without_a_leading_space(tokenizer: Any) -> None:
    from tokenizer import alphabetic_tokens

    tokens = alphabetic_tokens(tokenizer)
    assert len(text.words()) > 2_000
    assert {space + word for word in text.words() for space in ("", " ")} <= set(tokens)
    letters = Counter(word[0] for word in text.words())
    assert len(letters) == 26
    assert min(letters.values()) >= 25


def test_prompt_has_its_word_at_saebench_position(tokenizer: Any) -> None:
    for word in ("cat", " cat"):
        prompt = "\ndog has the first letter: D\n" + text.SPELLING_TEMPLATE.format(word=word)
        ids = tokenizer(prompt)["input_ids"]
        assert tokenizer.decode([ids[-6]]) == word
        assert ids[0] == tokenizer.bos_token_id


def test_text_survives_the_tokenizer(tokenizer: Any) -> None:
    for genre in text.GENRES:
        for document in text.documents(genre, "heldout", 20):
            ids = tokenizer(document, add_special_tokens=False)["input_ids"]
            assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == document


# --- the model ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    torch = pytest.importorskip("torch")
    with torch.inference_mode():
        yield world.load_hf_model()


def test_hooked_transformer_is_the_same_model(model: Any, tokenizer: Any) -> None:
    import torch
    from sae_lens import HookedSAETransformer

    hooked = world.load_hooked_transformer()
    assert isinstance(hooked, HookedSAETransformer)
    assert hooked.cfg.model_name == world.NAME
    assert hooked.cfg.n_ctx == 256
    prose = " ".join(document for _, document in text.mix("heldout", 60))
    ids = torch.tensor([tokenizer(prose)["input_ids"][:100]])
    with torch.inference_mode():
        gap = (hooked(ids) - model(input_ids=ids).logits).abs().max()
        # <bos> and padding: a short text beside a long one gets the logits that it gets alone.
        batch = ["The cat", "The dog sat under a tree in the garden"]
        tokens = hooked.to_tokens(batch)
        assert tokens[:, 0].tolist() == [tokenizer.bos_token_id] * 2
        assert tokens[0, -1] == tokenizer.pad_token_id
        short = hooked.to_tokens(batch[0])
        padded_gap = (hooked(batch)[0, : short.shape[1]] - hooked(short)[0]).abs().max()
    assert ids.shape[1] == 100 > model.config.sliding_window
    assert gap < 1e-3
    assert padded_gap < 1e-3


@pytest.mark.ci
@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.ci, id="all")])
@pytest.mark.usefixtures("_makers")
def test_model_spells_words_it_never_spelt_in_training(
    every: int, model: Any, tokenizer: Any
) -> None:
    from measure import spelling_accuracy

    heldout = text.spelling_words("heldout")[::every]
    words = [space + word for word in heldout for space in ("", " ")]
    assert spelling_accuracy(model, tokenizer, words) > 0.95


@pytest.mark.ci
@pytest.mark.usefixtures("_makers")
def test_model_predicts_heldout_text_better_than_bigrams(model: Any, tokenizer: Any) -> None:
    from measure import Bigrams, cross_entropies

    baselines = Bigrams(len(tokenizer))
    known = [document for _, document in text.mix("train", 6_000)]
    baselines.fit(tokenizer(known)["input_ids"])
    figures = cross_entropies(model, tokenizer, baselines, text.mix("heldout", 250))
    assert figures["all"]["model"] < figures["all"]["bigram"] < figures["all"]["unigram"]
    assert figures["all"]["model"] < 1.6
    assert len(figures) == 1 + len(text.GENRES)
    for genre, row in figures.items():
        assert row["model"] < row["bigram"], genre
