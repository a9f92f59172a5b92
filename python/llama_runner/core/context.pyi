from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self, SupportsFloat, SupportsIndex, TypeAlias, TypedDict, type_check_only

import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

from llama_runner.core.adapter import LoraAdapter
from llama_runner.core.batch import Batch
from llama_runner.core.context_state import ContextState
from llama_runner.core.control_vector import ControlVector
from llama_runner.core.memory import Memory
from llama_runner.core.model import Model
from llama_runner.core.perf import ContextPerf
from llama_runner.core.sampler import SamplerChain

_KVType: TypeAlias = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]

@type_check_only
class _MemoryBreakdown(TypedDict):
    model: int
    context: int
    compute: int

@disjoint_base
class Context(ContextState):
    def __init__(
        self,
        model: Model,
        *,
        n_ctx: SupportsIndex | None = None,
        n_batch: SupportsIndex = 2048,
        n_ubatch: SupportsIndex = 512,
        n_seq_max: SupportsIndex = 1,
        n_outputs_max: SupportsIndex | None = None,
        n_outputs_max_per_seq: SupportsIndex = 1,
        n_threads: SupportsIndex | None = None,
        n_threads_batch: SupportsIndex | None = None,
        embeddings: bool = False,
        pooling: Literal["none", "mean", "cls", "last", "rank"] | None = None,
        attention_type: Literal["causal", "non_causal"] | None = None,
        flash_attn: bool | None = None,
        type_k: _KVType = "f16",
        type_v: _KVType = "f16",
        offload_kqv: bool = True,
        op_offload: bool = True,
        swa_full: bool = True,
        kv_unified: bool = True,
        rope_scaling_type: Literal["none", "linear", "yarn", "longrope"] | None = None,
        rope_freq_base: SupportsFloat | None = None,
        rope_freq_scale: SupportsFloat | None = None,
        yarn_ext_factor: SupportsFloat | None = None,
        yarn_attn_factor: SupportsFloat | None = None,
        yarn_beta_fast: SupportsFloat | None = None,
        yarn_beta_slow: SupportsFloat | None = None,
        yarn_orig_ctx: SupportsIndex | None = None,
        perf: bool = False,
    ) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
    def close(self) -> None: ...
    @property
    def n_ctx(self) -> int: ...
    @property
    def n_batch(self) -> int: ...
    @property
    def n_ubatch(self) -> int: ...
    @property
    def closed(self) -> bool: ...
    def decode(self, batch: Batch, *, timeout: SupportsFloat | None = None) -> None: ...
    def encode(self, batch: Batch, *, timeout: SupportsFloat | None = None) -> None: ...
    def _fail_next(self) -> None: ...
    def abort(self) -> None: ...
    @property
    def _able(self) -> dict[str, Any]: ...
    def set_n_threads(
        self, n_threads: SupportsIndex, n_threads_batch: SupportsIndex | None = None
    ) -> None: ...
    def synchronize(self) -> None: ...
    @property
    def causal_attn(self) -> bool: ...
    @causal_attn.setter
    def causal_attn(self, value: bool) -> None: ...
    @property
    def produces_embeddings(self) -> bool: ...
    def set_embeddings(self, embeddings: bool) -> None: ...
    def perf(self) -> ContextPerf: ...
    def perf_reset(self) -> None: ...
    @property
    def memory(self) -> Memory: ...
    @property
    def n_ctx_seq(self) -> int: ...
    @property
    def n_threads(self) -> int: ...
    @property
    def n_threads_batch(self) -> int: ...
    @property
    def memory_breakdown(self) -> _MemoryBreakdown: ...
    def set_adapters(
        self,
        adapters: Mapping[LoraAdapter, SupportsFloat]
        | Iterable[tuple[LoraAdapter, SupportsFloat]]
        | None = None,
    ) -> None: ...
    @property
    def adapters(self) -> dict[LoraAdapter, float]: ...
    def set_control_vector(
        self,
        vector: ControlVector | None = None,
        *,
        il_start: SupportsIndex = 1,
        il_end: SupportsIndex | None = None,
    ) -> None: ...
    @property
    def control_vector(self) -> ControlVector | None: ...
    @property
    def fingerprint(self) -> dict[str, Any]: ...
    def set_sampler(self, seq_id: SupportsIndex, chain: SamplerChain | None) -> None: ...
    def sampled_token(self, i: SupportsIndex = -1) -> int | None: ...
    def sampled_logits(self, i: SupportsIndex = -1) -> NDArray[np.float32] | None: ...
    def sampled_probs(self, i: SupportsIndex = -1) -> NDArray[np.float32] | None: ...
    def sampled_candidates(self, i: SupportsIndex = -1) -> NDArray[np.int32] | None: ...
