"""Nothing that is passed to ``Model``, ``quantize`` or ``estimate_memory`` ends the process."""

from __future__ import annotations

import pytest

from fixtures_models import TinyModelFactory
from test_core_hostile import run

GROUPS = {
    "model": """
sweep("Model", Model, ([paths["llama"]],), {
    "devices": None, "split_mode": "layer", "tensor_split": None, "tensor_buft_overrides": None, "use_direct_io": False,
    "lazy": "auto", "kv_overrides": None, "use_extra_bufts": True, "no_host": False, "load_mtp": False})
for bad in BAD:
    attempt(f"kv value {bad!r:.40}", lambda: Model(paths["llama"], kv_overrides={"llama.context_length": bad}), (), {})
    attempt(f"absent kv {bad!r:.40}", lambda: Model(paths["llama"], kv_overrides={"llama.rope.freq_base": bad}), (), {})
    attempt(f"place {bad!r:.40}", lambda: Model(paths["llama"], tensor_buft_overrides={"ffn": bad}), (), {})
    attempt(f"part {bad!r:.40}", lambda: Model([paths["llama"], bad]), (), {})
    if bad.__hash__:
        attempt(f"kv key {bad!r:.40}", lambda: Model(paths["llama"], kv_overrides={bad: 1}), (), {})
        attempt(f"pattern {bad!r:.40}", lambda: Model(paths["llama"], tensor_buft_overrides={bad: "CPU"}), (), {})
sweep("split_path", split_path, ("a", 0, 1))
sweep("split_prefix", split_prefix, ("a", 0, 1))
""",
    "quantize": """
folder = os.getcwd()
out = os.path.join(folder, "out.gguf")


def remove():
    for name in os.listdir(folder):
        os.unlink(os.path.join(folder, name))


sweep("quantize", quantize, (paths["llama"], out, "q8_0"), {
    "n_threads": 1, "output_tensor_type": None, "token_embedding_type": None, "tensor_types": None, "imatrix": None,
    "kv_overrides": None, "prune_layers": None, "allow_requantize": False, "quantize_output_tensor": True,
    "only_copy": False, "pure": False, "keep_split": False, "dry_run": False, "max_buf_size": None, "overwrite": False,
    "progress": None}, remove)
for bad in BAD:
    attempt(f"imatrix of {bad!r:.40}", quantize, (paths["llama"], out), {"imatrix": {"blk.0.attn_q.weight": bad}})
    remove()
    attempt(f"prune {bad!r:.40}", quantize, (paths["llama"], out), {"prune_layers": [bad]})
    remove()
    attempt(f"type {bad!r:.40}", quantize, (paths["llama"], out), {"tensor_types": {"ffn": bad}})
    remove()
    attempt(f"progress {bad!r:.40}", quantize, (paths["llama"], out), {"progress": lambda a, b: bad})
    remove()
""",
    "estimate": """
options = dict(n_ctx=256, n_batch=64, n_ubatch=64, n_seq_max=1, n_threads=1, embeddings=False, pooling=None,
    flash_attn=None, type_k="f16", type_v="f16", offload_kqv=True, op_offload=True, swa_full=True, kv_unified=True,
    rope_freq_base=None, n_outputs_max=None, n_gpu_layers=-1, use_mmap=True, kv_overrides=None, tensor_split=None)
for kind in ("llama", "hybrid"):
    sweep("estimate " + kind, estimate_memory, (paths[kind],), options)
""",
}


@pytest.mark.parametrize("group", GROUPS)
def test_bad_values_raise_typed_errors_and_leave_all_usable(tiny_model: TinyModelFactory, group: str) -> None:
    head = "from llama_runner.core import estimate_memory, quantize, split_path, split_prefix\n"
    result = run(tiny_model, head + GROUPS[group], 300)
    assert result["violations"] == []
    assert result["calls"] > 100
    assert result["accepted"] < result["calls"] / 2
