"""``TemplateLibrary``: prompts by name, from folders of one's own and from those that come with the package."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from pathlib import Path

from llama_runner._check import check_path
from llama_runner.errors import ArgumentTypeError, PromptFileError, PromptNotFoundError, StorageError
from llama_runner.prompts.agent_template import AgentTemplate

__all__ = ["TemplateLibrary", "load", "names"]

_Path = str | os.PathLike[str]
BUILT_IN = Path(__file__).parent / "templates"


class TemplateLibrary:
    """The ``*.toml`` files of ``paths`` and, below them, the prompts of the package.

    Where two have a file of the same name, that of the earlier folder counts. Files are read when they are asked for,
    so one that is wrong is in nobody else's way, and a changed one is seen at the next ``load``.
    """

    def __init__(self, paths: Iterable[_Path] = (), *, built_in: bool = True):
        if isinstance(paths, (str, bytes, os.PathLike)):
            raise ArgumentTypeError(f"paths={paths!r}: it is a list of folders, such as [{paths!r}]")
        self.paths = tuple(Path(check_path(path)) for path in paths)
        for path in self.paths:
            if not path.is_dir():
                raise PromptNotFoundError(f"there is no folder {path}")
        self._folders = (*self.paths, BUILT_IN) if built_in else self.paths

    def files(self) -> dict[str, Path]:
        """The file of each name."""
        found: dict[str, Path] = {}
        for folder in reversed(self._folders):
            try:
                found |= {path.stem: path for path in folder.glob("*.toml") if path.is_file()}
            except OSError as error:
                raise StorageError(f"cannot list {folder}: {error.strerror or error}") from error
        return dict(sorted(found.items()))

    def names(self) -> list[str]:
        """Every name that :meth:`load` knows, sorted."""
        return list(self.files())

    def load(self, name: str) -> AgentTemplate:
        """The prompt of that name. Raises PromptNotFoundError, or PromptFileError for a file that is wrong."""
        if not isinstance(name, str):
            raise ArgumentTypeError(f"name={name!r}: it is a str, not {type(name).__name__}")
        files = self.files()
        if (
            name not in files
        ):  # names of files are never made of what is asked for, so none leads out of the folders
            import difflib

            near = difflib.get_close_matches(name, files, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(files) or 'none'}"
            raise PromptNotFoundError(f"there is no prompt {name!r}: {hint}")
        path = files[name]
        return _built_in(path) if path.parent == BUILT_IN else AgentTemplate.from_file(path)

    def check(self) -> dict[str, PromptFileError]:
        """What is wrong with which file, by name; empty where all is well."""
        wrong = {}
        for name in self.names():
            try:
                self.load(name)
            except PromptFileError as error:
                wrong[name] = error
        return wrong

    def __repr__(self) -> str:
        return f"TemplateLibrary({[str(path) for path in self.paths]})"


@functools.lru_cache(maxsize=64)
def _built_in(path: Path) -> AgentTemplate:
    return AgentTemplate.from_file(path)


_LIBRARY = TemplateLibrary()


def load(name: str) -> AgentTemplate:
    """The prompt of that name which comes with the package."""
    return _LIBRARY.load(name)


def names() -> list[str]:
    """The names of the prompts that come with the package."""
    return _LIBRARY.names()
