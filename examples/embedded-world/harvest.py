"""Freezes what the world takes from elsewhere: `prose.txt.gz` and `words.txt` in `data/`.

    python examples/embedded-world/harvest.py

Prose comes from the documentation that Python carries (PSF licence); it differs between Python
versions, which is why it is frozen. Words are the most frequent lower-case words of the world's own
text, taken letter by letter so that every letter has enough of them. `train.py` starts from these
files: run this once only, since new words mean a new tokenizer and a new model.
"""

from __future__ import annotations

import ast
import gzip
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from sae_plugins.world import lexicon, text

PROSE_BYTES = 1_600_000
WORDS_PER_LETTER = 92
WORDS_AT_LEAST = 2_000


def _paragraphs(document: str) -> Iterator[str]:
    """Flowing paragraphs (not code, tables or headings), each on one line."""
    for block in re.split(r"\n\s*\n", document):
        paragraph = " ".join(block.split())
        letters = sum(ch.isalpha() or ch == " " for ch in paragraph)
        if (
            120 <= len(paragraph) <= 900
            and letters / len(paragraph) > 0.85
            and ">>>" not in paragraph
            and paragraph.isascii()
            and paragraph[0].isupper()
            and paragraph[-1] in ".!?)"
        ):
            yield paragraph


def prose() -> list[str]:
    """Paragraphs of the language reference first, then of the standard library's docstrings."""
    from pydoc_data import topics

    found: dict[str, None] = {}
    for name in sorted(topics.topics):
        found.update(dict.fromkeys(_paragraphs(topics.topics[name])))
    library = Path(sysconfig.get_paths()["stdlib"])
    size = sum(map(len, found))
    for path in sorted(library.rglob("*.py")):
        if {"test", "tests", "site-packages", "idle_test"} & set(path.relative_to(library).parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                for paragraph in _paragraphs(ast.get_docstring(node) or ""):
                    if paragraph not in found and size < PROSE_BYTES:
                        found[paragraph] = None
                        size += len(paragraph)
    return list(found)


def frequent_words(documents: list[str]) -> list[str]:
    """Per letter the most frequent words, topped up with `lexicon.RARE_WORDS`; sorted."""
    counts: Counter[str] = Counter()
    for document in documents:
        counts.update(re.findall(r"(?<![A-Za-z])[a-z]{2,12}(?![A-Za-z])", document))
    counts.update(lexicon.RARE_WORDS)
    chosen: list[str] = []
    for letter in "abcdefghijklmnopqrstuvwxyz":
        ranked = sorted(
            (word for word in counts if word[0] == letter),
            key=lambda word: (word not in lexicon.RARE_WORDS, -counts[word], word),
        )
        chosen += ranked[:WORDS_PER_LETTER]
    return sorted(chosen)


def main() -> None:
    """Write both files."""
    text.DATA.mkdir(exist_ok=True)
    paragraphs = prose()
    packed = gzip.compress("\0".join(paragraphs).encode(), mtime=0)
    (text.DATA / "prose.txt.gz").write_bytes(packed)
    print(f"prose: {len(paragraphs)} paragraphs, {len(packed)} bytes compressed")
    genres = [
        genre for genre in text.GENRES if genre not in ("spelling", "lists", "europarl", "code")
    ]
    corpus = [row for genre in genres for row in text.documents(genre, "train", 4_000)]
    chosen = frequent_words([*corpus, *paragraphs])
    if len(chosen) < WORDS_AT_LEAST:
        raise SystemExit(f"only {len(chosen)} words")
    (text.DATA / "words.txt").write_text("\n".join(chosen) + "\n", encoding="utf-8")
    print(f"words: {len(chosen)};", dict(Counter(word[0] for word in chosen)))


if __name__ == "__main__":
    main()
