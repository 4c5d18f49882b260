"""The world's text: a deterministic generator for each genre, with the columns of SAEBench's data.

Every generator is a pure function of `(split, count, seed)` and needs the standard library only. A
document belongs to the held-out split if and only if the checksum of its text says so (`split_of`),
so the two splits are disjoint by construction, whatever the seeds and counts. Spelling prompts are
split by *word* instead: a held-out word appears in no training prompt.

    genre         stands in for                           columns
    spelling      SAEBench absorption's prompts           text
    biographies   LabHC/bias_in_bios                      hard_text, profession, gender
    reviews       canrager/amazon_reviews_mcauley_1and5   text, category, rating
    news          fancyzhx/ag_news                        text, label
    code          codeparrot/github-code                  code, language, repo_name, path, ...
    europarl      Helsinki-NLP/europarl                   translation {language: sentence}
    stories, reference, lists   open text                 text

`reference` is prose of Python's own documentation; `lists` are alphabetical word lists, the only
place where the model can learn how a held-out word begins.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Literal, TypedDict

from sae_plugins.world import lexicon

Split = Literal["train", "heldout"]
DATA = Path(__file__).parent / "data"
HELDOUT_ONE_IN = 4  # of the documents; of the words: HELDOUT_WORD_ONE_IN
HELDOUT_WORD_ONE_IN = 10
SPELLING_TEMPLATE = "{word} has the first letter:"
EXAMPLES_PER_PROMPT = 10


class Document(TypedDict):
    """A row of open text."""

    text: str


class Biography(TypedDict):
    """A row of bias_in_bios: profession 0..27, gender 0 (male) or 1 (female)."""

    hard_text: str
    profession: int
    gender: int


class Review(TypedDict):
    """A row of amazon_reviews_mcauley_1and5: rating 1.0 or 5.0."""

    text: str
    category: int
    rating: float


class News(TypedDict):
    """A row of ag_news: label 0..3."""

    text: str
    label: int


class Code(TypedDict):
    """A row of github-code."""

    code: str
    repo_name: str
    path: str
    language: str
    license: str
    size: int


class Parallel(TypedDict):
    """A row of europarl."""

    translation: dict[str, str]


# SAEBench's class ids (sae_bench.sae_bench_utils.dataset_info).
PROFESSION_ID = {name: i for i, name in enumerate(lexicon.PROFESSIONS)}
CATEGORY_ID = {
    "All_Beauty": 0,
    "Toys_and_Games": 1,
    "Cell_Phones_and_Accessories": 2,
    "Industrial_and_Scientific": 3,
    "Musical_Instruments": 5,
    "Electronics": 6,
    "Office_Products": 11,
    "Grocery_and_Gourmet_Food": 13,
    "Pet_Supplies": 18,
    "Books": 24,
    "CDs_and_Vinyl": 26,
    "Software": 30,
}
NEWS_LABEL = {name: i for i, name in enumerate(lexicon.NEWS)}
CODE_EXTENSION = {"C": "c", "Python": "py", "HTML": "html", "Java": "java", "PHP": "php"}
MIN_CODE_CHARS = 620  # SAEBench skips rows of 534 characters or fewer


# --- splits and slots -----------------------------------------------------------------------------


def split_of(text: str) -> Split:
    """The split that a document belongs to: a property of its text alone."""
    return "heldout" if zlib.crc32(text.encode()) % HELDOUT_ONE_IN == 0 else "train"


def split_of_word(word: str) -> Split:
    """The split of a word in the spelling task, whatever its case or leading space."""
    checksum = zlib.crc32(b"word:" + word.strip().lower().encode())
    return "heldout" if checksum % HELDOUT_WORD_ONE_IN == 0 else "train"


def _rng(genre: str, split: Split, seed: int) -> Random:
    return Random(f"sae-plugins-world/{genre}/{split}/{seed}")


@cache
def _parse(template: str) -> tuple[str, ...]:
    """Literals at even places, slot names at odd ones."""
    return tuple(re.split(r"(?<!\{)\{(\w+)\}(?!\})", template))


def fill(rng: Random, template: str, slots: Mapping[str, str | Sequence[str]]) -> str:
    """Replace every `{slot}` by its value, or by a random one of its values, filled in turn."""
    parts = list(_parse(template))
    for i in range(1, len(parts), 2):
        value = slots[parts[i]]
        parts[i] = fill(rng, value if isinstance(value, str) else rng.choice(value), slots)
    return "".join(parts)


def _sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:]


def _of_split(make: Callable[[], str], split: Split) -> str:
    """Draw documents until one belongs to `split`."""
    while True:
        text = make()
        if split_of(text) == split:
            return text


# --- genres with labels ---------------------------------------------------------------------------


def biographies(
    split: Split, count: int, seed: int = 0, professions: Sequence[int] | None = None
) -> Iterator[Biography]:
    """Row i is of cell i mod (professions x 2 genders), so that all cells are equally full."""
    rng = _rng("biographies", split, seed)
    chosen = list(PROFESSION_ID.values()) if professions is None else list(professions)
    names = list(PROFESSION_ID)
    for i in range(count):
        profession, gender = chosen[(i // 2) % len(chosen)], i % 2
        text = _of_split(partial(_biography, rng, names[profession], gender), split)
        yield {"hard_text": text, "profession": profession, "gender": gender}


_MALE_SLOTS = {"He": "He", "he": "he", "his": "his", "His": "His", "him": "him"}
_FEMALE_SLOTS = {"He": "She", "he": "she", "his": "her", "His": "Her", "him": "her"}


def _biography(rng: Random, profession: str, gender: int) -> str:
    words = lexicon.PROFESSIONS[profession]
    slots: dict[str, Any] = {**lexicon.COMMON, **words}
    slots |= _FEMALE_SLOTS if gender else _MALE_SLOTS
    slots |= {
        "spouse": ["husband", "partner"] if gender else ["wife", "partner"],
        "parent": ["mother", "grandmother"] if gender else ["father", "grandfather"],
    }
    first = rng.choice(lexicon.FEMALE if gender else lexicon.MALE)
    last = rng.choice(lexicon.SURNAMES)
    slots["He"] = [slots["He"], slots["He"], last if rng.random() < 0.5 else first]
    specific = [f"{{He}} {work}." for work in rng.sample(words["work"], rng.choice((1, 2, 2, 3)))]
    specific += rng.sample(lexicon.BIO_FIXED, rng.choice((0, 1, 1)))
    neutral = rng.sample(lexicon.BIO_NEUTRAL, rng.choice((2, 2, 3)))
    body = specific + neutral
    rng.shuffle(body)
    return " ".join(fill(rng, sentence, slots) for sentence in body)


def reviews(
    split: Split, count: int, seed: int = 0, categories: Sequence[int] | None = None
) -> Iterator[Review]:
    """Row i is of cell i mod (categories x 2 ratings)."""
    rng = _rng("reviews", split, seed)
    chosen = list(CATEGORY_ID.values()) if categories is None else list(categories)
    name_of = {number: name for name, number in CATEGORY_ID.items()}
    for i in range(count):
        category, rating = chosen[(i // 2) % len(chosen)], (1.0, 5.0)[i % 2]
        text = _of_split(partial(_review, rng, name_of[category], rating), split)
        yield {"text": text, "category": category, "rating": rating}


def _review(rng: Random, category: str, rating: float) -> str:
    words = lexicon.CATEGORIES[category]
    slots: dict[str, Any] = {**lexicon.COMMON, **words}
    slots["product"] = rng.sample(words["product"], 2)
    opinions = lexicon.REVIEW_GOOD if rating > 3 else lexicon.REVIEW_BAD
    body = rng.sample(opinions, rng.choice((2, 3, 3, 4)))
    body += rng.sample(lexicon.REVIEW_NEUTRAL, rng.choice((0, 1, 2)))
    rng.shuffle(body)
    return " ".join(_sentence_case(fill(rng, sentence, slots)) for sentence in body)


def news(split: Split, count: int, seed: int = 0) -> Iterator[News]:
    """Row i has label i mod 4."""
    rng = _rng("news", split, seed)
    topics = list(lexicon.NEWS)
    for i in range(count):
        slots = {**lexicon.COMMON, **lexicon.NEWS[topics[i % 4]]}
        yield {"text": _of_split(partial(_news, rng, slots), split), "label": i % 4}


def _news(rng: Random, slots: Mapping[str, Sequence[str]]) -> str:
    return fill(rng, rng.choice(lexicon.NEWS_TEMPLATES), slots)


def code(split: Split, count: int, seed: int = 0) -> Iterator[Code]:
    """Row i is of language i mod 5; more than 534 characters each."""
    rng = _rng("code", split, seed)
    languages = list(lexicon.CODE)
    for i in range(count):
        language = languages[i % len(languages)]
        text = _of_split(partial(_program, rng, language), split)
        project = rng.choice(lexicon.CODE_SLOTS["noun"])
        yield {
            "code": text,
            "repo_name": f"{rng.choice(lexicon.SURNAMES).lower()}/{project}",
            "path": f"src/{project}.{CODE_EXTENSION[language]}",
            "language": language,
            "license": "mit",
            "size": len(text),
        }


def _program(rng: Random, language: str) -> str:
    grammar = lexicon.CODE[language]
    slots: dict[str, Any] = {**lexicon.COMMON, **lexicon.CODE_SLOTS}
    # A program speaks of a few nouns, variables and verbs only.
    for slot in ("noun", "Noun", "NOUN", "var", "verb"):
        slots[slot] = rng.sample(lexicon.CODE_SLOTS[slot], 4)
    filled = [_braces(fill(rng, rng.choice(grammar["head"]), slots))]
    order: list[str] = []
    while sum(map(len, filled)) < MIN_CODE_CHARS or len(filled) < 4:
        order = order or rng.sample(grammar["body"], len(grammar["body"]))
        filled.append(_braces(fill(rng, order.pop(), slots)))
    if language == "Java":
        filled.append("}\n")
    if language == "HTML":
        filled.append("</body>\n</html>\n")
    return "\n".join(filled)


def _braces(text: str) -> str:
    return text.replace("{{", "{").replace("}}", "}")


def europarl(pair: str, split: Split, count: int, seed: int = 0) -> Iterator[Parallel]:
    """Parallel sentences of a pair such as `"en-fr"`; a language that the world lacks is empty.

    The split goes by the sentence of the pair's first language that the world has.
    """
    wanted = pair.split("-")
    known = [language for language in wanted if language in lexicon.LANGUAGES]
    if not known:
        raise ValueError(f"pair {pair!r}: the world speaks {', '.join(lexicon.LANGUAGES)}")
    rng = _rng(f"europarl {pair}", split, seed)
    seen = 0
    while seen < count:
        state = rng.getrandbits(64)
        sentence = {language: _speech(Random(state), language) for language in known}
        if split_of(sentence[known[0]]) == split:
            seen += 1
            yield {"translation": {language: sentence.get(language, "") for language in wanted}}


def _speech(rng: Random, language: str) -> str:
    """The same random state gives the same meaning in every language."""
    lists = lexicon.EUROPARL[language]
    chosen = {slot: values[rng.randrange(len(values))] for slot, values in sorted(lists.items())}
    templates = lexicon.EUROPARL_TEMPLATES[language]
    return _sentence_case(fill(rng, templates[rng.randrange(len(templates))], chosen))


def sentences(language: str, split: Split, count: int, seed: int = 0) -> Iterator[Document]:
    """Sentences of one of the five languages."""
    for row in europarl(language, split, count, seed):
        yield {"text": row["translation"][language]}


# --- open text ------------------------------------------------------------------------------------


def stories(split: Split, count: int, seed: int = 0) -> Iterator[Document]:
    """Short narratives."""
    rng = _rng("stories", split, seed)
    for _ in range(count):
        yield {"text": _of_split(partial(_story, rng), split)}


def _story(rng: Random) -> str:
    slots: dict[str, Any] = {**lexicon.COMMON, **lexicon.STORY}
    slots["A"], slots["B"] = rng.choice(lexicon.MALE), rng.choice(lexicon.FEMALE)
    if rng.random() < 0.5:
        slots["A"], slots["B"] = slots["B"], slots["A"]
    for slot in ("animal", "thing", "where"):
        slots[slot] = rng.sample(lexicon.STORY[slot], 3)
    templates = rng.sample(lexicon.STORY_TEMPLATES, rng.randrange(4, 10))
    return " ".join(_sentence_case(fill(rng, template, slots)) for template in templates)


def reference(split: Split, count: int, seed: int = 0) -> Iterator[Document]:
    """Paragraphs of Python's documentation, shuffled; starts again when they are used up."""
    rng = _rng("reference", split, seed)
    paragraphs = [paragraph for paragraph in _prose() if split_of(paragraph) == split]
    order: list[str] = []
    for _ in range(count):
        if not order:
            order = rng.sample(paragraphs, len(paragraphs))
        yield {"text": order.pop()}


@cache
def _prose() -> tuple[str, ...]:
    return tuple(gzip.decompress((DATA / "prose.txt.gz").read_bytes()).decode().split("\0"))


@cache
def words() -> tuple[str, ...]:
    """The world's words, sorted; each is one token, with and without a leading space."""
    return tuple((DATA / "words.txt").read_text(encoding="utf-8").split())


@cache
def _words_by_letter() -> dict[str, list[str]]:
    by_letter: dict[str, list[str]] = {}
    for word in words():
        by_letter.setdefault(word[0], []).append(word)
    return by_letter


def lists(split: Split, count: int, seed: int = 0) -> Iterator[Document]:
    """Alphabetical lists of words that begin alike: all words, held-out spellings or not."""
    rng = _rng("lists", split, seed)
    by_letter = _words_by_letter()
    letters = sorted(by_letter)
    # Half by letter, half by number of words, so that neither rare letters nor common ones starve.
    weights = [1 / len(letters) + len(by_letter[letter]) / len(words()) for letter in letters]

    def make() -> str:
        letter = rng.choices(letters, weights)[0]
        pool = by_letter[letter]
        chosen = sorted(rng.sample(pool, min(len(pool), rng.randrange(10, 40))))
        form = rng.randrange(5)
        if form == 0:
            return f"{letter.upper()}: " + ", ".join(chosen)
        if form == 1:
            return f"Index {letter.upper()}\n" + "\n".join(chosen)
        if form == 2:
            return ", ".join(chosen) + "."
        if form == 3:
            return "\n".join(chosen)
        return f"From {chosen[0]} to {chosen[-1]}: {' '.join(chosen)}"

    for _ in range(count):
        yield {"text": _of_split(make, split)}


def spelling_line(word: str) -> str:
    """SAEBench's prompt with its answer: `"cat"` -> `"cat has the first letter: C"`."""
    return SPELLING_TEMPLATE.format(word=word) + " " + word.strip()[0].upper()


def spelling_words(split: Split) -> tuple[str, ...]:
    """The words whose first letter is asked in `split`."""
    return tuple(word for word in words() if split_of_word(word) == split)


def spelling(split: Split, count: int, seed: int = 0) -> Iterator[Document]:
    """Prompts as SAEBench's absorption makes them: ten examples, then the word, one line each."""
    rng = _rng("spelling", split, seed)
    pool = spelling_words(split)
    for _ in range(count):
        chosen = rng.sample(pool, EXAMPLES_PER_PROMPT + 1)
        lines = [spelling_line(rng.choice(("", " ")) + word) for word in chosen]
        yield {"text": "\n" + "\n".join(lines)}


# --- the mix --------------------------------------------------------------------------------------


def _speeches(split: Split, count: int, seed: int) -> Iterator[str]:
    """Documents of three sentences, the five languages in turn."""
    streams = [sentences(language, split, 3 * count, seed) for language in lexicon.LANGUAGES]
    for i in range(count):
        yield " ".join(row["text"] for row in islice(streams[i % len(streams)], 3))


def documents(genre: str, split: Split, count: int, seed: int = 0) -> Iterator[str]:
    """The plain text of `count` documents of one of `GENRES`."""
    if genre == "europarl":
        yield from _speeches(split, count, seed)
        return
    generators: dict[str, Callable[..., Iterator[Any]]] = {
        "spelling": spelling, "biographies": biographies, "reviews": reviews, "news": news,
        "code": code, "stories": stories, "reference": reference, "lists": lists,
    }  # fmt: skip
    column = {"biographies": "hard_text", "code": "code"}.get(genre, "text")
    for row in generators[genre](split, count, seed):
        yield row[column]


# The shares of the mix, in documents.
GENRES: dict[str, int] = {
    "spelling": 60, "biographies": 140, "reviews": 150, "news": 150, "code": 60, "europarl": 120,
    "stories": 100, "reference": 120, "lists": 220,
}  # fmt: skip
SIZES: dict[Split, int] = {"train": 24_000, "heldout": 4_000}


def mix(split: Split, count: int | None = None, seed: int = 0) -> list[tuple[str, str]]:
    """`count` documents of all genres in shuffled order, as (genre, text)."""
    count = SIZES[split] if count is None else count
    total = sum(GENRES.values())
    rows = [
        (genre, text)
        for genre, share in GENRES.items()
        for text in documents(genre, split, count * share // total, seed)
    ]
    _rng("mix", split, seed).shuffle(rows)
    return rows
