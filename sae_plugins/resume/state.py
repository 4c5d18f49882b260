"""State as a tree of plain values and tensors, in one file that is whole or refused.

The file is a safetensors file: the tensors by their path in the tree, and in its metadata the tree
itself, as JSON, with a digest of everything. Nothing is pickled, so reading runs no code from it.
"""

from __future__ import annotations

import json
from bisect import bisect
from collections import OrderedDict, deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae_plugins.base.errors import StateError
from sae_plugins.base.files import whole
from sae_plugins.base.fingerprints import digest_of

_ALIGNMENT = 64
"""Bytes; torch's own allocations start at multiples of it."""
_KEYS = (bool, int, float, str, tuple, type(None))
"""Tensors, say, are found in a dict by their identity, which a file does not keep."""
_DEPTH = 100
"""Levels in a tree; what is deeper contains itself."""


def write_state(path: Path, tree: Mapping[str, Any]) -> None:
    """Write a tree; the file appears only when it is whole.

    The tree may hold None, numbers, strings, lists, tuples, deques, dicts, tensors, numpy arrays,
    torch generators, and objects that have `state_dict` and `load_state_dict`.

    Raises:
        TypeError: something else is in it, or it contains itself; names the place.
        OSError: the disk takes nothing more; an older file of that name stays as it was.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_Encoder(tensors).encode(tree, ""))
    metadata = {"tree": text, "digest": digest_of(text, tensors)}
    try:
        with whole(path) as partial:
            save_file(tensors, partial, metadata)
    except KeyError as error:  # a dtype that safetensors does not know
        name = next(name for name, tensor in tensors.items() if tensor.dtype in error.args)
        raise TypeError(f"{name} has {error}, which cannot be saved") from error
    except SafetensorError as error:  # it has the operating system's reason in its text only
        raise OSError(str(error)) from error


def tensors_of(tree: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a tree by their place, as they would be written."""
    tensors: dict[str, Tensor] = {}
    _Encoder(tensors).encode(tree, "")
    return tensors


def check_state(tree: Mapping[str, Any]) -> None:
    """Raise the TypeError that writing such a tree would raise; does nothing with its tensors."""
    _Encoder(None).encode(tree, "")


def read_state(path: Path) -> dict[str, Any]:
    """The tree that was written, with its tensors on the devices where they were.

    Raises:
        StateError: the file is missing, damaged, of something else, or of another device.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise StateError(f"{path} cannot be read: {error}") from error
    if not {"tree", "digest"} <= metadata.keys():
        raise StateError(f"{path} is no checkpoint: it was not written by sae-plugins")
    if digest_of(metadata["tree"], tensors) != metadata["digest"]:
        raise StateError(f"{path} is damaged: its contents do not match its digest")
    try:
        tree = _Decoder(tensors).decode(json.loads(metadata["tree"]))
    except torch.OutOfMemoryError:
        raise  # which says nothing about the file
    except (RuntimeError, AssertionError) as error:  # the latter where torch knows no GPUs at all
        raise StateError(f"{path} was made on a device that is not here: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise StateError(f"{path} is of another version of sae-plugins: {error!r}") from error
    if not isinstance(tree, dict):
        raise StateError(f"{path} is of another version of sae-plugins: it holds no names")
    return tree


@torch.no_grad()
def restored(present: Any, saved: Any) -> Any:
    """What a saved value stands for, given the value that is in its place now.

    Tensors, generators and objects with `load_state_dict` keep their identity and take over the
    saved contents, so that everybody who shares them sees it; other values are replaced.
    """
    if isinstance(present, Tensor) and isinstance(saved, Tensor):
        if _kind(present) == _kind(saved):
            return present.copy_(saved)
    elif isinstance(present, torch.Generator) and isinstance(saved, torch.Generator):
        present.set_state(saved.get_state())
        return present
    elif hasattr(present, "load_state_dict") and isinstance(saved, dict):
        present.load_state_dict(saved)
        return present
    elif isinstance(saved, _OfObject):
        raise ValueError("an object that was saved is not there: make it in `attached`")
    elif isinstance(present, dict) and isinstance(saved, dict):
        return {name: restored(present.get(name), value) for name, value in saved.items()}
    elif type(present) is type(saved) in (list, tuple) and len(present) == len(saved):
        return type(saved)(map(restored, present, saved))
    return saved


def changes(saved: Any, present: Any, name: str = "") -> list[str]:
    """Where two trees of JSON values differ, a line each."""
    if isinstance(saved, dict) and isinstance(present, dict):
        names = dict.fromkeys([*saved, *present])
        return [
            line
            for key in names
            for line in changes(saved.get(key), present.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if saved == present else [f"{name}: {saved!r} in the checkpoint, {present!r} now"]


def check_fits(saved: Any, present: Any, name: str = "") -> None:
    """Refuse a saved tree that lacks names of the present one, or has a tensor of another shape.

    Raises:
        ValueError: says where.
    """
    if isinstance(present, Tensor):
        if not isinstance(saved, Tensor) or saved.shape != present.shape:
            found = list(saved.shape) if isinstance(saved, Tensor) else type(saved).__name__
            raise ValueError(f"{name} is {found} and must be {list(present.shape)}")
    elif isinstance(present, dict):
        if not isinstance(saved, dict) or not present.keys() <= saved.keys():
            raise ValueError(f"something is missing in {name or 'it'}")
        for key, value in present.items():
            check_fits(saved[key], value, f"{name}/{key}".strip("/"))


class _OfObject(dict[str, Any]):
    """The state of an object, which must be there to take it over."""


class _Encoder:
    """Turns a tree into JSON, with its tensors aside; a tensor that is shared is kept once."""

    def __init__(self, tensors: dict[str, Tensor] | None) -> None:
        self.tensors = tensors
        self.known: dict[Any, tuple[str, Tensor]] = {}
        self.written: list[tuple[int, int]] = []  # in their order in memory

    def encode(self, value: Any, path: str) -> Any:
        if path.count("/") > _DEPTH:
            raise TypeError(f"{path[1:_DEPTH]}... contains itself, which cannot be saved")
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta:
            if self.tensors is None:
                return None
            value = value.detach().resolve_conj().resolve_neg()
            order = _order(value)
            name = self.keep(value.permute(order), path)
            past = value.data_ptr() % _ALIGNMENT // value.itemsize
            return {"tensor": name, "device": str(value.device), "order": order, "past": past}
        if type(value) is np.ndarray and value.dtype.kind in "biufc" and value.dtype.isnative:
            if not value.flags.writeable or min(value.strides, default=0) < 0:
                value = value.copy()  # torch has no such tensors
            return {"array": self.encode(torch.from_numpy(value), path)}
        if isinstance(value, np.generic):
            return {"scalar": self.encode(np.asarray(value), path)}
        if isinstance(value, torch.Generator):
            if self.tensors is None:
                return None
            return {"generator": self.keep(value.get_state(), path), "device": str(value.device)}
        if isinstance(value, _OfObject):
            return {"object": self.encode(dict(value), path)}
        if hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
            return {"object": self.encode(value.state_dict(), path)}
        if type(value) in (dict, OrderedDict):
            if all(type(key) is str for key in value):
                return {"dict": {key: self.encode(value[key], f"{path}/{key}") for key in value}}
            if all(isinstance(key, _KEYS) for key in value):
                return {"pairs": self.encode([list(item) for item in value.items()], path)}
        if type(value) in (list, tuple, deque):
            items = [self.encode(item, f"{path}/{place}") for place, item in enumerate(value)]
            if isinstance(value, deque):
                return {"deque": items, "maxlen": value.maxlen}
            return items if isinstance(value, list) else {"tuple": items}
        what = value.layout if isinstance(value, Tensor) else getattr(value, "dtype", "")
        what = f"{type(value).__name__} {what}".strip()
        raise TypeError(f"{path.strip('/')} is {what}, which cannot be saved")

    def keep(self, tensor: Tensor, path: str) -> str:
        assert self.tensors is not None
        memory = tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.device
        key = (*memory, tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else path
        if key not in self.known:
            name = path.strip("/")
            while name in self.tensors or name == "__metadata__":  # "a/b" may be one key or two
                name += "'"
            self.tensors[name] = self.apart(tensor.cpu().contiguous())
            self.known[key] = name, tensor  # which keeps the memory from being used again
        return self.known[key][0]

    def apart(self, tensor: Tensor) -> Tensor:
        """A copy if it overlaps one that is being written, which safetensors refuses."""
        start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        place = bisect(self.written, (start, end))
        around = self.written[max(0, place - 1) : place + 1]
        overlaps = any(start < stop and begin < end for begin, stop in around)
        if overlaps or not tensor.numel():  # an empty one lies anywhere, with any strides
            return tensor.clone(memory_format=torch.contiguous_format)
        self.written.insert(place, (start, end))
        return tensor


class _Decoder:
    """Turns JSON and tensors back into the tree; a tensor that was shared is shared."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self.placed: dict[str, Tensor] = {}

    def decode(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        (kind, content), *_ = value.items()
        if kind == "tensor":
            if content not in self.placed:
                self.placed[content] = self.place(content, value["device"], value["past"])
            order = value["order"]
            return self.placed[content].permute(sorted(range(len(order)), key=order.__getitem__))
        if kind == "array":
            return self.decode(content).numpy()
        if kind == "scalar":
            return self.decode(content)[()]
        if kind == "object":
            return _OfObject(self.decode(content))
        if kind == "generator":
            generator = torch.Generator(value["device"])
            return generator.set_state(self.tensors[content])
        if kind == "dict":
            return {key: self.decode(item) for key, item in content.items()}
        if kind == "pairs":
            return dict(map(self.decode, content))
        if kind == "tuple":
            return tuple(self.decode(content))
        if kind == "deque":
            return deque(self.decode(content), value["maxlen"])
        raise ValueError(f"a value of the kind {kind!r}")

    def place(self, name: str, device: str, past: int) -> Tensor:
        """A copy that lies in memory as the original did: order of dimensions and alignment.

        Sums add, and matrix products block, in an order that depends on both, so that a resumed run
        would not be bitwise the same.
        """
        packed = self.tensors[name]
        memory = torch.empty(past + packed.numel(), dtype=packed.dtype, device=device)
        return memory[past:].view(packed.shape).copy_(packed)


def _order(tensor: Tensor) -> list[int]:
    """Its dimensions, the outermost in memory first."""
    return sorted(range(tensor.ndim), key=tensor.stride, reverse=True)


def _kind(tensor: Tensor) -> Any:
    """What no operation in place can change."""
    order = [dimension for dimension in _order(tensor) if tensor.shape[dimension] > 1]
    return tensor.shape, tensor.dtype, tensor.device, order
