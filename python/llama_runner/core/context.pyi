from typing import Any, Literal, Self, SupportsFloat, SupportsIndex, TypeAlias, TypedDict, type_check_only

from typing_extensions import disjoint_base

from llama_runner.core.batch import Batch
from llama_runner.core.memory import Memory
from llama_runner.core.model import Model
from llama_runner.core.outputs import ContextOutputs
from llama_runner.core.perf import ContextPerf

_KVType: TypeAlias = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]

@type_check_only
class _MemoryBreakdown(TypedDict):
    model: int
    context: int
    compute: int

@disjoint_base
class Context(ContextOutputs):
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
    def abort(self) -> None: ...
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
    @property
    def fingerprint(self) -> dict[str, Any]: ...
    def state_seq_get(self, seq_id: SupportsIndex) -> bytes: ...
    def state_seq_set(self, seq_id: SupportsIndex, blob: bytes | bytearray | memoryview) -> None: ...
