"""The low-level API: llama.h's objects as Python classes, with every precondition checked.

Models and files: ``Model``, ``Capabilities``, ``LoraAdapter``, ``ControlVector``, ``quantize``, ``estimate_memory``.
Text: ``Vocab``, ``Detokenizer``, ``ChatTemplate``, ``ChatParser``, ``json_schema_to_grammar``.
Computing: ``Context``, ``Memory``, ``Batch``, ``CellAccount``, ``Stepper``; on logits ``log_softmax`` and its like.
Sampling: ``SamplerChain``, ``sample_rows``, ``apply_rows``, ``Constraint``.
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
    from llama_runner.core._native import build_facts, devices, live_objects, system_info
except ImportError as error:
    raise NativeLibraryError(
        f"the compiled part of llama_runner cannot be loaded ({error}). In a source checkout run "
        "`pip install .` first, and start Python outside the checkout's python folder; an installed package that says "
        "this is broken: reinstall it."
    ) from error

from llama_runner.cells import CellAccount, CellTable
from llama_runner.core.adapter import LoraAdapter
from llama_runner.core.batch import Batch
from llama_runner.core.capabilities import Capabilities
from llama_runner.core.chat import ChatTemplate
from llama_runner.core.chat_parser import ChatParser
from llama_runner.core.constraint import Constraint, ConstraintVocab
from llama_runner.core.context import Context
from llama_runner.core.control_vector import ControlVector
from llama_runner.core.detokenizer import Detokenizer
from llama_runner.core.estimate import estimate_memory
from llama_runner.core.job import Job
from llama_runner.core.loop import DecodeLoop
from llama_runner.core.memory import Memory
from llama_runner.core.model import Model
from llama_runner.core.perf import ContextPerf
from llama_runner.core.quantize import quantize
from llama_runner.core.rows import apply_rows, sample_rows
from llama_runner.core.sampler import SamplerChain
from llama_runner.core.schema import json_schema_to_grammar
from llama_runner.core.scores import argmax, log_softmax, logprobs, top_logprobs
from llama_runner.core.splits import split_path, split_prefix
from llama_runner.core.state import DeviceState
from llama_runner.core.stepper import Stepper
from llama_runner.core.token_attr import TokenAttr
from llama_runner.core.vocab import Vocab

__all__ = [
    "Batch",
    "Capabilities",
    "CellAccount",
    "CellTable",
    "ChatParser",
    "ChatTemplate",
    "Constraint",
    "ConstraintVocab",
    "Context",
    "ContextPerf",
    "ControlVector",
    "DecodeLoop",
    "Detokenizer",
    "DeviceState",
    "Job",
    "LoraAdapter",
    "Memory",
    "Model",
    "SamplerChain",
    "Stepper",
    "TokenAttr",
    "Vocab",
    "apply_rows",
    "argmax",
    "build_facts",
    "devices",
    "estimate_memory",
    "json_schema_to_grammar",
    "live_objects",
    "log_softmax",
    "logprobs",
    "quantize",
    "sample_rows",
    "split_path",
    "split_prefix",
    "system_info",
    "top_logprobs",
]
