"""Native logs: quiet by default, in `logging` on demand, and the last lines on the exception that they explain."""

from __future__ import annotations

import json

from fixtures_models import TinyModelFactory
from hostile.test_leaks import CHILD, child

LISTEN = """
import logging


class Keep(logging.Handler):
    lines = []

    def emit(self, record):
        self.lines.append((record.name, record.levelname, record.getMessage()))


def listen(level):
    log = logging.getLogger("llama_runner.native")
    log.addHandler(Keep())
    log.setLevel(level)


def failing():
    try:
        SamplerChain().grammar(vocab, 'root ::= "a"').accept(vocab.eos)
    except errors.SamplingError as error:
        return str(error)


def unknown(folder):
    from tiny_models import write_unknown_architecture
    try:
        Model(write_unknown_architecture(os.path.join(folder, "unknown.gguf")))
    except errors.UnsupportedModelError as error:
        return [list(error.native_log), str(error)]
"""


def test_a_program_that_asks_for_no_logs_gets_none(tiny_model: TinyModelFactory) -> None:
    done = child(CHILD + "ctx.decode(rows(1, 8))", tiny_model("llama"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_logs_go_to_logging_at_the_level_asked_for(tiny_model: TinyModelFactory) -> None:
    for level, least in (("DEBUG", 50), ("INFO", 20), ("ERROR", 0)):
        code = f'{CHILD}{LISTEN}\nlisten("{level}")\nModel(path).close()\nprint(json.dumps(Keep.lines))'
        done = child(code, tiny_model("llama"))
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        lines = json.loads(done.stdout)
        assert len(lines) >= least
        assert bool(lines) == bool(least)
        assert {name for name, _, _ in lines} <= {"llama_runner.native"}
        assert not any(message.endswith("\n") for _, _, message in lines)


def test_the_last_lines_ride_on_the_exception(tiny_model: TinyModelFactory, tmp_path: object) -> None:
    code = f"{CHILD}{LISTEN}\nprint(json.dumps(unknown(sys.argv[2])))"
    done = child(code, tiny_model("llama"), tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    lines, text = json.loads(done.stdout)
    assert any("unknown model architecture" in line for line in lines)
    assert all(line in text for line in lines)
    assert len(lines) <= 8


def test_each_thread_gets_the_lines_that_it_caused(tiny_model: TinyModelFactory, tmp_path: object) -> None:
    # four threads fail in two ways and pass each other's lines on to logging meanwhile
    code = f"""{CHILD}{LISTEN}
import threading
listen("INFO")
unknown(sys.argv[2])
wrong = []


def work(i):
    for _ in range(40):
        if i % 2:
            try:
                Model(os.path.join(sys.argv[2], "unknown.gguf"))
            except errors.UnsupportedModelError as error:
                if not any("architecture" in line for line in error.native_log):
                    wrong.append(str(error))
        else:
            try:
                Model(path, progress=lambda _: False)
                ctx.logits(99)
            except errors.LlamaRunnerError as error:
                if any("architecture" in line for line in error.native_log):
                    wrong.append(str(error))


threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
for t in threads: t.start()
for t in threads: t.join()
print(json.dumps(wrong))
"""
    done = child(code, tiny_model("llama"), tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert json.loads(done.stdout) == []
