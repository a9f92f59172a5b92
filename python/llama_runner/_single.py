"""What there is one of: a copy would give back what the original still has."""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn

from llama_runner.errors import ArgumentTypeError

__all__ = ["Single"]


class Single:
    """Has no copies, and cannot be pickled: ArgumentTypeError, which says what there is instead."""

    _instead: ClassVar[str] = ""

    def _no_copy(self, *args: Any) -> NoReturn:
        raise ArgumentTypeError(f"a {type(self).__name__} is neither copied nor pickled{self._instead}")

    __copy__ = __deepcopy__ = __reduce_ex__ = _no_copy
