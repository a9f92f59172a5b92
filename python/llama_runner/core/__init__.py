"""The low-level API: llama.h's objects as Python classes, with every precondition checked.

``Model`` and its ``Vocab``, ``Context`` and its ``Memory``, ``Batch``, ``SamplerChain``, ``Stepper``, ``ChatTemplate``.
Heavy calls release the GIL. Importing this loads the native library but no backend; the first model does.
"""

import os
import sys
from pathlib import Path

from llama_runner.errors import NativeLibraryError

_lib = Path(__file__).parent.parent / "lib"
if sys.platform == "win32" and _lib.is_dir():
    os.add_dll_directory(str(_lib))

try:
    from llama_runner.core._native import build_facts, devices, system_info
except ImportError as error:
    raise NativeLibraryError(
        f"the compiled part of llama_runner cannot be loaded ({error}). In a source checkout run "
        "`pip install .` first, and start Python outside the checkout's python folder; an installed package that says "
        "this is broken: reinstall it."
    ) from error

from llama_runner.core.batch import Batch
from llama_runner.core.chat import ChatTemplate
from llama_runner.core.context import Context
from llama_runner.core.job import Job
from llama_runner.core.loop import DecodeLoop
from llama_runner.core.memory import Memory
from llama_runner.core.model import Model
from llama_runner.core.sampler import SamplerChain
from llama_runner.core.stepper import Stepper
from llama_runner.core.vocab import Vocab

__all__ = [
    "Batch",
    "ChatTemplate",
    "Context",
    "DecodeLoop",
    "Job",
    "Memory",
    "Model",
    "SamplerChain",
    "Stepper",
    "Vocab",
    "build_facts",
    "devices",
    "system_info",
]
