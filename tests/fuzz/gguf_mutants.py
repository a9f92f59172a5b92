"""Mutants of sound GGUF files: most are well-formed still, so that they reach llama.cpp's loader, not our reader alone.

A file is taken apart into keys and tensors, changed in one to three places and put together again, with offsets and
data that fit; a part of the mutants gets raw damage after that. The same seed and number give the same bytes.
"""

from __future__ import annotations

import random
import re
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path

import gguf

from c_declarations import LLAMA_CPP
from llama_runner.gguf.tables import GGML_TYPES, VALUE_TYPES, tensor_bytes

CODES = ["<B", "<b", "<H", "<h", "<I", "<i", "<f", "<B", "", "", "<Q", "<q", "<d"]
STRING, ARRAY = 8, 9
ALIGN = 32
EDGES = (
    0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 31, 32, 33, 63, 64, 65, 100, 127, 128, 255, 256, 511, 512, 513, 1000, 4095, 65535,
    65536, 100_000, 2**24, 2**30, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, -1, -2, -(2**31),
)  # fmt: skip
FLOAT_EDGES = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    1e-45,
    1e-30,
    1e38,
    -1e38,
    0.5,
    10000.0,
    float("nan"),
    float("inf"),
    -float("inf"),
)
STRINGS = (
    b"", b" ", b"a", b"\xff", b"\xf0\x9f", b"\xed\xa0\x80", b"\0", b"a\0b", b"%s%n", b"<0x00>", b"<0x0A>",
    b"<0xZZ>", b"<0x",
    b"<s>", b"</s>", b"\n", b"a b", b"  ", b" x", b"\xe2\x96\x81", b"<|im_end|>", b"a" * 300, b"{{", b"{% for %}",
    b"x" * 70_000, b"{{ messages }}" * 100,
)  # fmt: skip
TOKENIZERS = (
    b"llama", b"bert", b"gpt2", b"t5", b"rwkv", b"plamo2", b"no_vocab", b"none", b"test", b"gemma4", b"hybriddna",
    b"whitespace", b"",
)  # fmt: skip


@dataclass
class Value:
    kind: int
    data: object  # a number, bytes, or of an array a list of these
    element: int = 0


@dataclass
class Tensor:
    name: bytes
    shape: tuple[int, ...]
    kind: int
    data: bytes


@dataclass
class Image:
    """A GGUF file, taken apart."""

    keys: dict[bytes, Value]
    tensors: list[Tensor] = field(default_factory=list)

    @property
    def architecture(self) -> bytes:
        value = self.keys.get(b"general.architecture")
        return value.data if value and isinstance(value.data, bytes) else b"llama"

    def copy(self) -> Image:
        return Image(dict(self.keys), list(self.tensors))

    def to_bytes(self) -> bytes:
        out = [b"GGUF", struct.pack("<IQQ", 3, len(self.tensors), len(self.keys))]
        for key, value in self.keys.items():
            out += [sized(key), struct.pack("<I", value.kind)]
            if value.kind == ARRAY:
                out += [struct.pack("<IQ", value.element, len(value.data))]
                out += [scalar(value.element, item) for item in value.data]
            else:
                out.append(scalar(value.kind, value.data))
        offset = 0
        blobs = []
        for t in self.tensors:
            out += [sized(t.name), struct.pack(f"<I{len(t.shape)}q", len(t.shape), *t.shape)]
            out.append(struct.pack("<IQ", t.kind, offset))
            blob = t.data + b"\0" * (-len(t.data) % ALIGN)
            blobs.append(blob)
            offset += len(blob)
        head = b"".join(out)
        return b"".join((head, b"\0" * (-len(head) % ALIGN), *blobs))


def sized(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def scalar(kind: int, value: object) -> bytes:
    if kind == STRING:
        return sized(value if isinstance(value, bytes) else str(value).encode())
    code = CODES[kind]
    if code[1] in "fd":
        try:
            return struct.pack(code, float(value))
        except (TypeError, ValueError, OverflowError):
            return struct.pack(code, 0.0)
    width = struct.calcsize(code)
    number = int(value) if isinstance(value, (int, float)) and value == value and abs(value) < 2**65 else 0
    return (number & (2 ** (8 * width) - 1)).to_bytes(width, "little")


def read_image(path: Path) -> Image:
    """Take a sound file apart."""
    reader = gguf.GGUFReader(path)
    keys: dict[bytes, Value] = {}
    for name, f in reader.fields.items():
        if name.startswith("GGUF."):
            continue
        kind = int(f.types[0])
        if kind == ARRAY:
            element = int(f.types[-1])
            if element == STRING:
                items: list[object] = [bytes(f.parts[i]) for i in f.data]
            else:
                items = [f.parts[i][0].item() for i in f.data]
            keys[name.encode()] = Value(ARRAY, items, element)
        elif kind == STRING:
            keys[name.encode()] = Value(STRING, bytes(f.parts[f.data[0]]))
        else:
            keys[name.encode()] = Value(kind, f.parts[f.data[0]][0].item())
    tensors = [
        Tensor(t.name.encode(), tuple(int(n) for n in t.shape), int(t.tensor_type), t.data.tobytes())
        for t in reader.tensors
    ]
    return Image(keys, tensors)


def known_names() -> tuple[list[bytes], list[bytes]]:
    """The architectures and the metadata keys that the vendored llama.cpp knows."""
    source = (LLAMA_CPP / "src" / "llama-arch.cpp").read_text(encoding="utf-8")
    archs = re.findall(r'\{ LLM_ARCH_\w+,\s*"([^"]+)"', source)
    keys = re.findall(r'\{ LLM_KV_\w+,\s*"([^"]+)"', source)
    assert len(archs) > 100 and len(keys) > 150
    return [a.encode() for a in archs if a != "(unknown)"], [k.encode() for k in keys if k.count("%s") <= 1]


class Mutator:
    """Makes mutant ``number`` of ``seed`` from one of the ``images``."""

    def __init__(self, images: list[Image], seed: int) -> None:
        self.images, self.seed = images, seed
        self.archs, self.names = known_names()

    def __call__(self, number: int) -> bytes:
        rng = random.Random(f"{self.seed}/{number}")
        image = rng.choice(self.images).copy()
        changes = (
            [self.number] * 6 + [self.insert] * 5 + [self.array] * 4 + [self.delete, self.retype,
            self.text] + [self.tensor] * 3
            + [self.architecture, self.tokenizer, self.tokenizer]
        )  # fmt: skip
        for _ in range(rng.choice((1, 1, 1, 2, 2, 3))):
            rng.choice(changes)(image, rng)
        data = image.to_bytes()
        if rng.random() < 0.15:
            data = self.damage(data, rng)
        return data

    def edge(self, rng: random.Random, kind: int) -> object:
        return rng.choice(FLOAT_EDGES) if kind in (6, 12) else rng.choice(EDGES)

    def pick(self, image: Image, rng: random.Random, *kinds: int) -> bytes | None:
        found = [key for key, value in image.keys.items() if value.kind in kinds]
        return rng.choice(found) if found else None

    def number(self, image: Image, rng: random.Random) -> None:
        key = self.pick(image, rng, 4, 5, 6, 7, 10, 11, 12)
        if key:
            image.keys[key] = replace(image.keys[key], data=self.edge(rng, image.keys[key].kind))

    def retype(self, image: Image, rng: random.Random) -> None:
        key = self.pick(image, rng, 4, 5, 6, 7, 8)
        if key:
            kind = rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12))
            image.keys[key] = Value(kind, rng.choice(STRINGS) if kind == STRING else self.edge(rng, kind))

    def insert(self, image: Image, rng: random.Random) -> None:
        """A key that llama.cpp knows, in any of the forms that it reads."""
        name = rng.choice(self.names).replace(b"%s", image.architecture)
        kind = rng.choice((4, 4, 4, 4, 6, 7, 8, ARRAY, 5))
        if kind == STRING:
            value = Value(STRING, rng.choice(STRINGS))
        elif kind == ARRAY:
            element = rng.choice((4, 5, 5, 6, 7, 8, 0))
            count = rng.choice((0, 1, 2, 3, 4, 5, 8, 512, 513))
            value = Value(ARRAY, [self.item(rng, element) for _ in range(count)], element)
        else:
            value = Value(kind, self.edge(rng, kind))
        image.keys[name] = value

    def item(self, rng: random.Random, element: int) -> object:
        return rng.choice(STRINGS[:20]) if element == STRING else self.edge(rng, element)

    def array(self, image: Image, rng: random.Random) -> None:
        key = self.pick(image, rng, ARRAY)
        if key is None:
            return
        value = image.keys[key]
        items = list(value.data)
        how = rng.randrange(6)
        if how == 0:
            items = items[: rng.choice((0, 1, len(items) // 2, max(0, len(items) - 1)))]
        elif how == 1:
            items = items + [self.item(rng, value.element) for _ in range(rng.choice((1, 2, 100)))]
        elif how == 2 and items:
            for _ in range(rng.choice((1, 2, 10))):
                items[rng.randrange(len(items))] = self.item(rng, value.element)
        elif how == 3 and items:
            items[rng.randrange(len(items))] = rng.choice(items)
        elif how == 4:
            element = rng.choice((0, 1, 4, 5, 6, 7, 8))
            image.keys[key] = Value(ARRAY, [self.item(rng, element) for _ in items], element)
            return
        elif how == 5:
            image.keys[key] = Value(rng.choice((4, 8)), 1)
            return
        image.keys[key] = replace(value, data=items)

    def delete(self, image: Image, rng: random.Random) -> None:
        image.keys.pop(rng.choice(list(image.keys)))

    def text(self, image: Image, rng: random.Random) -> None:
        key = self.pick(image, rng, STRING)
        if key:
            image.keys[key] = Value(STRING, rng.choice(STRINGS))

    def architecture(self, image: Image, rng: random.Random) -> None:
        """Another architecture with the keys of this one."""
        old, new = image.architecture, rng.choice(self.archs)
        image.keys = {
            (new + key[len(old) :] if key.startswith(old + b".") else key): value
            for key, value in image.keys.items()
        }
        image.keys[b"general.architecture"] = Value(STRING, new)

    def tokenizer(self, image: Image, rng: random.Random) -> None:
        image.keys[b"tokenizer.ggml.model"] = Value(STRING, rng.choice(TOKENIZERS))
        if rng.random() < 0.3:
            image.keys[b"tokenizer.ggml.merges"] = Value(
                ARRAY, [rng.choice(STRINGS[:20]) for _ in range(5)], STRING
            )
        if rng.random() < 0.3:
            charsmap = [rng.choice((0, 1, 4, 255)) for _ in range(rng.choice((0, 3, 4, 5, 64)))]
            image.keys[b"tokenizer.ggml.precompiled_charsmap"] = Value(ARRAY, charsmap, 0)

    def tensor(self, image: Image, rng: random.Random) -> None:
        if not image.tensors:
            return
        i = rng.randrange(len(image.tensors))
        tensor = image.tensors[i]
        how = rng.randrange(5)
        if how == 0:
            del image.tensors[i]
        elif how == 1:
            image.tensors[i] = replace(
                tensor, name=rng.choice((rng.choice(image.tensors).name, b"", b"x", b"blk.0.x.weight"))
            )
        elif how == 2:
            self.reshape(image, i, rng)
        elif how == 3:
            kind = rng.choice(list(GGML_TYPES))
            block = GGML_TYPES[kind][1]
            if tensor.shape[0] % block == 0:
                size = tensor_bytes(tensor.shape, kind)
                image.tensors[i] = replace(tensor, kind=kind, data=rng.randbytes(size))
        elif how == 4:
            image.tensors[i] = replace(tensor, data=rng.randbytes(len(tensor.data)))

    def reshape(self, image: Image, i: int, rng: random.Random) -> None:
        tensor = image.tensors[i]
        shape = list(tensor.shape)
        if rng.random() < 0.3:
            shape = shape[::-1]
        elif rng.random() < 0.3:
            shape = [*shape, rng.choice((1, 2))][:4]
        else:
            shape[rng.randrange(len(shape))] = rng.choice((1, 2, 3, 32, 63, 64, 65, 128, 500, 1000))
        size = tensor_bytes(tuple(shape), tensor.kind)
        if size < 2**22:
            image.tensors[i] = replace(tensor, shape=tuple(shape), data=(tensor.data + b"\0" * size)[:size])

    def damage(self, data: bytes, rng: random.Random) -> bytes:
        out = bytearray(data)
        how = rng.randrange(4)
        limit = min(len(out), 30_000)  # the header
        if how == 0:
            return bytes(out[: rng.randrange(len(out))])
        for _ in range(rng.choice((1, 1, 2, 4))):
            at = rng.randrange(4, limit - 8)
            if how == 1:
                out[at] ^= 1 << rng.randrange(8)
            elif how == 2:
                out[at : at + 8] = struct.pack("<Q", rng.choice(EDGES) & (2**64 - 1))
            else:
                out[at : at + 4] = struct.pack("<I", rng.choice(EDGES) & (2**32 - 1))
        return bytes(out)


assert [name for name, _ in VALUE_TYPES][STRING] == "str"
