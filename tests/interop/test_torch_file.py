"""Torch files are written here instruction by instruction, so that neither torch nor the reader vouches for itself."""

from __future__ import annotations

import contextlib
import copyreg
import io
import json
import math
import os
import pickle
import struct
import sys
import tarfile
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import recorded

from jukebox_jax.errors import UserError
from jukebox_jax.interop import safe_pickle, torch_file
from jukebox_jax.interop.torch_file import hyperparameters, read_torch, state_dict, write_torch

MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
PROTOCOL = pickle.dumps(1001, 2)
SYSTEM = pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}, 2)


# Pickle, written by hand.


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def many(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def mapping(items: dict[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def storage(kind: str, key: str, count: int, legacy: bool) -> bytes:
    parts = [text("storage"), name("torch", kind), text(key), text("cuda:0"), number(count)]
    return many(*parts, *([b"N"] if legacy else [])) + b"Q"


def tensor(stored: bytes, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    hooks = name("collections", "OrderedDict") + b")R"
    numbers = [many(*map(number, value)) for value in (size, stride)]
    return name("torch._utils", "_rebuild_tensor_v2") + many(stored, number(offset), *numbers, b"\x89", hooks) + b"R"


def pickled(value: bytes) -> bytes:
    return b"\x80\x02" + value + b"."


# The two containers.


def legacy_file(contents: bytes, storages: dict[str, np.ndarray]) -> bytes:
    data = b"".join(struct.pack("<q", array.size) + array.tobytes() for array in storages.values())
    return MAGIC + PROTOCOL + SYSTEM + pickled(contents) + pickle.dumps(list(storages), 2) + data


def zip_file(contents: bytes, storages: dict[str, np.ndarray], compression=zipfile.ZIP_STORED, **extra: bytes) -> bytes:
    members = {"data.pkl": pickled(contents), "byteorder": b"little", "version": b"3\n"} | extra
    members |= {f"data/{key}": array.tobytes() for key, array in storages.items()}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for member, data in members.items():
            archive.writestr(f"archive/{member}", data)
    return file.getvalue()


CONTAINERS = {"legacy": legacy_file, "zip": zip_file}
both = pytest.mark.parametrize("container", ["legacy", "zip"])

FLOATS = np.arange(24, dtype=np.float32)
HALVES = np.linspace(-2, 2, 6, dtype=np.float16)
STORAGES = {"100": FLOATS, "7": HALVES, "8": np.zeros(0, np.float32), "9": np.array([3], np.int64)}


def small_file(container: str, extra: dict[str, bytes] | None = None) -> bytes:
    """A checkpoint with a transposed tensor, one with an offset, tied ones, a half, an empty one and a scalar."""
    legacy = container == "legacy"
    floats = storage("FloatStorage", "100", 24, legacy)
    model = {
        "transposed": tensor(floats, 0, (4, 6), (1, 4)),
        "offset": tensor(floats, 20, (2, 1, 2), (2, 99, 1)),
        "tied": tensor(floats, 0, (24,), (1,)),
        "half.w": tensor(storage("HalfStorage", "7", 6, legacy), 0, (2, 3), (3, 1)),
        "empty": tensor(storage("FloatStorage", "8", 0, legacy), 0, (0, 5), (5, 1)),
        "count": tensor(storage("LongStorage", "9", 1, legacy), 0, (), ()),
    }
    ordered = name("collections", "OrderedDict") + b")R" + mapping(model)[1:] + mapping({"_metadata": b"}"}) + b"b"
    scalar = (
        name("numpy.core.multiarray", "scalar")
        + many(
            name("numpy", "dtype") + many(text("f8"), number(0), number(1)) + b"R"
            + many(number(3), text("<"), b"N", b"N", b"N", number(-1), number(-1), number(0)) + b"b",
            name("_codecs", "encode") + many(text(struct.pack("<d", 0.17).decode("latin1")), text("latin1")) + b"R",
        )
        + b"R"
    )  # fmt: skip
    hps = mapping({"levels": number(3), "name": text("Ünï"), "strides": many(number(2), number(4)), "l1": scalar})
    contents = mapping({"model": ordered, "step": number(4321), "hps": hps, "opt": b"N"} | (extra or {}))
    return CONTAINERS[container](contents, STORAGES)


def written(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "prior_level_2.pth.tar"
    path.write_bytes(data)
    return path


def refusal(tmp_path: Path, data: bytes) -> str:
    """What reading says, which must be one sentence that names the file and a remedy."""
    path = written(tmp_path, data)
    with pytest.raises(UserError) as caught:
        read_torch(path)
    sentence = str(caught.value)
    assert sentence.startswith(f"{path} ")
    assert ": " in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


# What is read.


@both
def test_tensors_are_views_of_the_file(tmp_path, container, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    contents = read_torch(written(tmp_path, small_file(container)))
    assert list(contents) == ["model", "step", "hps", "opt"]
    assert contents["step"] == 4321
    assert contents["opt"] is None
    model = state_dict(contents)
    expected = {
        "transposed": FLOATS.reshape(6, 4).T,
        "offset": FLOATS[20:].reshape(2, 1, 2),
        "tied": FLOATS,
        "half.w": HALVES.reshape(2, 3),
        "empty": np.zeros((0, 5), np.float32),
        "count": np.int64(3),
    }
    assert list(model) == list(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(model[key], value, strict=True)
    assert np.shares_memory(model["tied"], model["transposed"])
    with pytest.raises(ValueError, match="read-only"):
        model["tied"][0] = 1


@both
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *[("DoubleStorage", "f8"), ("FloatStorage", "f4"), ("HalfStorage", "f2"), ("LongStorage", "i8")],
        *[("BFloat16Storage", ml_dtypes.bfloat16), ("IntStorage", "i4"), ("ShortStorage", "i2"), ("CharStorage", "i1")],
        *[("ByteStorage", "u1"), ("BoolStorage", "?"), ("ComplexFloatStorage", "c8"), ("ComplexDoubleStorage", "c16")],
    ],
)
def test_storage_types(tmp_path, container, kind, dtype):
    values = np.array([0, 1, 1, 0, 1]).astype(dtype)
    one = tensor(storage(kind, "0", 5, container == "legacy"), 1, (2, 2), (2, 1))
    read = read_torch(written(tmp_path, CONTAINERS[container](mapping({"w": one}), {"0": values})))["w"]
    np.testing.assert_array_equal(read, values[1:].reshape(2, 2), strict=True)


@both
def test_hyperparameters_are_plain(tmp_path, container):
    extra = {"metrics": mapping({"loss": tensor(storage("FloatStorage", "100", 24, container == "legacy"), 0, (), ())})}
    contents = read_torch(written(tmp_path, small_file(container, extra)))
    assert isinstance(contents["hps"]["l1"], np.float64)
    hps = hyperparameters(contents)
    assert hps == {"levels": 3, "name": "Ünï", "strides": [2, 4], "l1": 0.17}
    assert type(hps["l1"]) is float
    assert json.loads(json.dumps(hps)) == hps
    assert hyperparameters({"hps": {"a": contents["model"]["tied"], "b": b"1", "c": [None, b"2"], 3: 4}}) == {
        "c": [None]
    }
    assert hyperparameters({}) == {}


@both
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_protocols(tmp_path, container, protocol):
    kinds = (np.bool_, np.int8, np.uint16, np.int32, np.uint64, np.float16, np.float32, np.float64)
    values = {kind.__name__: kind(1) for kind in kinds}
    values |= {"int": [0, 255, 65_535, -1, 2**31, -(2**31) - 1, 10**30], "float": -1.5, "none": None, "yes": True}
    values |= {
        "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        "text": ["", "é" * 300],
        3: OrderedDict(a={}, b=[]),
    }
    # What Python itself pickles, with the same list twice.
    shared = values | {"again": values["int"]}
    read = read_torch(written(tmp_path, CONTAINERS[container](pickle.dumps(shared, protocol)[:-1], {})))
    assert read == shared
    assert read["again"] is read["int"]
    for kind in kinds:
        assert type(read[kind.__name__]) is kind
    for old in (0, 1):
        refusal(tmp_path, CONTAINERS[container](pickle.dumps(shared, old)[:-1], {}))


def test_scalars_of_either_byte_order(tmp_path):
    kind = name("numpy", "dtype") + many(text("i4"), b"\x89", b"\x88") + b"R" + many(number(3), text(">")) + b"b"
    encoded = name("_codecs", "encode") + text("\0\0\1\2") + text("latin1") + b"\x86R"
    scalar = name("numpy._core.multiarray", "scalar") + kind + encoded + b"\x86R"
    assert read_torch(written(tmp_path, zip_file(mapping({"n": scalar}), {})))["n"] == 258


def test_hyperparameters_do_not_grow():
    bomb: list = []
    for _ in range(15):
        bomb = [bomb] * 10
    for value in (bomb, [[]]):
        value[0].append(value)  # and a cycle
        with pytest.raises(UserError, match="hps"):
            hyperparameters({"hps": {"a": value}})


def test_names_of_parameters():
    w = np.zeros(1)
    assert state_dict({"model": {"module.a": w, "module.module.b": w}}).keys() == {"a", "module.b"}
    assert state_dict({"a.module.w": w}) == {"a.module.w": w}
    for contents, match in [
        ({"model": {"module.a": w, "b": w}}, r"module\.a, b"),
        ({"model": {"a": w, "b": [w]}}, "list and not a tensor under 'b'"),
        ({"model": {"a": w, 3: w}}, "under '3'"),
        ({"model": {"x\x1b[31m": 1}}, r"'x\\x1b\[31m'"),
        ({"state": {"a": w}}, "no 'model'.* dict and not a tensor under 'state'"),
        ({"model": None}, "no parameters"),
        ({}, "no parameters"),
    ]:
        with pytest.raises(UserError, match=match):
            state_dict(contents)


# What is something else.


def tar_archive() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights"), io.BytesIO())
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "is empty: download it again"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "web page.*download it again"),
        (b'\xef\xbb\xbf<?xml version="1.0"?><Error><Code>PublicAccessNotPermitted</Code></Error>', "web page"),
        (tar_archive(), "tar archive"),
        (b"\x1f\x8b\x08" + bytes(100), "gzip"),
        (b'{"error": "not found"}', "not a torch checkpoint"),
        (b"\x93NUMPY" + bytes(100), "not a torch checkpoint"),
        (b"P", "not a torch checkpoint"),
        (b"\x80", "cut short"),
        (pickle.dumps({"model": 1}, 2), "torch.save did not write"),
        (pickle.dumps([1, 2], 4), "torch.save did not write"),
        (MAGIC + pickle.dumps(1002, 2), "protocol number"),
        (MAGIC + PROTOCOL + pickle.dumps({"little_endian": False}, 2), "big-endian"),
        (MAGIC + PROTOCOL + pickle.dumps([], 2), "big-endian"),
        (legacy_file(number(3), {}), "holds a single int instead of a dict"),
        (zip_file(b"]", {}), "holds a single list instead of a dict"),
        (zip_file(b"}", {}, **{"code/a.py": b""}), "TorchScript"),
        (zip_file(b"}", {}, **{"constants.pkl": b""}), "TorchScript"),
        (zip_file(b"}", {}, byteorder=b"big"), "big-endian"),
        (zip_file(b"}", {}, zipfile.ZIP_DEFLATED), "compressed"),
        (zip_file(b"}", {}).replace(b"data.pkl", b"data.zip"), "not one that torch.save wrote"),
        (b"PK\x03\x04" + bytes(10_000), "cut short"),
    ],
)  # fmt: skip
def test_other_files(tmp_path, data, match):
    path = written(tmp_path, data)
    with pytest.raises(UserError, match=match) as caught:
        read_torch(path)
    assert str(caught.value).startswith(f"{path} ")


def test_other_paths(tmp_path):
    with pytest.raises(UserError, match="folder"):
        read_torch(tmp_path)
    with pytest.raises(UserError, match="No such file"):
        read_torch(tmp_path / "absent.pth.tar")
    if hasattr(os, "mkfifo"):  # opening one would wait for a writer for ever
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(UserError, match="regular"):
            read_torch(tmp_path / "pipe")


# What is damaged.


@both
def test_every_truncation_is_noticed(tmp_path, container):
    one = tensor(storage("HalfStorage", "7", 6, container == "legacy"), 0, (2, 3), (3, 1))
    data = CONTAINERS[container](mapping({"model": mapping({"w": one}), "step": number(4321)}), {"7": HALVES})
    np.testing.assert_array_equal(state_dict(read_torch(written(tmp_path, data)))["w"], HALVES.reshape(2, 3))
    for length in range(len(data)):
        refusal(tmp_path, data[:length])


@both
@settings(max_examples=150, deadline=None, database=None)
@given(data=st.data())
def test_damage_is_refused_or_harmless(tmp_path_factory, container, data):
    whole = bytearray(small_file(container))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = written(tmp_path_factory.getbasetemp(), bytes(whole[: data.draw(st.integers(1, len(whole)))]))
    tracemalloc.start()
    try:
        with contextlib.suppress(UserError):
            contents = read_torch(path)
            json.dumps(hyperparameters(contents))
            for array in state_dict(contents).values():
                array.tobytes()
        assert tracemalloc.get_traced_memory()[1] < 1e7
    finally:
        tracemalloc.stop()


PIECES = [
    *[b"}", b"]", b")", b"(", b"t", b"u", b"s", b"e", b"a", b"R", b"b", b"Q", b"N", b"\x85", b"\x86", b"\x87"],
    *[b"q\0", b"h\0", b"\x94", b"\x93", b"0", b"2", b"o", b"\x81", b"K\1", b"\x8a\1\xff", b"C\x08" * 9],
    *[text(value) for value in ("0", "storage", "f8", "<", "latin1")],
    *[name("torch", "FloatStorage"), name("torch", "Size"), name("numpy", "dtype"), name("_codecs", "encode")],
    *[name("torch._utils", "_rebuild_tensor_v2"), name("torch._utils", "_rebuild_parameter")],
    *[name("collections", "OrderedDict"), name("numpy._core.multiarray", "scalar")],
    tensor(storage("FloatStorage", "0", 3, False), 0, (3,), (1,)),
]


@settings(max_examples=150, deadline=None, database=None)
@given(program=st.lists(st.sampled_from(PIECES), max_size=25))
def test_any_program_is_refused_or_harmless(tmp_path_factory, program):
    data = zip_file(b"".join(program), {"0": FLOATS[:3]})
    with contextlib.suppress(UserError):
        read_torch(written(tmp_path_factory.getbasetemp(), data))


# What claims more than there is.

HUGE = 10**12


def tensors(container: str, *descriptions: tuple[int, int, tuple[int, ...], tuple[int, ...]]) -> bytes:
    """Tensors by (claimed elements of the storage, offset, size, stride) over 24 floats that are there."""
    parts = {
        str(i): tensor(storage("FloatStorage", "0", count, container == "legacy"), *shape)
        for i, (count, *shape) in enumerate(descriptions)
    }
    return CONTAINERS[container](mapping(parts), {"0": FLOATS})


@both
@pytest.mark.parametrize(
    "description",
    [
        (HUGE, 0, (HUGE,), (1,)),
        (2**62, 0, (2**62,), (1,)),
        (-1, 0, (), ()),
        (23, 0, (23,), (1,)),  # the storage's own count says 24
        (24, 0, (25,), (1,)),
        (24, 1, (24,), (1,)),
        (24, 24, (), ()),
        (24, 25, (0,), (1,)),
        (24, -1, (2,), (1,)),
        (24, 0, (-1,), (1,)),
        (24, 23, (2,), (-1,)),
        (24, 0, (2, 2), (23, 1)),
        (24, 0, (2, 2), (1,)),
        (24, 0, (2,), (2**63 - 1,)),
        (24, 0, (2**32, 2**32), (0, 0)),  # their product is 0 in 64 bits
        (24, 0, (HUGE,), (0,)),  # fits, and is endless once copied
        (24, 0, (0, 2**62), (1, 1)),
        (24, 0, (1,) * 9, (1,) * 9),
        (24, 10**400, (1,), (1,)),
    ],
)
def test_tensors_lie_in_their_storage(tmp_path, container, description):
    read_torch(written(tmp_path, tensors(container, (24, 0, (4, 6), (6, 1)))))
    tracemalloc.start()
    try:
        refusal(tmp_path, tensors(container, description))
        assert tracemalloc.get_traced_memory()[1] < 1e7
    finally:
        tracemalloc.stop()


def test_terabytes_in_the_header(tmp_path):
    claim = mapping({"w": tensor(storage("FloatStorage", "0", HUGE, True), 0, (HUGE,), (1,))})
    head = MAGIC + PROTOCOL + SYSTEM + pickled(claim) + pickle.dumps(["0"], 2)
    assert "bytes before its storage" in refusal(tmp_path, head + struct.pack("<q", HUGE) + FLOATS.tobytes())
    assert "damaged" in refusal(tmp_path, head + struct.pack("<q", -HUGE) + FLOATS.tobytes())

    whole = zip_file(b"}", {"0": FLOATS})
    directory = whole.index(b"PK\x01\x02")
    for position in (directory + 20, directory + 24):  # the compressed and the whole size of the first member
        whole = whole[:position] + struct.pack("<I", 2**32 - 2) + whole[position + 4 :]
    assert "claims 4,294,967,294 bytes" in refusal(tmp_path, whole)


@pytest.mark.parametrize(
    "bomb",
    [
        b"\x8e" + struct.pack("<Q", 2**62),  # BINBYTES8
        b"\x96" + struct.pack("<Q", 2**40),  # BYTEARRAY8
        b"\x8d" + struct.pack("<Q", 2**40),  # BINUNICODE8
        b"\x95" + struct.pack("<Q", 2**62),  # FRAME
        b"\x8b" + struct.pack("<i", 2**31 - 1),  # LONG4
        b"\x8b" + struct.pack("<i", -5),
        b"I" + b"9" * 500 + b"\n",
        b"c" + b"a" * 5000,  # a name without an end
        text("a" * 2**20) + b"q\0" + (name("_codecs", "encode") + b"h\0" + text("latin1") + b"\x86R") * 99,
        b"]q\0" + b"h\0\x85q\0" * 64 + b"}h\0Ns",  # a key whose hash takes 2^64 steps
        b"}" + b"]Ns",
    ],
)  # fmt: skip
@both
def test_bombs(tmp_path, container, bomb):
    data = CONTAINERS[container](bomb, {})
    tracemalloc.start()
    try:
        refusal(tmp_path, data)
        assert tracemalloc.get_traced_memory()[1] < 1e8
    finally:
        tracemalloc.stop()


@both
def test_far_memo_slots_and_deep_nests_cost_nothing(tmp_path, container):
    # Python's own unpickler makes room for 2^32 slots, and anything recursive would end at depth 1000.
    slot = b"r" + struct.pack("<I", 2**32 - 1)
    deep = mapping({"deep": b"]" + slot + b"](" * 5_000 + b"e" * 5_000 + b"a", "step": number(5)})
    tracemalloc.start()
    try:
        assert read_torch(written(tmp_path, CONTAINERS[container](deep, {})))["step"] == 5
        assert tracemalloc.get_traced_memory()[1] < 1e8
    finally:
        tracemalloc.stop()


@both
def test_programs_without_end(tmp_path, container, monkeypatch):
    monkeypatch.setattr(safe_pickle, "MOST_INSTRUCTIONS", 1000)
    assert "more than 1,000 instructions" in refusal(tmp_path, CONTAINERS[container](b"]" * 1000, {}))
    monkeypatch.setattr(torch_file, "LONGEST_PICKLE", 2000)
    refusal(tmp_path, CONTAINERS[container](text("a" * 2000), {}))


def test_tables_of_contents_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_file, "_LONGEST_DIRECTORY", 2000)
    data = zip_file(b"}", {str(i): FLOATS[:0] for i in range(100)})
    assert "table of contents" in refusal(tmp_path, data)


def test_weights_stay_in_the_file(tmp_path):
    count = 1 << 28
    path = tmp_path / "huge.pth.tar"
    claim = mapping({"w": tensor(storage("FloatStorage", "0", count, True), 0, (count,), (1,))})
    with open(path, "wb") as file:
        file.write(MAGIC + PROTOCOL + SYSTEM + pickled(claim) + pickle.dumps(["0"], 2) + struct.pack("<q", count))
        file.truncate(file.tell() + 4 * count)  # a gibibyte of zeros that takes no room on the disk
    tracemalloc.start()
    try:
        assert read_torch(path)["w"][-1] == 0
        assert tracemalloc.get_traced_memory()[1] < 3e7
    finally:
        tracemalloc.stop()


# What is hostile.


def hostile(command: str) -> dict[str, bytes]:
    """Pickled values that run the shell command or Python expression when Python's unpickler reads them."""
    touch = text(command)
    python = text(f"__import__('os').system({command!r})")
    stacked = text("os") + text("system") + b"\x93"
    return {
        "GLOBAL REDUCE": name("os", "system") + touch + b"\x85R",
        "posix": name("posix", "system") + touch + b"\x85R",
        "eval": name("builtins", "eval") + python + b"\x85R",
        "exec": name("builtins", "exec") + python + b"\x85R",
        "python 2 eval": name("__builtin__", "eval") + python + b"\x85R",
        "subprocess": name("subprocess", "check_call") + b"](" + text("sh") + text("-c") + touch + b"e\x85R",
        "STACK_GLOBAL": stacked + touch + b"\x85R",
        "INST": b"(" + touch + b"ios\nsystem\n",
        "OBJ": b"(" + name("subprocess", "Popen") + b"](" + text("sh") + text("-c") + touch + b"eo",
        "NEWOBJ": name("subprocess", "Popen") + b"](" + text("sh") + text("-c") + touch + b"e\x85\x81",
        "EXT": b"\x82\xf0" + touch + b"\x85R",
        "through a dotted name": text("zipfile") + text("os.system") + b"\x93" + touch + b"\x85R",
        "setstate": name("types", "SimpleNamespace") + b")R" + mapping({"__setstate__": stacked}) + b"b" + touch + b"b",
        "through torch": text("torch.serialization") + text("os.system") + b"\x93" + touch + b"\x85R",
        "hub": name("torch.hub", "load") + touch + touch + b"\x86R",
    }


@pytest.fixture
def registered_extension():
    copyreg.add_extension("os", "system", 240)
    yield
    copyreg.remove_extension("os", "system", 240)


@pytest.mark.skipif(sys.platform == "win32", reason="the payloads are shell commands")
@pytest.mark.parametrize("kind", hostile(""))
def test_nothing_runs(tmp_path, kind, registered_extension):
    mark = tmp_path / "pwned"
    payload = hostile(f"touch {mark}")[kind]
    # The payloads are real: Python's unpickler runs them. (Those of torch need torch; NEWOBJ makes a Popen that idles.)
    if "torch" not in kind and kind not in {"hub", "NEWOBJ"}:
        opened = pickle.loads((b"\x80\x02" if kind == "python 2 eval" else b"\x80\x04") + payload + b".")
        if kind == "OBJ":
            opened.wait()
        assert mark.exists()
        mark.unlink()

    good = mapping({"a": tensor(storage("FloatStorage", "100", 24, True), 0, (24,), (1,)), "b": payload})
    hook = name("torch._utils", "_rebuild_tensor_v2") + many(payload, number(0), b")", b")", b"\x89", b"N") + b"R"
    persistent = many(text("storage"), payload, text("0"), text("cpu"), number(0)) + b"Q"
    files = [legacy_file(value, {"100": FLOATS}) for value in (payload, good, hook, persistent)]
    files += [zip_file(value, {"100": FLOATS}) for value in (payload, good.replace(b"NtQ", b"tQ"), hook, persistent)]
    files += [container(mapping({"hps": mapping({"x": payload})}), {}) for container in CONTAINERS.values()]
    headers = [MAGIC, PROTOCOL, SYSTEM, pickled(b"}"), pickled(b"]")]
    files += [b"".join([*headers[:i], pickled(payload), *headers[i + 1 :]]) for i in range(len(headers))]
    files += [b"\x80\x04" + payload + b"."]
    for data in files:
        sentence = refusal(tmp_path, data)
        assert "was not run" in sentence
        assert not mark.exists()


def test_the_refused_name_is_told(tmp_path):
    assert "names os.system," in refusal(tmp_path, legacy_file(name("os", "system"), {}))
    assert "INST os system," in refusal(tmp_path, zip_file(b"(ios\nsystem\n", {}))
    escape = text("a\x1b[2J") + text("é" * 500) + b"\x93"
    sentence = refusal(tmp_path, zip_file(escape, {}))
    assert sentence.isprintable()
    assert len(sentence) < len(str(tmp_path)) + 300


@both
def test_allowed_names_do_nothing_else(tmp_path, container):
    legacy = container == "legacy"
    floats = storage("FloatStorage", "100", 24, legacy)
    size, dtype = name("torch", "Size"), name("numpy", "dtype")
    small = tensor(floats, 0, (3,), (1,))
    for value in [
        size + text("f8") + b"\x85R",
        dtype + many(text("O"), b"\x89", b"\x88") + b"R",
        dtype + many(text("f8,O"), b"\x89", b"\x88") + b"R",
        name("_codecs", "encode") + text("a") + text("rot13") + b"\x86R",
        name("_codecs", "encode") + text("Ā") + text("latin1") + b"\x86R",
        name("torch", "FloatStorage") + number(3) + b"\x85R",
        name("collections", "OrderedDict") + b"](" + many(text("a"), text("b")) + b"e\x85R",
        size + mapping({"__call__": size}) + b"b",
        tensor(floats, 0, (24,), (1,)) + mapping({"shape": many(number(1))}) + b"b",
        tensor(floats, 0, (24,), (1,)) + number(0) + number(0) + b"s",
        name("torch._utils", "_rebuild_tensor_v2") + many(b"N", number(0), b")", b")", b"\x89", b"N") + b"R",
        name("torch._utils", "_rebuild_tensor_v2") + many(floats, text("0"), b")", b")", b"\x89", b"N") + b"R",
        name("_codecs", "encode") + text("a") + small + b"\x86R",
        dtype + many(text("f8"), b"\x89", b"\x88") + b"R" + many(number(3), small) + b"b",
        many(small, name("torch", "FloatStorage"), text("100"), text("cpu"), number(24)) + b"Q",
        many(text("storage"), name("torch", "FloatStorage"), text("100"), text("cpu"), number(24), small) + b"Q",
        many(text("module"), size, text(""), text("")) + b"Q",
        many(text("storage"), size, text("100"), text("cpu"), number(24)) + b"Q",
    ]:
        refusal(tmp_path, CONTAINERS[container](mapping({"x": value, "y": floats}), {"100": FLOATS}))


def test_storage_lists_that_do_not_fit(tmp_path):
    one = tensor(storage("FloatStorage", "0", 24, True), 0, (24,), (1,))
    for keys in (["1"], [], ["0", "0"], ["0", "1"], [0], {"0": 1}, None):
        data = MAGIC + PROTOCOL + SYSTEM + pickled(mapping({"w": one})) + pickle.dumps(keys, 2)
        refusal(tmp_path, data + 2 * (struct.pack("<q", 24) + FLOATS.tobytes()))
    other = tensor(storage("IntStorage", "0", 24, True), 0, (24,), (1,))
    assert "two ways" in refusal(tmp_path, legacy_file(mapping({"a": one, "b": other}), {"0": FLOATS}))
    absent = tensor(storage("FloatStorage", "0", 24, False), 0, (24,), (1,))
    assert "no member archive/data/0" in refusal(tmp_path, zip_file(absent, {"1": FLOATS}))


# The recorded files, and torch itself.


def recorded_weights(file: str) -> tuple[str, set[str]]:
    prefix = "sd_vqvae/" if file.startswith("vqvae") else f"sd_prior{file.removeprefix('prior_level_')[0]}/"
    return prefix, {"float32", "float16"} if file.startswith("prior_level_2") else {"float32"}


def test_recorded_checkpoints():
    folder = recorded("checkpoints")
    described = json.loads((folder / "checkpoints.json").read_text())["files"]
    assert described
    with np.load(recorded("h_pipeline.npz")) as weights:
        for file, facts in described.items():
            contents = read_torch(folder / file)
            prefix, dtypes = recorded_weights(file)
            model = state_dict(contents)
            assert {prefix + key for key in model} == {key for key in weights if key.startswith(prefix)}
            assert len(model) == facts["n_keys"]
            assert {str(array.dtype) for array in model.values()} == dtypes
            for key, array in model.items():
                np.testing.assert_array_equal(array, weights[prefix + key])
                assert array.shape == weights[prefix + key].shape
            assert hyperparameters(contents) == facts["hps"]
            assert contents["step"] == 4321
            assert (contents["opt"] is not None) == facts["opt"]


def test_recorded_optimizer_state():
    contents = read_torch(recorded("checkpoints") / "prior_level_0.pth.tar")
    moments = contents["opt"]["state"]
    assert list(moments) == list(range(len(moments)))
    parameters = list(state_dict(contents).values())
    assert sorted(m["exp_avg"].size for m in moments.values()) == sorted(
        {array.ctypes.data: array.size for array in parameters}.values()
    )
    assert all(np.all(m["exp_avg_sq"] >= 0) and m["step"] == 1 for m in moments.values())
    assert contents["opt"]["param_groups"][0]["lr"] == 0


@pytest.mark.parametrize("legacy", [True, False])
def test_torch_writes_and_we_read(tmp_path, legacy):
    torch = pytest.importorskip("torch")
    weight = torch.randn(6, 4)
    model = OrderedDict(
        {
            "whole": weight,
            "transposed": weight.T,
            "row": weight[3],
            "columns": weight[:, 1:3],
            "every other": weight[::2],
            "one": weight[2, 2],
            "parameter": torch.nn.Parameter(torch.randn(3).half()),
            "bfloat16": torch.randn(5).bfloat16(),
            "bool": torch.tensor([True, False]),
            "empty": torch.zeros(0, 4096),
            "double": torch.tensor(math.pi, dtype=torch.float64),
        }
    )
    path = tmp_path / "a.pth.tar"
    hps = {"bandwidth": {"l2": np.float64(0.061)}, "n": np.int64(5), "flag": np.bool_(True), "half": np.float16(0.5)}
    whole = {"model": model, "hps": hps, "size": weight.shape, "state": torch.nn.Linear(3, 2).state_dict()}
    torch.save(whole, path, _use_new_zipfile_serialization=legacy is False)
    contents = read_torch(path)
    read = state_dict(contents)
    assert list(read) == list(model)
    for key, value in model.items():
        expected = value.detach()
        array = read[key]
        assert array.shape == tuple(expected.shape)
        if key == "bfloat16":
            assert array.dtype == ml_dtypes.bfloat16
            array, expected = array.view(np.int16), expected.view(torch.int16)
        np.testing.assert_array_equal(array, expected.numpy(), strict=True)
    assert np.shares_memory(read["whole"], read["columns"])
    assert contents["size"] == (6, 4)
    assert contents["state"]["weight"].shape == (2, 3)
    assert hyperparameters(contents) == {"bandwidth": {"l2": 0.061}, "n": 5, "flag": True, "half": 0.5}


@pytest.mark.parametrize("legacy", [True, False])
def test_what_we_write_comes_back(tmp_path, legacy):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(7, 4)).astype(np.float32)
    embedding[0, :2] = np.nan, -0.0
    model = {
        "x_emb.weight": embedding,
        "c_attn.w": rng.normal(size=(4, 12)).astype(np.float16),
        "c_attn.transposed": rng.normal(size=(4, 12)).astype(np.float32).T,
        "bf": rng.normal(size=3).astype(ml_dtypes.bfloat16),
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "backwards": np.arange(5)[::-1],
        "x_out.weight": embedding,
    }
    model["c_attn.w"].setflags(write=False)
    path = tmp_path / "new" / "a.pth.tar"
    write_torch(path, {"model": model, "step": 17, "hps": {"levels": 3, "l1": np.float64(0.17)}, "opt": [1]}, legacy)
    assert [entry.name for entry in path.parent.iterdir()] == ["a.pth.tar"]
    assert zipfile.is_zipfile(path) is not legacy

    def check(read: dict[str, np.ndarray]) -> None:
        assert list(read) == list(model)
        for key, array in model.items():
            assert read[key].dtype == array.dtype
            assert read[key].shape == array.shape
            assert read[key].tobytes() == array.tobytes()
        assert np.shares_memory(read["x_emb.weight"], read["x_out.weight"])

    contents = read_torch(path)
    check(state_dict(contents))
    assert {key: contents[key] for key in ("step", "hps", "opt")} == {
        "step": 17, "hps": {"levels": 3, "l1": 0.17}, "opt": None,
    }  # fmt: skip

    loaded = torch.load(path, weights_only=True)
    assert list(loaded) == ["model", "step", "hps", "opt"]
    assert isinstance(loaded["model"], OrderedDict)
    assert loaded["model"]["x_emb.weight"].data_ptr() == loaded["model"]["x_out.weight"].data_ptr()
    np.testing.assert_array_equal(loaded["model"]["c_attn.w"].numpy(), model["c_attn.w"], strict=True)

    # Read, write, read: ties survive although the arrays are other objects over the same memory.
    again = tmp_path / "again.pth.tar"
    write_torch(again, contents, legacy)
    check(state_dict(read_torch(again)))


def test_what_cannot_be_written(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    path = tmp_path / "a.pth.tar"
    with pytest.raises(UserError, match="no >f4 tensors: convert w"):
        write_torch(path, {"model": {"w": np.zeros(3, ">f4")}})
    with pytest.raises(UserError, match="under 'w'"):
        write_torch(path, {"model": {"w": [1.0]}})
    with pytest.raises(UserError, match="cannot be written"):
        write_torch(tmp_path, {"model": {"w": np.zeros(3)}})
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r'pip install "jukebox-jax\[torch\]"'):
        write_torch(path, {"model": {"w": np.zeros(3)}})
    assert list(tmp_path.iterdir()) == []
