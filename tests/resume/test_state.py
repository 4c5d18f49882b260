"""A tree that is written and read is the same tree, and a file is whole or refused."""

from __future__ import annotations

import ast
import inspect
import itertools
import math
import multiprocessing
import pickle
import resource
import zipfile
from collections import Counter, OrderedDict, deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sae_plugins import Checkpoints, plugins
from sae_plugins.framework.plugin import Stateful
from sae_plugins.resume import checkpoints, files, state, stream
from sae_plugins.resume.state import StateError, changes, read_state, restored, write_state
from sae_plugins.testing import advance, tiny_batches, tiny_sae, tiny_trainer

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
]
ARRAYS = ["f8", "f4", "f2", "c8", "?", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1"]


class Counted(Stateful):
    """An object with a state of its own."""

    transient = ("owner",)

    def __init__(self, value: Any = None) -> None:
        self.value = value
        self.owner = self


# -- trees -----------------------------------------------------------------------------------------


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Random bits in any dtype, dense in memory, in any order of dimensions, at any alignment."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    size, past = math.prod(shape), draw(st.integers(0, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    end = 2 if dtype is torch.bool else 256
    bits = torch.randint(end, ((past + size) * dtype.itemsize,), generator=generator)
    order = draw(st.permutations(range(len(shape))))
    return bits.to(torch.uint8).view(dtype)[past:].view(shape).permute(order)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    """Arrays in C, in Fortran and in backward order, with and without a right to write."""
    array = np.arange(12).astype(draw(st.sampled_from(ARRAYS)))
    array = array.reshape(draw(st.sampled_from([(12,), (3, 4), (2, 1, 6)])))
    array = draw(st.sampled_from([array, array.T, array[::-1], array[..., :0], array[..., 1]]))
    if draw(st.booleans()):
        array.flags.writeable = False
    return array


GENERATORS = st.integers(0, 2**63 - 1).map(lambda seed: torch.Generator().manual_seed(seed))
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**4000, -(2**4000), 2**63, 2**128 - 1]),
    st.floats(),
    st.text(max_size=8),
)
KEYS = st.text(max_size=4) | st.sampled_from(
    ["", "/", "a/b", "a", "__metadata__", "dict", "tensor"]
)
ODD_KEYS = st.one_of(
    st.none(), st.booleans(), st.integers(), KEYS, st.tuples(st.integers(), st.text(max_size=2))
)
VALUES = st.recursive(
    st.one_of(PLAIN, tensors(), arrays(), GENERATORS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.builds(deque, st.lists(inner, max_size=4), st.none() | st.integers(0, 5)),
        st.dictionaries(KEYS, inner, max_size=4),
        st.dictionaries(KEYS, inner, max_size=4).map(OrderedDict),
        st.dictionaries(ODD_KEYS, inner, max_size=4),
        inner.map(Counted),
    ),
    max_leaves=12,
)
TREES = st.dictionaries(KEYS, VALUES, max_size=4)


def strides(tensor: Tensor) -> list[int]:
    """Of dimensions longer than 1; the others' mean nothing."""
    return [s for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1]


def bits(value: Tensor) -> bytes:
    return bytes(value.contiguous().flatten().view(torch.uint8).tolist())


def assert_same(saved: Any, read: Any, path: str = "") -> None:
    """Equal in every bit, every type, and the place in memory of what is computed with."""
    if isinstance(saved, Counted):
        saved = saved.state_dict()
    if isinstance(saved, OrderedDict):
        saved = dict(saved)
    assert type(saved) is type(read) or isinstance(saved, dict), path
    if isinstance(saved, dict):
        assert list(saved) == list(read), path
        assert list(map(type, saved)) == list(map(type, read)), path
        for key in saved:
            assert_same(saved[key], read[key], f"{path}/{key}")
    elif isinstance(saved, (list, tuple, deque)):
        assert len(saved) == len(read), path
        assert getattr(saved, "maxlen", None) == getattr(read, "maxlen", None), path
        for place, (one, other) in enumerate(zip(saved, read, strict=True)):
            assert_same(one, other, f"{path}/{place}")
    elif isinstance(saved, Tensor):
        assert (saved.dtype, saved.shape, saved.device) == (read.dtype, read.shape, read.device)
        assert bits(saved) == bits(read), path
        if saved.numel():
            assert strides(saved) == strides(read), path
            assert saved.data_ptr() % 64 == read.data_ptr() % 64, path
    elif isinstance(saved, np.ndarray):
        assert (saved.dtype, saved.shape) == (read.dtype, read.shape), path
        assert saved.tobytes() == read.tobytes(), path
        assert read.flags.writeable
    elif isinstance(saved, torch.Generator):
        assert torch.equal(saved.get_state(), read.get_state()), path
    elif isinstance(saved, float):
        assert saved.hex() == read.hex(), path
    else:
        assert saved == read, path


def written_and_read(folder: Path, tree: dict[str, Any]) -> dict[str, Any]:
    path = folder / "state.safetensors"
    write_state(path, tree)
    return read_state(path)


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(tree=TREES)
def test_a_tree_comes_back_as_it_was(tmp_path: Path, tree: dict[str, Any]) -> None:
    assert_same(tree, written_and_read(tmp_path, tree))
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


@pytest.mark.slow
@settings(
    max_examples=3000,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(tree=TREES)
def test_many_trees_come_back_as_they_were(tmp_path: Path, tree: dict[str, Any]) -> None:
    assert_same(tree, written_and_read(tmp_path, tree))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_in_every_layout(tmp_path: Path, dtype: torch.dtype) -> None:
    base = torch.randint(0, 2 if dtype is torch.bool else 256, (25 * dtype.itemsize,))
    base = base.to(torch.uint8).view(dtype)[1:]
    tree = {
        "scalar": base[3],
        "empty": base[:0].view(0, 4),
        **{
            f"{shape} {order}": base.view(shape).permute(order)
            for shape in [(4, 6), (2, 3, 4), (1, 24), (1, 4, 1, 6)]
            for order in itertools.permutations(range(len(shape)))
        },
    }
    assert_same(tree, written_and_read(tmp_path, tree))


def test_adams_moments_and_a_numpy_generators_state(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.randn(3, 4))
    optimizer = torch.optim.Adam([parameter])
    parameter.square().sum().backward()
    optimizer.step()
    tree = {"adam": optimizer, "numpy": np.random.default_rng(0).bit_generator.state}
    read = written_and_read(tmp_path, tree)
    assert_same({**tree, "adam": optimizer.state_dict()}, read)
    with torch.no_grad():
        assert_same(parameter.detach(), written_and_read(tmp_path, {"p": parameter})["p"])


def test_lazy_conjugates_and_expanded_tensors_keep_their_values(tmp_path: Path) -> None:
    whole = torch.randn(6, dtype=torch.complex64)
    tree = {"z": whole, "conjugate": whole.conj(), "negative": whole.conj().imag}
    tree |= {"expanded": torch.randn(1).expand(5), "columns": torch.randn(4, 6)[:, 1:4]}
    tree |= {"one": torch.randn(()).expand(1), "ones": torch.randn(1).expand(1, 1)}
    tree |= {"none": torch.randn(1).expand(0), "nones": torch.randn(()).expand(0, 3)}
    read = written_and_read(tmp_path, tree)
    for name, value in tree.items():
        assert torch.equal(read[name], value), name


# -- sharing ---------------------------------------------------------------------------------------


def test_a_shared_tensor_is_written_once_and_read_as_shared(tmp_path: Path) -> None:
    one = torch.randn(1000, 10)
    tree = {"a": one, "b": [one.detach(), {"c": one.T}], "n": one.numpy()}
    path = tmp_path / "state.safetensors"
    read = written_and_read(tmp_path, tree)
    assert path.stat().st_size < 1.1 * one.nbytes
    read["a"][0, 0] = 7
    assert read["b"][0][0, 0] == read["b"][1]["c"][0, 0] == read["n"][0, 0] == 7


def test_views_of_one_storage_may_overlap(tmp_path: Path) -> None:
    base = torch.arange(20.0)
    tree = {
        "all": base,
        "end": base[5:],
        "bits": base.view(torch.int32),
        "same": base.view(4, 5),
        "nothing": base[3:3],
        "last": base[20:],
        "parts": list(base.split(7)),
    }
    read = written_and_read(tmp_path, tree)
    assert_same(tree, read)
    read["all"].zero_()  # what only overlaps is not shared
    assert torch.equal(read["end"], base[5:])


def test_what_is_present_keeps_its_identity(tmp_path: Path) -> None:
    generator, item = torch.Generator().manual_seed(1), Counted(torch.arange(3.0))
    values = {
        "tensor": torch.randn(2, 3),
        "generator": generator,
        "objects": [item, (item.value, 4)],
        "by name": {"a": Counted(5)},
        "rebound": torch.randn(3, 2).T,
        "later": torch.ones(2),
        "gone": None,
    }
    read = written_and_read(tmp_path, values)
    present = {
        "tensor": torch.zeros(2, 3),
        "generator": torch.Generator(),
        "objects": [Counted(torch.zeros(3)), (torch.zeros(3), 0)],
        "by name": {"a": Counted()},
        "rebound": torch.zeros(2, 3),
        "later": None,
        "gone": Counted(),
    }
    got = restored(present, read)
    for name in ("tensor", "generator"):
        assert got[name] is present[name]
    assert got["objects"][0] is present["objects"][0]
    assert got["objects"][0].value.tolist() == [0, 1, 2]
    assert got["objects"][1][0] is present["objects"][1][0]
    assert got["objects"][1] == (got["objects"][1][0], 4)
    assert got["by name"]["a"] is present["by name"]["a"]
    assert got["by name"]["a"].value == 5
    assert torch.equal(got["tensor"], values["tensor"])
    assert torch.equal(got["generator"].get_state(), generator.get_state())
    # no operation in place gives a tensor another layout: the attribute was set to another one
    assert got["rebound"] is not present["rebound"]
    assert_same(values["rebound"], got["rebound"])
    assert torch.equal(got["later"], values["later"])
    assert got["gone"] is None


def test_a_stateful_object_goes_on_with_the_tensors_that_others_hold(tmp_path: Path) -> None:
    one, other = Counted(torch.randn(3)), Counted(torch.zeros(3))
    held = other.value
    other.load_state_dict(written_and_read(tmp_path, {"o": one})["o"])
    assert other.value is held
    assert torch.equal(held, one.value)
    assert other.owner is other


# -- what cannot be saved --------------------------------------------------------------------------


class Named(str):
    pass


def itself() -> list[Any]:
    inside: list[Any] = []
    inside.append({"again": inside})
    return inside


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1, 2}, "a/0/b is set"),
        (object(), "a/0/b is object"),
        (b"bytes", "a/0/b is bytes"),
        (1j, "a/0/b is complex"),
        (lambda: 0, "a/0/b is function"),
        (Named("x"), "a/0/b is Named"),
        (torch.Size([2]), "a/0/b is Size"),
        (torch.float32, "a/0/b is dtype"),
        (Counter("aab"), "a/0/b is Counter"),
        (np.array([object()]), "a/0/b is ndarray object"),
        (np.array(["x"]), "a/0/b is ndarray <U1"),
        (np.arange(3).astype(">i4"), "a/0/b is ndarray >i4"),
        (np.ma.masked_array([1, 2], [True, False]), "a/0/b is MaskedArray"),
        (np.arange(3).astype(complex), "a/0/b has torch.complex128"),
        (torch.zeros(2, dtype=torch.complex128), "a/0/b has torch.complex128"),
        (torch.eye(2).to_sparse(), "a/0/b is Tensor torch.sparse_coo"),
        (torch.empty(2, device="meta"), "a/0/b is Tensor"),
        ({torch.zeros(1): 1}, "a/0/b is dict"),
        ({Named("x"): 1}, "a/0/b/0/0 is Named"),
        ({1: {"c": {2}}}, "a/0/b/0/1/c is set"),
        (Counted({"c": {2}}), "a/0/b/value/c is set"),
        (itself(), "a/0/b/0/again/0/again/.* contains itself"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_values_are_refused_by_their_place(tmp_path: Path, value: Any, message: str) -> None:
    path = tmp_path / "state.safetensors"
    write_state(path, {"old": 1})
    with pytest.raises(TypeError, match=f"^{message}.*, which cannot be saved$"):
        write_state(path, {"a": [{"b": value}]})
    assert read_state(path) == {"old": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["state.safetensors"]


# -- writing that fails ----------------------------------------------------------------------------


def _write_on_a_full_disk(path: Path) -> None:
    torch.set_num_threads(1)  # its pool of threads is no more
    write_state(path, {"x": torch.arange(10)})
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    with pytest.raises(OSError, match=r".+"):
        write_state(path, {"x": torch.zeros(10_000_000)})
    assert read_state(path)["x"].tolist() == list(range(10))


def test_a_full_disk_leaves_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    # a fork: the limit stays with a process
    process = multiprocessing.get_context("fork").Process(target=_write_on_a_full_disk, args=[path])
    process.start()
    process.join()
    assert process.exitcode == 0
    assert [file.name for file in tmp_path.iterdir()] == ["state.safetensors"]


@pytest.mark.parametrize("error", [OSError("disk"), KeyboardInterrupt(), MemoryError()], ids=repr)
@pytest.mark.parametrize(
    "where", ["resume.state.save_file", "base.files.os.replace", "resume.state.digest_of"]
)
def test_an_error_in_the_middle_leaves_the_older_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, where: str
) -> None:
    path = tmp_path / "state.safetensors"
    write_state(path, {"x": torch.arange(10)})

    def fails(*args: Any, **kwargs: Any) -> None:
        if where.endswith("save_file"):
            Path(args[1]).write_bytes(b"half of it")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(f"sae_plugins.{where}", fails)
        with pytest.raises(type(error)):
            write_state(path, {"x": torch.zeros(10)})
    assert read_state(path)["x"].tolist() == list(range(10))
    assert [file.name for file in tmp_path.iterdir()] == ["state.safetensors"]


def test_what_a_killed_run_left_half_written_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    path.with_name(path.name + ".partial").write_bytes(b"half of it")
    assert written_and_read(tmp_path, {"x": 1}) == {"x": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["state.safetensors"]


# -- files that are not ours -----------------------------------------------------------------------


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('code from a file was run')",)


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb()))


FOREIGN = {
    "a pickle": lambda path: path.write_bytes(pickle.dumps({"tree": Bomb()})),
    "a pickle that is long": lambda path: path.write_bytes(pickle.dumps([Bomb(), "x" * 10**6])),
    "torch.save": lambda path: torch.save({"tree": Bomb()}, path),
    "torch.save, the old format": lambda path: torch.save(
        Bomb(), path, _use_new_zipfile_serialization=False
    ),
    "a zip": _zip,
    "text": lambda path: path.write_text("__import__('os').abort()\n" * 100),
    "JSON": lambda path: path.write_text('{"tree": "{}", "digest": "0"}'),
    "nothing": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(4096)),
    "a folder": lambda path: path.mkdir(),
    "a link to nowhere": lambda path: path.symlink_to(path.with_name("nowhere")),
    "a link to itself": lambda path: path.symlink_to(path),
    "no file": lambda path: None,
    "an SAE's weights": lambda path: save_file({"W_dec": torch.ones(3)}, path),
    "without a digest": lambda path: save_file({}, path, {"tree": "{}"}),
    "a wrong digest": lambda path: save_file({}, path, {"tree": "{}", "digest": "0"}),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file_is_refused_and_nothing_in_it_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / "step-000000005.safetensors"
    FOREIGN[kind](path)

    def reached(*args: Any, **kwargs: Any) -> None:
        raise SystemExit("something that runs code was reached")

    for name in ("pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load"):
        monkeypatch.setattr(name, reached)
    for name in ("eval", "exec"):
        monkeypatch.setattr(f"builtins.{name}", reached)
    with pytest.raises(StateError, match=r"step-000000005\.safetensors"):
        read_state(path)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        '{"dict": [1]}',
        '{"set": []}',
        '{"tensor": "no such"}',
        '{"dict": {"a": {"tensor": "x", "device": "cpu", "order": [0, 1], "past": 0}}}',
        '{"dict": {"a": {"tensor": "x", "device": "cpu", "order": [0]}}}',
        '{"dict": {"a": {"tensor": "x", "device": "cpu", "order": [0], "past": -1}}}',
        '{"dict": {"a": {"tensor": "x", "device": "no such", "order": [0], "past": 0}}}',
        '{"dict": {"a": {"generator": "x", "device": "cpu"}}}',
        '{"dict": {"a": {"deque": []}}}',
        '{"pairs": [[[1], 2]]}',
        "no JSON",
    ],
)
def test_a_file_with_a_digest_and_another_encoding_is_refused(tmp_path: Path, text: str) -> None:
    """A later version's, say."""
    path, contents = tmp_path / "state.safetensors", {"x": torch.ones(3)}
    save_file(contents, path, {"tree": text, "digest": state.digest_of(text, contents)})
    with pytest.raises(StateError, match=r"state\.safetensors"):
        read_state(path)


CALLS_THAT_RUN_CODE = {"eval", "exec", "compile", "__import__"}


@pytest.mark.parametrize("module", [state, files, checkpoints, stream])
def test_no_module_that_reads_state_could_run_code_from_it(module: Any) -> None:
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in CALLS_THAT_RUN_CODE, node.lineno
            continue
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = {f"{node.value.id}.{node.attr}"}
        else:
            continue
        for name in names:
            first = name.split(".")[0]
            assert first not in {"pickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"}
            assert name not in {"torch.load", "torch.jit", "torch.hub", "torch.package"}


# -- differences -----------------------------------------------------------------------------------


def test_differences_are_lines_with_both_values() -> None:
    saved = {"a": {"b": 1, "c": [1, 2]}, "same": None}
    assert changes(saved, saved) == []
    assert changes(saved, {"a": {"b": 2, "c": [1]}, "same": None, "new": 3}) == [
        "a.b: 1 in the checkpoint, 2 now",
        "a.c: [1, 2] in the checkpoint, [1] now",
        "new: None in the checkpoint, 3 now",
    ]


# -- training between checkpoints ------------------------------------------------------------------


class Operations(TorchDispatchMode):
    """The names of the operations that torch dispatches."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("names", [(), ("hybrid-order",)], ids=["plain", "hybrid-order"])
@pytest.mark.parametrize("every", ["0", "1000", "60min"])
def test_between_checkpoints_no_operation_is_added(
    tmp_path: Path, every: str, names: tuple[str, ...]
) -> None:
    batches = tiny_batches(steps=6)

    def operations(kept: Checkpoints | None) -> list[str]:
        with plugins(*names, seed=0, checkpoints=kept), Operations() as counted:
            tiny_trainer(tiny_sae("standard"), batches).fit()
        return counted.names

    folder = tmp_path / "checkpoints"
    assert operations(Checkpoints(folder, every=every)) == operations(None)
    assert not list(folder.iterdir())
    more = operations(Checkpoints(folder, every="4"))
    assert len(more) > len(operations(None))  # they do count


def test_a_step_with_checkpoints_costs_no_operation(tmp_path: Path) -> None:
    """Without `fit`, which asks whether a checkpoint is due."""
    batches = tiny_batches(steps=4)

    def operations(kept: Checkpoints | None) -> list[str]:
        with plugins(checkpoints=kept):
            trainer = tiny_trainer(tiny_sae("standard"), batches)
        with Operations() as counted:
            advance(trainer, batches)
        return counted.names

    assert operations(Checkpoints(tmp_path)) == operations(None)


@pytest.mark.parametrize("number", [np.float64(2.5), np.float32(0.1), np.int64(-3), np.bool_(True)])
def test_a_numpy_scalar_keeps_its_type(number: Any, tmp_path: Path) -> None:
    write_state(tmp_path / "state.safetensors", {"a": number})
    read = read_state(tmp_path / "state.safetensors")["a"]
    assert (type(read), read) == (type(number), number)
