"""The world's tokenizer: byte-level BPE in which every alphabetic token stands for itself."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sae_plugins.world import text

VOCABULARY = 5_120
SPECIAL = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}
# A line break alone; words, numbers and marks with the space before them; indentation.
PRE_TOKEN = r"\n| ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|[^\S\n]+(?!\S)|[^\S\n]+"
SPACE = "Ġ"  # how byte-level BPE writes a leading space


def build(documents: Iterable[str], folder: Path) -> Any:
    """Train on `documents`, save to `folder`, return the tokenizer.

    The world's words and the letters are tokens from the start, with and without a leading space;
    BPE learns the rest of the vocabulary from the rest of the text. `ignore_merges` takes a
    pre-token that is in the vocabulary as it is: no alphabetic token is ever cut into smaller ones.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    given = [space + w for w in text.words() for space in ("", SPACE)]
    given += [SPACE + letter for letter in string.ascii_letters]
    known = frozenset(text.words())

    def rest(document: str) -> str:
        return re.sub(r" ?\b[A-Za-z]+\b", lambda m: "" if m[0].strip() in known else m[0], document)

    pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKEN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL) - len(given),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    learner.train_from_iterator(map(rest, documents), trainer)

    learnt = json.loads(learner.to_str())["model"]
    ranked = sorted(learnt["vocab"], key=learnt["vocab"].__getitem__)
    tokens = list(dict.fromkeys([*SPECIAL.values(), *alphabet, *given, *ranked]))
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=[
                tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learnt["merges"]
            ],
            ignore_merges=True,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    bos = SPECIAL["bos_token"]
    tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos} $B",
        special_tokens=[(bos, tokens.index(bos))],
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL.values()])
    wrap: Any = PreTrainedTokenizerFast  # untyped
    fast = wrap(tokenizer_object=tokenizer, padding_side="right", **SPECIAL)
    save(fast, folder)
    return fast


def save(tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer's files, without the traces of this machine and of this transformers."""
    tokenizer.save_pretrained(str(folder))
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    for key in ("backend", "is_local", "local_files_only"):
        config.pop(key, None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def alphabetic_tokens(tokenizer: Any) -> dict[str, int]:
    """Tokens of letters only, with or without one leading space: {string: id}, by id."""
    found = {}
    for token, number in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        string_ = token.replace(SPACE, " ", 1)
        if re.fullmatch(r" ?[A-Za-z]+", string_):
            found[string_] = number
    return found
