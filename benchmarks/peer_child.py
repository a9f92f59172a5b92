"""One peer and one piece of work, in a process of its own: ``peer_child.py NAME [PROGRAM]``, the work as JSON on stdin.

Needs nothing but the standard library and the peer, so that it runs in any environment that has the peer.
"""

from __future__ import annotations

import contextlib
import json
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

Work = dict[str, Any]
Answer = dict[str, Any]


@contextlib.contextmanager
def spinning(wanted: bool) -> Iterator[None]:
    """A Python thread that computes and never waits."""
    go_on = wanted

    def spin() -> None:
        while go_on:
            pass

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    try:
        yield
    finally:
        go_on = False
        thread.join()


def rate_of_chunks(times: list[float]) -> Answer:
    """Tokens a second after the first, one a chunk."""
    return {"rate": (len(times) - 1) / (times[-1] - times[0])}


class LlamaCppPython:
    """One generation at a time; a prefix that the last one left is reused."""

    def __init__(self, work: Work) -> None:
        import llama_cpp

        self.llm = llama_cpp.Llama(
            work["model"], n_ctx=work.get("n_ctx", 1024), n_batch=2048, n_ubatch=512, n_threads=work["threads"],
            n_threads_batch=work["threads"], verbose=False,
        )  # fmt: skip

    def stream(self, work: Work) -> Answer:
        options = {"top_k": 40, "top_p": 0.95, "min_p": 0.0, "temperature": 0.8, "seed": 1}
        for _ in self.llm.create_completion("Once", max_tokens=4, stream=True, **options):
            pass
        with spinning(work.get("spin", False)):
            chunks = self.llm.create_completion(
                "Once upon a time", max_tokens=work["n"] + 1, stream=True, **options
            )
            return rate_of_chunks([time.perf_counter() for _ in chunks])

    def tokens(self, prompt: list[int], n: int, **options: Any) -> None:
        """Exactly ``n`` tokens and the decodes for them, ends of text included."""
        generated = self.llm.generate(prompt, **options)
        for _ in range(n + 1):
            next(generated)

    def batch(self, work: Work) -> Answer:
        start = time.perf_counter()
        for prompt in work["prompts"]:
            self.tokens(prompt, work["n"], temp=0.0)
        total = sum(len(prompt) + work["n"] for prompt in work["prompts"])
        return {"rate": total / (time.perf_counter() - start)}

    def fork(self, work: Work) -> Answer:
        start = time.perf_counter()
        for _ in range(work["branches"]):
            self.tokens(work["prefix"], work["n"], temp=1.0, top_k=40)
        return {"seconds": time.perf_counter() - start}


class Server:
    """llama-server's HTTP API, wherever it runs."""

    address = ""

    def post(self, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            self.address + "/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        return urllib.request.urlopen(request, timeout=900)

    def complete(
        self, prompt: list[int] | str, n: int, **options: Any
    ) -> tuple[list[int], Answer, list[float]]:
        """Its tokens, its timings, and when each piece of them came."""
        body = {"prompt": prompt, "n_predict": n, "ignore_eos": True, "return_tokens": True, "stream": True}
        tokens: list[int] = []
        times: list[float] = []
        timings: Answer = {}
        with self.post({**body, **options}) as answer:
            for line in answer:
                if not line.startswith(b"data: "):
                    continue
                piece = json.loads(line[6:])
                if piece.get("tokens"):
                    tokens += piece["tokens"]
                    times.append(time.perf_counter())
                timings = piece.get("timings", timings)
        return tokens, timings, times

    def stream(self, work: Work) -> Answer:
        options = {"top_k": 40, "top_p": 0.95, "min_p": 0.0, "temperature": 0.8, "seed": 1}
        self.complete("Once", 4, **options)
        with spinning(work.get("spin", False)):
            return rate_of_chunks(self.complete("A", work["n"] + 1, **options)[2])

    def batch(self, work: Work) -> Answer:
        prompts, n = work["prompts"], work["n"]
        start = time.perf_counter()
        with ThreadPoolExecutor(len(prompts)) as pool:
            outs = list(pool.map(lambda prompt: self.complete(prompt, n + 1, temperature=0), prompts))
        took = time.perf_counter() - start
        assert all(len(tokens) == n + 1 for tokens, _, _ in outs)
        return {"rate": sum(len(prompt) + n for prompt in prompts) / took}

    def fork(self, work: Work) -> Answer:
        """``n_cmpl`` answers of one request, which share its prompt."""
        body = {"prompt": work["prefix"], "n_predict": work["n"] + 1, "n_cmpl": work["branches"]}
        start = time.perf_counter()
        with self.post({**body, "temperature": 1.0, "top_k": 40, "ignore_eos": True}) as answer:
            found = json.load(answer)
        took = time.perf_counter() - start
        assert len(found) == work["branches"]
        return {"seconds": took}

    def agents(self, work: Work) -> Answer:
        histories = [list(work["shared"]) for _ in work["users"]]
        computed, first = 0, []

        def ask(prompt: list[int]) -> tuple[list[int], Answer, float]:
            start = time.perf_counter()
            tokens, timings, times = self.complete(prompt, work["answer"], temperature=0)
            return tokens, timings, times[0] - start

        for turn in range(len(work["users"][0])):
            prompts = [history + users[turn] for history, users in zip(histories, work["users"], strict=True)]
            with ThreadPoolExecutor(work["at_a_time"]) as pool:
                outs = list(pool.map(ask, prompts))
            for i, (tokens, timings, seconds) in enumerate(outs):
                histories[i] = prompts[i] + tokens
                computed += timings["prompt_n"]
                first.append(seconds)
        return {"computed": computed, "first": statistics.median(first)}


def slots(work: Work) -> int:
    """How many sequences the work has at a time."""
    return work.get("branches") or work.get("at_a_time") or len(work.get("prompts", [0]))


class XLlamaCpp(Server):
    """llama-server's loop inside the process; a stream is read there, the rest over its HTTP port."""

    def __init__(self, work: Work) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = work["model"]
        params.n_ctx = work.get("n_ctx", 1024)
        params.n_batch, params.n_ubatch = 2048, 512
        params.n_parallel = slots(work)
        params.kv_unified = True
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = work["threads"]
        params.cache_ram_mib = work.get("host_mib", 256)
        self.server = xllamacpp.Server(params)
        self.address = self.server.listening_address

    def stream(self, work: Work) -> Answer:
        options = {
            "top_k": 40,
            "top_p": 0.95,
            "min_p": 0.0,
            "temperature": 0.8,
            "seed": 1,
            "ignore_eos": True,
        }
        body = {"prompt": "A", "max_tokens": 4, "stream": True, **options}
        self.server.handle_completions(body, lambda chunk: False)
        times: list[float] = []

        def note(chunk: Any) -> bool:
            if "usage" not in chunk:
                times.append(time.perf_counter())
            return False

        with spinning(work.get("spin", False)):
            self.server.handle_completions({**body, "max_tokens": work["n"] + 1}, note)
        return rate_of_chunks(times)


class LlamaServer(Server):
    """The program, over HTTP."""

    def __init__(self, work: Work, program: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [
            program, "-m", work["model"], "-c", work.get("n_ctx", 1024), "-b", 2048, "-ub", 512, "-np", slots(work),
            "-kvu", "-t", work["threads"], "--cache-ram", work.get("host_mib", 256), "--port", port,
        ]  # fmt: skip
        self.process = subprocess.Popen(
            [str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.address = f"http://127.0.0.1:{port}"
        for _ in range(600):
            with (
                contextlib.suppress(urllib.error.URLError, ConnectionError),
                urllib.request.urlopen(self.address + "/health"),
            ):
                return
            time.sleep(0.1)
        self.close()
        raise SystemExit("llama-server does not answer")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


class Cyllama:
    """One generation at a time, from a new context each; how many threads it takes is its own choice."""

    def __init__(self, work: Work) -> None:
        import cyllama

        self.llm = cyllama.LLM(work["model"], n_ctx=work.get("n_ctx", 1024), n_batch=512, seed=1)

    def stream(self, work: Work) -> Answer:
        import cyllama

        options = {"top_k": 40, "top_p": 0.95, "min_p": 0.0, "temperature": 0.8, "seed": 1, "n_ctx": 1024}
        for _ in self.llm("Once", cyllama.GenerationConfig(max_tokens=4, **options), stream=True):
            pass
        with spinning(work.get("spin", False)):
            config = cyllama.GenerationConfig(max_tokens=work["n"] + 1, **options)
            return rate_of_chunks(
                [time.perf_counter() for _ in self.llm("Once upon a time", config, stream=True)]
            )


PEERS = {
    "llama-cpp-python": LlamaCppPython,
    "xllamacpp": XLlamaCpp,
    "cyllama": Cyllama,
    "llama-server": LlamaServer,
}


def main() -> None:
    name, *program = sys.argv[1:]
    work = json.load(sys.stdin)
    kind = PEERS[name]
    if not hasattr(kind, work["work"]):
        answer = {"cannot": "it has no such thing"}
    else:
        peer = kind(work, *program)
        try:
            answer = getattr(peer, work["work"])(work)
        finally:
            if isinstance(peer, LlamaServer):
                peer.close()
    print(json.dumps({"peer": answer}), flush=True)


if __name__ == "__main__":
    main()
