"""Hazards of model files, vocabularies and chat templates."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fuzz.gguf_mutants import Image, Tensor, Value, read_image
from hostile.hazard import World, hazard, rows
from llama_runner import errors
from llama_runner.core import ChatTemplate, Context, Model
from llama_runner.gguf.tables import tensor_bytes

LOADS = (errors.ModelFormatError, errors.UnsupportedModelError)


def changed(w: World, kind: str = "llama", tensors: dict[str, Any] | None = None, **metadata: Any) -> Path:
    """A copy of a tiny model with changed metadata (``a__b`` is the key a.b), or tensors: (shape, type) or None."""
    image: Image = read_image(w.path(kind))
    for key, value in metadata.items():
        name = key.replace("__", ".").encode()
        if value is None:
            image.keys.pop(name, None)
        else:
            image.keys[name] = value if isinstance(value, Value) else as_value(value)
    for name, change in (tensors or {}).items():
        i = next(i for i, t in enumerate(image.tensors) if t.name == name.encode())
        if change is None:
            del image.tensors[i]
        else:
            shape, kind_ = change
            image.tensors[i] = Tensor(name.encode(), shape, kind_, b"\1" * tensor_bytes(shape, kind_))
    path = w.folder / "changed.gguf"
    path.write_bytes(image.to_bytes())
    return path


def as_value(value: Any) -> Value:
    if isinstance(value, bool):
        return Value(7, value)
    if isinstance(value, int):
        return Value(4, value)
    if isinstance(value, float):
        return Value(6, value)
    if isinstance(value, list):
        return Value(9, value, 8 if value and isinstance(value[0], bytes) else 5)
    return Value(8, value)


def refused(w: World, path: Path) -> None:
    """The file is refused, or what it loads as computes; a failed assertion is neither."""
    try:
        with Model(path) as model, Context(model, n_ctx=64, n_threads=2) as ctx:
            ctx.decode(rows())
            ctx.logits()
    except errors.LlamaRunnerError as error:
        assert "assertion" not in str(error), error


@hazard(
    "llama_model_base::load_hparams",
    "counts of layers, heads, experts and widths that are 0, odd or huge",
    "llama.cpp throws or asserts while loading, on the calling thread: ModelFormatError",
)
def hyperparameters_out_of_range(w: World) -> None:
    for key in (
        "block_count", "embedding_length", "attention__head_count", "attention__head_count_kv",
        "attention__key_length",
        "attention__value_length", "feed_forward_length", "context_length", "expert_count", "expert_used_count",
        "attention__sliding_window", "vocab_size", "rope__dimension_count", "pooling_type", "nextn_predict_layers",
    ):  # fmt: skip
        for value in (0, 1, 3, 255, 513, 2**16, 2**31 - 1, 2**31, 2**32 - 1):
            refused(w, changed(w, **{f"llama__{key}": value}))
        refused(w, changed(w, **{f"llama__{key}": [value, 2, 3]}))
        refused(w, changed(w, **{f"llama__{key}": b"text"}))
    w.works(w.context())


@hazard(
    "llama_hparams::n_rot, ggml_compute_forward_rope",
    "rotated dimensions: none (reads past the end), odd, more than a key has",
    "model_check.cpp: check_numbers",
)
def rope_dimensions_out_of_range(w: World) -> None:
    for n in (0, 3, 65, 128, 2**31):
        with w.refuses(errors.ModelFormatError, "rotates"):
            Model(changed(w, "swa", gemma3__rope__dimension_count=n))
    with (
        Model(changed(w, "swa", gemma3__rope__dimension_count=32)) as model,
        Context(model, n_ctx=64, n_threads=1) as ctx,
    ):
        ctx.decode(rows())


@hazard(
    "load_arch_tensors of phimoe, olmo2, mamba2",
    "counts that the loader divides by, of 0 or absent (SIGFPE)",
    "gguf.check_metadata",
)
def divisions_by_zero_while_loading(w: World) -> None:
    for arch in (b"phimoe", b"olmo2"):
        image = read_image(w.path())
        keys = {
            arch + key[5:] if key.startswith(b"llama.") else key: value for key, value in image.keys.items()
        }
        keys[b"general.architecture"] = Value(8, arch)
        for count in (0, None, [0, 0]):
            keys[arch + b".attention.head_count"] = (
                as_value(count) if count is not None else Value(8, b"none")
            )
            path = w.folder / "divided.gguf"
            path.write_bytes(Image(keys, image.tensors).to_bytes())
            with w.refuses(errors.ModelFormatError, "head_count"):
                Model(path)
    image = read_image(w.path("mamba"))
    for name in (b".ssm.group_count", b".ssm.time_step_rank"):
        keys = {
            b"mamba2" + key[5:] if key.startswith(b"mamba.") else key: value
            for key, value in image.keys.items()
        }
        keys |= {b"general.architecture": Value(8, b"mamba2"), b"mamba2" + name: as_value(0)}
        path = w.folder / "divided.gguf"
        path.write_bytes(Image(keys, image.tensors).to_bytes())
        with w.refuses(errors.ModelFormatError, name.decode()[1:]):
            Model(path)


@hazard(
    "ggml_compute_forward_rope",
    "a model with sections of rotated dimensions that are all 0: asserted on a worker thread",
    "model_check.cpp: check_numbers",
)
def rope_without_sections(w: World) -> None:
    image = read_image(w.path())
    keys = {
        b"paddleocr" + key[5:] if key.startswith(b"llama.") else key: value
        for key, value in image.keys.items()
    }
    keys[b"general.architecture"] = Value(8, b"paddleocr")
    path = w.folder / "sections.gguf"
    for sections in ([0, 0, 0, 0], [0, 0, 0, 5], [-1, 0, 0, 0]):
        keys[b"paddleocr.rope.dimension_sections"] = Value(9, sections, 5)
        path.write_bytes(Image(keys, image.tensors).to_bytes())
        with w.refuses(errors.ModelFormatError, "sections"):
            Model(path)
    keys[b"paddleocr.rope.dimension_sections"] = Value(9, [16, 8, 8, 0], 5)
    path.write_bytes(Image(keys, image.tensors).to_bytes())
    with Model(path) as model, Context(model, n_ctx=64, n_threads=2) as ctx:
        ctx.decode(rows())


@hazard(
    "ggml_compute_forward_rms_norm, ggml_compute_forward_norm",
    "an epsilon below 0, NaN or infinite: asserted on a worker thread",
    "model_check.cpp: check_numbers",
)
def epsilons_out_of_range(w: World) -> None:
    for kind, key in (
        ("llama", "llama__attention__layer_norm_rms_epsilon"),
        ("bert", "bert__attention__layer_norm_epsilon"),
    ):
        for value in (-1.0, float("nan"), float("inf"), -float("inf")):
            with w.refuses(errors.ModelFormatError, "epsilon"):
                Model(changed(w, kind, **{key: value}))
    refused(w, changed(w, llama__attention__layer_norm_rms_epsilon=0.0))


@hazard(
    "ggml_compute_forward_mul_mat",
    "weights of a type that nothing computes with (SIGSEGV: no vec_dot)",
    "model_check.cpp: check_tensors",
)
def weights_of_types_without_kernels(w: World) -> None:
    for kind in (24, 25, 26, 27, 28, 9):  # i8, i16, i32, i64, f64, q8_1
        for name, shape in (("blk.0.attn_q.weight", (64, 256)), ("output.weight", (64, 548))):
            with w.refuses(errors.ModelFormatError, name):
                Model(changed(w, tensors={name: (shape, kind)}))
    refused(w, changed(w, tensors={"blk.0.attn_q.weight": ((64, 256), 1)}))


@hazard(
    "binary_op",
    "norms and biases that are not f32: asserted on a worker thread",
    "model_check.cpp: check_tensors",
)
def norms_of_other_types(w: World) -> None:
    for kind in (1, 30, 8, 2):  # f16, bf16, q8_0, q4_0
        with w.refuses(errors.ModelFormatError, "attn_norm"):
            Model(changed(w, tensors={"blk.1.attn_norm.weight": ((64,), kind)}))
    for name, shape in (("blk.0.attn_q.bias", (64,)), ("token_embd_norm.weight", (64,))):
        with w.refuses(errors.ModelFormatError, name):
            Model(changed(w, "bert", tensors={name: (shape, 1)}))
    for name, shape in (
        ("blk.0.ssm_a", (16, 128)),
        ("blk.0.ssm_d", (128,)),
        ("blk.0.ssm_conv1d.weight", (4, 128)),
    ):
        with w.refuses(errors.ModelFormatError, name):
            Model(changed(w, "mamba", tensors={name: (shape, 1)}))


@hazard(
    "llama_model_loader::check_tensor_dims, create_tensor",
    "tensors that are missing, or of another shape",
    "llama.cpp throws: ModelFormatError",
)
def tensors_missing_or_of_another_shape(w: World) -> None:
    for name in ("blk.0.attn_q.weight", "token_embd.weight", "output_norm.weight"):
        with w.refuses(errors.ModelFormatError, "llama.cpp cannot load"):
            Model(changed(w, tensors={name: None}))
    for shape in ((64, 255), (65, 256), (256, 64), (64,), (64, 256, 2), (1, 1)):
        with w.refuses(errors.ModelFormatError, "llama.cpp cannot load"):
            Model(changed(w, tensors={"blk.0.attn_q.weight": (shape, 0)}))


@hazard(
    "llama_vocab::impl::load",
    "token lists, scores, types and merges of the wrong length or type, or with duplicates",
    "llama.cpp throws or asserts while loading: ModelFormatError",
)
def vocabularies_that_do_not_fit(w: World) -> None:
    tokens = read_image(w.path()).keys[b"tokenizer.ggml.tokens"].data
    bad = {
        "tokens": ([], [b"a"], tokens[:-1], [*tokens, b"new"], [b""] * len(tokens), [1, 2], b"text", 5, None),
        "scores": ([], [1], b"text", None, 7), "token_type": ([], [1], [99] * len(tokens), [-1] * len(tokens),
        b"x", None),
        "model": (b"", b"none", b"gpt2", b"t5", b"rwkv", b"plamo2", b"bert", b"no_vocab", 7, None),
        "merges": ([b""], [b"a"], [b" "], [b"a b c"], 5), "pre": (b"", b"no-such", 7),
        "bos_token_id": (548, 2**31, 2**32 - 1, b"x"), "eos_token_id": (548, 2**31), "add_bos_token": (7, b"x"),
        "suppress_tokens": ([-1, 548, 2**31 - 1], [b"x"]),
    }  # fmt: skip
    for key, values in bad.items():
        for value in values:
            path = changed(w, **{f"tokenizer__ggml__{key}": value})
            for vocab_only in (False, True):
                try:
                    with Model(path, vocab_only=vocab_only) as model:
                        ids = model.vocab.tokenize(
                            "Hello the world\n\t\0x".replace("\0", ""), parse_special=True
                        )
                        model.vocab.detokenize(ids, unparse_special=True)
                except errors.LlamaRunnerError as error:
                    assert "unusable" not in str(error)


@hazard(
    "llm_tokenizer_rwkv_session::tokenize",
    "an RWKV vocabulary without a token for a byte that others begin with: no end, no bound",
    "gguf.check_vocabulary",
)
def rwkv_without_single_bytes(w: World) -> None:
    whole = [bytes([b]) if b not in b"\\\r\n\t" and 32 <= b < 127 else b"\\x%02x" % b for b in range(256)]
    for tokens, word in (
        ([*whole[:97], *whole[98:], b"ab"], "0x61"),
        ([b"\\n\\n", b"a"], "0xa"),
        ([], "no tokens"),
    ):
        keys = {f"tokenizer__ggml__{name}": None for name in ("scores", "token_type", "merges", "pre")}
        path = changed(w, **keys, tokenizer__ggml__model=b"rwkv", tokenizer__ggml__tokens=Value(9, tokens, 8))
        for vocab_only in (False, True):
            with w.refuses(errors.ModelFormatError, word):
                Model(path, vocab_only=vocab_only)
    sound = changed(w, tokenizer__ggml__model=b"rwkv", tokenizer__ggml__tokens=[*whole, b"ab"],
    tokenizer__ggml__scores=None,
                    tokenizer__ggml__token_type=None)  # fmt: skip
    with Model(sound, vocab_only=True) as model:
        assert len(model.vocab.tokenize("abc")) == 2


@hazard(
    "naive_trie, llama_vocab::byte_to_token",
    "text for which the vocabulary has no byte tokens (std::out_of_range)",
    "Vocab.tokenize",
)
def text_that_the_vocabulary_cannot_spell(w: World) -> None:
    tokens = [
        t if not t.startswith(b"<0x") else b"byte" + t
        for t in read_image(w.path()).keys[b"tokenizer.ggml.tokens"].data
    ]
    with Model(changed(w, tokenizer__ggml__tokens=tokens)) as model:
        with w.refuses(errors.ModelCapabilityError, "no token"):
            model.vocab.tokenize("\u00e9\U0001f600\x01")
        assert len(model.vocab.tokenize("the world", parse_special=True)) > 1


@hazard(
    "llama_vocab::impl::is_normal, token_get_text, tokenize, detokenize",
    "any call on a vocabulary of type none (abort)",
    "Vocab.check_open",
)
def calls_on_a_model_without_vocabulary(w: World) -> None:
    keys = {f"tokenizer__ggml__{name}": None for name in ("tokens", "scores", "token_type", "merges", "pre")}
    with Model(changed(w, **keys, tokenizer__ggml__model=b"no_vocab", llama__vocab_size=548)) as model:
        vocab = model.vocab
        for call in (
            lambda: vocab.tokenize("a"), lambda: vocab.detokenize([1]), lambda: vocab.token_to_piece(1),
            lambda: vocab.is_eog(1), lambda: vocab.is_control(1), lambda: vocab.text(1), lambda: vocab.score(1),
            lambda: vocab.attr(1), lambda: vocab.bos, lambda: vocab.nl, lambda: vocab.eog_tokens,
            lambda: vocab.add_bos,
        ):  # fmt: skip
            with w.refuses(errors.ModelCapabilityError, "no vocabulary"):
                call()
        with Context(model, n_ctx=64, n_threads=1) as ctx:
            ctx.decode(rows())
            assert np.isfinite(ctx.logits()).all()


@hazard(
    "llama_vocab::get_token_data, token_get_text, token_get_score, token_to_piece, llama_vocab_is_control",
    "a token id out of range: exceptions, and a SIGSEGV in is_control",
    "Vocab.check_token, as_tokens",
)
def token_ids_out_of_range(w: World) -> None:
    vocab = w.model().vocab
    for token in (-1, 548, 2**31 - 1, -(2**31), 2**40):
        for call in (
            lambda t=token: vocab.token_to_piece(t), lambda t=token: vocab.is_eog(t),
            lambda t=token: vocab.is_control(t),
            lambda t=token: vocab.text(t), lambda t=token: vocab.score(t), lambda t=token: vocab.attr(t),
            lambda t=token: vocab.detokenize([t]), lambda t=token: vocab.detokenize_bytes([1, t]),
        ):  # fmt: skip
            try:
                call()
            except (errors.IndexOutOfRangeError, errors.InvalidArgumentError, errors.ArgumentTypeError):
                continue
            raise AssertionError(f"token {token} is accepted")
    assert vocab.text(300)


@hazard(
    "llama_vocab::impl::tokenize, llama_tokenize",
    "a negative length, NULL, 2 GiB, NUL, surrogates",
    "Vocab.tokenize, check_text",
)
def text_that_is_no_text(w: World) -> None:
    vocab = w.model().vocab
    for bad in ("a\0b", "\ud800", b"\xff"):
        with w.refuses(errors.InvalidArgumentError):
            vocab.tokenize(bad)
    for bad in (None, 5, ["a"]):
        with w.refuses(errors.ArgumentTypeError):
            vocab.tokenize(bad)
    assert len(vocab.tokenize("")) <= 1
    assert vocab.detokenize([]) == ""


@hazard(
    "llama_model_load_from_file_impl, llama_model_loader",
    "a path that is NULL, empty, a folder, absent, of another format, cut off",
    "check_path, read_gguf_header",
)
def files_that_are_no_models(w: World) -> None:
    whole = w.path().read_bytes()
    bad = w.folder / "bad.gguf"
    for content in (
        b"",
        b"GGUF",
        b"GGUF\3\0\0\0",
        whole[:100],
        whole[: len(whole) // 2],
        whole[:-1],
        b"x" * 1000,
    ):
        bad.write_bytes(content)
        with w.refuses(errors.ModelFormatError):
            Model(bad)
    for path in ("", w.folder, w.folder / "absent.gguf"):
        with w.refuses(errors.ModelNotFoundError):
            Model(path)
    with w.refuses(errors.InvalidArgumentError, "NUL"):
        Model("a\0b")
    with w.refuses(errors.ArgumentTypeError):
        Model(None)
    w.works(w.context())


@hazard(
    "gguf_init_from_file",
    "string and array lengths of 2**63, counts of keys and tensors beyond the file",
    "gguf.reader: before llama.cpp opens the file",
)
def lengths_beyond_the_file(w: World) -> None:
    import struct

    whole = w.path().read_bytes()
    bad = w.folder / "bad.gguf"
    for offset in (*range(8, 25, 8), *range(24, 2000, 7)):
        for edge in (2**31, 2**63 - 1, 2**63, 2**64 - 1):
            bad.write_bytes(whole[:offset] + struct.pack("<Q", edge) + whole[offset + 8 :])
            try:
                Model(bad, vocab_only=True).close()
            except errors.LlamaRunnerError:
                pass
    w.works(w.context())


@hazard(
    "llama_model_loader::load_all_data, llama_mmap",
    "a file that shrinks between the check and the load (SIGBUS when mapped)",
    "read_gguf_header checks the size; not after that: docs/limits.md",
)
def file_that_is_cut_before_loading(w: World) -> None:
    path = changed(w)
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - 4096)
    with w.refuses(errors.ModelFormatError, "truncated"):
        Model(path)


@hazard("llama_prepare_model_devices", "a GPU or a split mode that does not exist", "Model.__init__")
def devices_that_do_not_exist(w: World) -> None:
    for options in (
        {"main_gpu": -1},
        {"main_gpu": 2**31},
        {"split_mode": "tensor!"},
        {"split_mode": 99},
        {"n_gpu_layers": -2},
    ):
        with w.refuses(errors.InvalidArgumentError):
            Model(w.path(), **options)
    Model(w.path(), n_gpu_layers=10**6).close()


@hazard(
    "llama_progress_callback", "a callback that raises, that says no, or that is none", "model.on_progress"
)
def progress_that_fails(w: World) -> None:
    class Mine(BaseException):
        pass

    def raising(_: float) -> None:
        raise Mine

    try:
        Model(w.path(), progress=raising)
    except Mine:
        pass
    else:
        raise AssertionError("the callback's error is lost")
    with w.refuses(errors.LlamaRuntimeError, "cancelled"):
        Model(w.path(), progress=lambda _: False)
    with w.refuses(errors.ArgumentTypeError):
        Model(w.path(), progress=5)
    w.works(w.context())


# ---------------------------------------------------------------------------------------- chat templates


@hazard(
    "common_chat_templates_init, common_chat_templates_apply",
    "templates that do not parse, nest too deep, or divide by zero",
    "_syntax.check_template; exceptions stop in native/chat.cpp",
)
def templates_that_fail(w: World) -> None:
    model = w.model()
    for source in (
        "{{", "{% for %}", "{{ 1/0 }}", "{{ messages[100].x.y }}", "{% if true %}" * 500 + "{% endif %}" * 500,
        "{{" + "(" * 50_000 + "1" + ")" * 50_000 + "}}", "x" * 200_000, "{{ raise_exception('no') }}", "{% endfor %}",
    ):  # fmt: skip
        try:
            ChatTemplate(model, source).apply([{"role": "user", "content": "a"}])
        except errors.InvalidArgumentError:
            pass
    assert ChatTemplate(model).apply([{"role": "user", "content": "a"}])


@hazard(
    "common_chat_templates_init",
    "a template in the model file that is no text, is empty or huge",
    "Model.chat_template, check_template",
)
def templates_in_the_file(w: World) -> None:
    for value in (b"", b"{{", b"\xff\xfe", b"x" * 300_000, b"{% macro a() %}{{ a() }}", 5, [b"a"], None):
        try:
            with Model(changed(w, tokenizer__chat_template=value)) as model:
                ChatTemplate(model).apply([{"role": "user", "content": "a"}])
        except errors.LlamaRunnerError:
            pass


# ---------------------------------------------------------------------------------------- the process


@hazard(
    "ggml_abort",
    "a failed assertion on the calling thread: the last net",
    "runtime.cpp: on_abort; Context.poisoned",
)
def the_last_net(w: World) -> None:

    ctx = w.context()
    ctx._fail_next()
    with w.refuses(errors.DecodeError, "asked for by a test"):
        ctx.decode(rows())
    for call in (lambda: ctx.decode(rows()), ctx.logits, lambda: ctx.memory.seq_rm(0), lambda: ctx.n_threads):
        with w.refuses(errors.LlamaRuntimeError, "failed an assertion"):
            call()
    ctx.close()
    ctx.close()
    w.works(w.context())


@hazard(
    "ggml_graph_compute",
    "a failed assertion while several threads compute: the others wait, and would read what is freed",
    "Context.poison: the context is never freed, its thread computes no more",
)
def the_last_net_among_threads(w: World) -> None:
    import threading

    ctx = w.context(n_threads=2)
    told: list[str] = []

    def work() -> None:
        ctx._fail_next()
        for context in (ctx, other):
            try:
                context.decode(rows())
            except errors.LlamaRuntimeError as error:
                told.append(str(error))

    with w.context() as other:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join()
        assert "asked for by a test" in told[0] and "use another thread" in told[1], told
        ctx.close()
        w.works(other)


@hazard(
    "GOMP_parallel, pthread_mutex_lock",
    "a process that forks while llama.cpp computes, and computes on: it hangs",
    "_native.check_process: ForkedProcessError in the child",
)
def a_fork_in_the_middle(w: World) -> None:
    if sys.platform == "win32":
        return
    ctx = w.fed(n_threads=2)
    child = os.fork()
    if child == 0:
        try:
            for call in (lambda: ctx.decode(rows(1, 8)), lambda: Model(w.path()), ctx.memory.clear):
                with w.refuses(errors.ForkedProcessError, "spawn"):
                    call()
            ctx.close()
            ctx.model.close()
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    w.works(ctx)
