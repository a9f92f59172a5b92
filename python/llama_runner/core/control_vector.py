"""``ControlVector``: a direction for each layer, which a context adds to what the layer computes."""

from __future__ import annotations

import hashlib
import os
from typing import Self

import numpy as np
import numpy.typing as npt

from llama_runner._check import check_float, check_path
from llama_runner.errors import ArgumentTypeError, InvalidArgumentError
from llama_runner.gguf import read_control_vector

__all__ = ["ControlVector"]

_MAX = float(np.finfo(np.float32).max)


class ControlVector:
    """Directions of shape (n_layers, n_embd), float32: row 0 is added to the output of layer 1, and so on.

    Layer 0 has none. ``Context.set_control_vector`` makes it active. Immutable: the array is copied. Any thread.
    Raises ArgumentTypeError for what is no array of numbers, InvalidArgumentError for another shape, and for NaN or
    infinities.
    """

    __slots__ = ("_digest", "_directions")

    def __init__(self, directions: npt.ArrayLike) -> None:
        try:
            given = np.asarray(directions)
            if given.dtype.kind not in "fiu":
                raise TypeError(f"an array of {given.dtype}")
            with np.errstate(over="ignore"):
                array = np.array(given, np.float32, order="C")
        except (TypeError, ValueError) as error:
            raise ArgumentTypeError(
                f"directions is a float32 array of shape (layers, n_embd): {error}"
            ) from None
        if array.ndim != 2 or 0 in array.shape:
            raise InvalidArgumentError(f"directions has the shape {array.shape}: it is (layers, n_embd)")
        if not np.isfinite(array).all():
            raise InvalidArgumentError("directions has a NaN, an infinity, or a number too large for float32")
        array.flags.writeable = False
        self._directions = array
        self._digest = hashlib.blake2b(
            repr(array.shape).encode() + array.tobytes(), digest_size=16
        ).hexdigest()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a control vector GGUF file, as ``llama-cvector-generator`` writes it: tensors ``direction.<layer>``.

        Takes the place of ``common_control_vector_load``. Layers that the file leaves out get zeros. Raises
        ModelNotFoundError, ModelFormatError, StorageError.
        """
        return cls(read_control_vector(check_path(path)))

    def scaled(self, strength: float) -> ControlVector:
        """The same directions, each ``strength`` times as long; negative turns them round."""
        factor = np.float32(check_float("strength", strength, -_MAX, _MAX))
        with np.errstate(over="ignore"):
            return type(self)(self._directions * factor)

    @property
    def directions(self) -> npt.NDArray[np.float32]:
        """The array itself, read-only."""
        return self._directions

    @property
    def n_layers(self) -> int:
        """Layers that it has a direction for, from layer 1 on."""
        return int(self._directions.shape[0])

    @property
    def n_embd(self) -> int:
        """Width of a direction."""
        return int(self._directions.shape[1])

    @property
    def digest(self) -> str:
        """BLAKE2b of shape and values, in hexadecimal: what a saved state remembers of it."""
        return self._digest

    def __repr__(self) -> str:
        return f"<ControlVector of {self.n_layers} layers, {self.n_embd} wide>"
