"""Loads mutant after mutant, in a process that may die of it: ``gguf_worker.py START STOP SEED FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from fuzz.gguf_mutants import Mutator, read_image
from hostile.runner import limit_memory, work
from llama_runner import errors
from llama_runner.core import Batch, ChatTemplate, Context, Model

SEED, FOLDER = int(sys.argv[3]), Path(sys.argv[4])


def use(path: Path, number: int, vocab_only: bool) -> str:
    """Load, and use what loads: how far it came."""
    with Model(path, vocab_only=vocab_only) as model:
        stage = "loaded"
        model.metadata, model.desc, repr(model)
        try:
            vocab = model.vocab
            ids = vocab.tokenize("Hello, the world! <s>\n\t\u00e9\U0001f600 123", parse_special=True)
            vocab.detokenize(ids, unparse_special=True)
            for token in (*ids[:3].tolist(), len(vocab) - 1):
                vocab.token_to_piece(token, special=True), vocab.attr(token)
            [getattr(vocab, name) for name in ("bos", "eos", "eot", "sep", "nl", "pad", "mask", "eog_tokens")]
            stage = "tokenized"
        except errors.LlamaRunnerError:
            pass
        try:
            ChatTemplate(model).apply([{"role": "user", "content": "a"}])
        except errors.LlamaRunnerError:
            pass
        if vocab_only:
            return stage
        with Context(
            model, n_ctx=64, n_batch=32, n_threads=1 + number % 2, embeddings=not model.has_decoder
        ) as ctx:
            stage = "context"
            batch = Batch(8)
            batch.add_sequence(np.arange(8) % max(1, len(model.vocab)))
            try:
                (ctx.encode if ctx.memory_breakdown["context"] == 0 and model.has_encoder else ctx.decode)(
                    batch
                )
                stage = "decoded"
                ctx.logits()
                ctx.state_seq_get(0)
            except errors.LlamaRunnerError as error:
                if "failed an assertion" in str(error) or "aborted" in str(error):
                    stage = "aborted"
        return stage


def main() -> None:
    limit_memory(4 << 30)
    images = [read_image(path) for path in sorted(FOLDER.glob("base-*.gguf"))]
    mutate = Mutator(images, SEED)
    path = FOLDER / f"mutant-{sys.argv[1]}.gguf"

    def case(number: int) -> str:
        path.write_bytes(mutate(number))
        try:
            return use(path, number, number % 3 == 0)
        except errors.LlamaRunnerError as error:
            return f"{type(error).__name__}{'*' if error.native_log else ''}"
        except Exception as error:
            return f"untyped {type(error).__name__}: {error}"

    work(case, seconds=10)


if __name__ == "__main__":
    main()
