"""Builds the world's tokenizer and model from its text into `data/`.

    python examples/embedded-world/train.py --minutes 45 --work_path world-build

Half of each step's tokens are the mix of all genres; the other half are alphabetical lists and, at
every fourth step, spelling prompts (loss on the answers alone). The halves run on one core each.
Each pass makes its own text, so that no document but the reference prose is seen twice. Nothing
is planted in the weights: the model learns to spell from prompts about the train words, and how
held-out words begin from the lists.

The schedule follows the clock, so that the run ends when `--minutes` are over; a second run gives
other weights of the same quality. Checkpoints go to `--work_path`, never into the package; run the
same command again to go on. `--export_only` writes `data/` from the last checkpoint.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import platform
import string
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import measure
import tokenizer
import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from sae_plugins.world import path, text
from sae_plugins.world.model import CONTEXT

SEED = 0
TEXT_BATCH, TEXT_TOKENS = 4, CONTEXT  # sequences x tokens
SPELLING_BATCH, SPELLING_TOKENS = 8, 128
SPELLING_EVERY, SPELLING_NOISE = 4, 0.3  # else lists; noise keeps the answer from single words
WARMUP_STEPS, WEIGHT_DECAY, CLIP = 100, 0.1, 1.0
CHECKPOINT_EVERY_S = 240.0
AVERAGE_FROM = 0.75  # the model is the mean of the checkpoints after this share of the time
HELDOUT_DOCUMENTS = 1_000
LISTS, FIRST_LIST_SEED = 20_000, 1_000_000  # of the list pages; the mix has seeds from 0


def new_model(vocabulary: int, tokenizer: Any) -> Any:
    """An untrained `Gemma2ForCausalLM` of about three million parameters."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    shape: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 48,
        "query_pre_attn_scalar": 48,
        "sliding_window": 64,
        "max_position_embeddings": CONTEXT,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "attn_implementation": "eager",  # the only one with softcaps
    }
    return Gemma2ForCausalLM(Gemma2Config(**shape))


def keep_memory() -> None:
    """Have glibc keep freed memory: large activations would be mapped again at every step."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_mmap_max = -1, -4
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def mixed_text(number: int) -> list[str]:
    """The documents of one pass over the text."""
    return [document for _, document in text.mix("train", seed=number)]


def list_pages(number: int) -> list[str]:
    """The documents of one pass over the alphabetical lists that go beside the spelling prompts."""
    return list(text.documents("lists", "train", LISTS, seed=FIRST_LIST_SEED + number))


def windows(
    tok: Any, documents: Callable[[int], list[str]], first_pass: int, rows: int, tokens: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """(pass, ids (rows, tokens + 1)): joined documents, cut; `<bos>` heads each row."""
    number = first_pass
    while True:
        stream = torch.tensor([i for ids in tok(documents(number))["input_ids"] for i in ids])
        count = len(stream) // tokens
        cut = stream[: count * tokens].view(count, tokens)
        cut = torch.cat([torch.full((count, 1), tok.bos_token_id), cut], dim=1)
        order = list(range(count))
        Random(f"text order {number}").shuffle(order)
        for start in range(0, count - rows + 1, rows):
            yield number, cut[order[start : start + rows]]
        number += 1


def spelling_batches(tok: Any, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(ids (SPELLING_BATCH, SPELLING_TOKENS), targets of the same shape, -100 but at answers).

    A word is drawn evenly from all tokens, or first its letter evenly: half and half.
    """
    rng = Random(f"spelling {seed}")
    tokens = [
        (number, token.strip()[0].upper())
        for token, number in tokenizer.alphabetic_tokens(tok).items()
        if text.split_of_word(token) == "train"
    ]
    by_letter = [[pair for pair in tokens if pair[1] == x] for x in string.ascii_uppercase]
    answer_of = {x: tok.convert_tokens_to_ids(tokenizer.SPACE + x) for x in string.ascii_uppercase}
    newline = tok("\n", add_special_tokens=False)["input_ids"]
    middle = tok(text.SPELLING_TEMPLATE.format(word=""), add_special_tokens=False)["input_ids"]
    line = len(newline) + 1 + len(middle) + 1
    while True:
        ids = torch.full((SPELLING_BATCH, SPELLING_TOKENS + line), tok.pad_token_id)
        target = torch.full_like(ids, -100)
        ids[:, 0] = tok.bos_token_id
        for row in range(SPELLING_BATCH):
            for start in range(1, SPELLING_TOKENS + 1, line):
                word, letter = rng.choice(tokens if rng.random() < 0.5 else rng.choice(by_letter))
                answer = answer_of[letter]
                ids[row, start : start + line] = torch.tensor([*newline, word, *middle, answer])
                target[row, start + line - 2] = answer
        yield ids[:, :SPELLING_TOKENS], target[:, :SPELLING_TOKENS]


def loss_at(lm: Any, ids: torch.Tensor, target: torch.Tensor, noise: float = 0.0) -> torch.Tensor:
    """Mean cross-entropy (nats) at the positions whose target is not -100; logits only there.

    `noise` is added to the embeddings, as a share of their standard deviation.
    """
    embedded = lm.model.embed_tokens(ids)
    if noise:
        embedded = embedded + noise * embedded.detach().std() * torch.randn_like(embedded)
    hidden = lm.model(inputs_embeds=embedded)[0][target != -100]
    cap = lm.config.final_logit_softcapping
    logits = cap * torch.tanh(lm.lm_head(hidden) / cap)
    return cross_entropy(logits, target[target != -100])


def gradients(
    lm: Any, ids: torch.Tensor, target: torch.Tensor, noise: float
) -> tuple[float, tuple[torch.Tensor, ...]]:
    """The loss, and its gradient for each parameter; on one core: the two tasks run at once."""
    torch.set_num_threads(1)
    loss = loss_at(lm, ids, target, noise)
    return loss.item(), torch.autograd.grad(loss, list(lm.parameters()))


def optimizer_of(lm: Any) -> torch.optim.AdamW:
    """AdamW; norms' weights do not decay."""
    decayed = [p for p in lm.parameters() if p.ndim > 1]
    others = [p for p in lm.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95))


def train(tok: Any, work: Path, minutes: float, learning_rate: float) -> None:
    """Train for `minutes` of wall time in all, from the checkpoint in `work` where there is one."""
    torch.manual_seed(SEED)
    lm = new_model(len(tok), tok)
    optimizer = optimizer_of(lm)
    state: dict[str, Any] = {"step": 0, "seconds": 0.0, "tokens": 0, "pass": 0, "lists_pass": 0}
    checkpoint = work / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        lm.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        state |= saved["state"]
        state["pass"] += 1
        state["lists_pass"] += 1

    def save() -> None:
        content = {"model": lm.state_dict(), "optimizer": optimizer.state_dict(), "state": state}
        torch.save(content, checkpoint.with_suffix(".tmp"))
        os.replace(checkpoint.with_suffix(".tmp"), checkpoint)
        if state["seconds"] > AVERAGE_FROM * minutes * 60:
            torch.save(lm.state_dict(), work / f"weights-{state['step']}.pt")

    workers = ThreadPoolExecutor(2)
    texts = windows(tok, mixed_text, state["pass"], TEXT_BATCH, TEXT_TOKENS)
    lists = windows(tok, list_pages, state["lists_pass"], SPELLING_BATCH, SPELLING_TOKENS)
    spellings = spelling_batches(tok, state["pass"])
    start, before, last_save = time.monotonic(), state["seconds"], time.monotonic()
    bar = tqdm(total=round(minutes * 60), initial=round(before), unit="s", mininterval=10)
    average = {"text": math.nan, "spelling": math.nan, "lists": math.nan}
    while state["seconds"] < minutes * 60:
        progress = state["seconds"] / (minutes * 60)
        warm = min(1.0, (state["step"] + 1) / WARMUP_STEPS)
        rate = learning_rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        state["pass"], window = next(texts)
        jobs = {"text": (window[:, :-1], window[:, 1:], 0.0)}
        if state["step"] % SPELLING_EVERY:
            state["lists_pass"], window = next(lists)
            jobs["lists"] = (window[:, :-1], window[:, 1:], 0.0)
        else:
            jobs["spelling"] = (*next(spellings), SPELLING_NOISE)
        done = list(workers.map(lambda job: gradients(lm, *job), jobs.values()))
        for name, (value, _) in zip(jobs, done, strict=True):
            old = average[name]
            average[name] = value if math.isnan(old) else 0.98 * old + 0.02 * value
            state["tokens"] += jobs[name][0].numel()
        for parameter, *parts in zip(lm.parameters(), *(grads for _, grads in done), strict=True):
            parameter.grad = torch.stack(parts).sum(0)
        torch.nn.utils.clip_grad_norm_(lm.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        state["step"] += 1
        now = time.monotonic()
        state["seconds"] = before + now - start
        losses = ", ".join(f"{name} {value:.3f}" for name, value in average.items())
        bar.set_postfix_str(f"step {state['step']}, {losses}", refresh=False)
        bar.update(state["seconds"] - bar.n)
        if now - last_save > CHECKPOINT_EVERY_S:
            last_save = now
            save()
    bar.close()
    workers.shutdown()
    save()


def averaged_model(tok: Any, work: Path) -> Any:
    """The model whose weights are the mean of those kept late in training: it spells better."""
    files = sorted(work.glob("weights-*.pt")) or [work / "checkpoint.pt"]
    kept = [torch.load(file, weights_only=True) for file in files]
    kept = [weights.get("model", weights) for weights in kept]
    lm = new_model(len(tok), tok)
    lm.load_state_dict({name: sum(w[name] for w in kept) / len(kept) for name in kept[0]})
    return lm.eval()


def report(lm: Any, tok: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Held-out figures; the baselines are fitted on all the text that the model has seen."""
    lm.eval()
    baselines = measure.Bigrams(len(tok))
    for number in range(state["pass"] + 1):
        baselines.fit(tok(mixed_text(number))["input_ids"])
    for number in range(state["lists_pass"] + 1):
        baselines.fit(tok(list_pages(number))["input_ids"])
    heldout = text.mix("heldout", HELDOUT_DOCUMENTS)
    words = {"heldout": text.spelling_words("heldout"), "train": text.spelling_words("train")[::5]}
    accuracy = {
        split: measure.spelling_accuracy(lm, tok, [space + w for w in some for space in ("", " ")])
        for split, some in words.items()
    }
    return {
        "parameters": sum(p.numel() for p in lm.parameters()),
        "steps": state["step"],
        "tokens": state["tokens"],
        "passes_over_text": state["pass"] + 1,
        "minutes": round(state["seconds"] / 60, 1),
        "words": {split: len(some) for split, some in words.items()},
        "spelling_accuracy": accuracy,
        "cross_entropy": measure.cross_entropies(lm, tok, baselines, heldout),
        "seed": SEED,
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
    }


def show(figures: dict[str, Any]) -> str:
    """The report as a table."""
    lines = ["held-out nats/token    model  bigram unigram   tokens"]
    for genre, row in figures["cross_entropy"].items():
        columns = (
            f"{row['model']:8.3f}{row['bigram']:8.3f}{row['unigram']:8.3f}{row['tokens']:9.0f}"
        )
        lines.append(f"{genre:20}{columns}")
    for split, accuracy in figures["spelling_accuracy"].items():
        lines.append(f"spelling accuracy, {figures['words'][split]} {split} words: {accuracy:.3f}")
    lines.append(
        "{parameters} parameters, {steps} steps, {tokens} tokens, {minutes} min".format(**figures)
    )
    return "\n".join(lines)


def export(lm: Any, tok: Any, figures: dict[str, Any], work: Path) -> None:
    """Write model, tokenizer and report to `work/export`, then move each file into `data/`."""
    staging = work / "export"
    staging.mkdir(exist_ok=True)
    lm.half().save_pretrained(str(staging))
    lm.float()
    tokenizer.save(tok, staging)
    (staging / "report.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    for file in sorted(staging.iterdir()):
        target = path() / file.name
        beside = target.with_name(f".{file.name}.part")  # on the same disk: replace is then atomic
        beside.write_bytes(file.read_bytes())
        os.replace(beside, target)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--work_path", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--minutes", type=float, default=55.0, help="training time in all")
    parser.add_argument("--learning_rate", type=float, default=2e-3, help="its peak")
    parser.add_argument(
        "--export_only", action="store_true", help="write data/ from the checkpoint"
    )
    options = parser.parse_args(arguments)
    keep_memory()
    work: Path = options.work_path
    work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    folder = work / "tokenizer"
    if not folder.exists():
        genres = ("spelling", "lists")
        tokenizer.build([d for genre, d in text.mix("train") if genre not in genres], folder)
    from transformers import AutoTokenizer

    tok = AutoTokenizer.from_pretrained(str(folder))
    print(f"tokenizer: {len(tok)} tokens, {time.monotonic() - started:.0f} s", flush=True)
    if not options.export_only:
        train(tok, work, options.minutes, options.learning_rate)
    state = torch.load(work / "checkpoint.pt", weights_only=True)["state"]
    lm = averaged_model(tok, work)
    figures = report(lm, tok, state)
    export(lm, tok, figures, work)
    print(show(figures))


if __name__ == "__main__":
    main(sys.argv[1:])
