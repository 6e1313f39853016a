"""Servers of vLLM with the plugin, and clients of them."""

from __future__ import annotations

import json
import math
import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.vllm.conftest import environment, told_in

READY_S = 300
PATIENCE_S = 900  # of a client among many on a slow machine
LIKELIEST = 5  # tokens whose log-probabilities an answer tells


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a server answered.

    Args:
        tokens: as `token_id:7`.
        likeliest: of each place, tokens and their log-probabilities.
        took_s: until all of it was there.
    """

    tokens: list[str]
    likeliest: list[dict[str, float]]
    took_s: float

    def strays_from(self, other: Answer) -> float:
        """Tell how much less likely another answer's place makes the first token that differs.

        In nats; 0 if all tokens are the same. Two tokens that are alike but for rounding may change
        places; what comes after them says nothing.
        """
        for place, token in enumerate(self.tokens):
            if token != other.tokens[place]:
                seen = other.likeliest[place]
                return seen[other.tokens[place]] - seen.get(token, -math.inf)
        return 0.0

    def apart_at_first(self, other: Answer) -> float:
        """Return how far the log-probabilities of the first token are apart, at most, in nats."""
        own, seen = self.likeliest[0], other.likeliest[0]
        both = own.keys() & seen.keys()
        return max((abs(own[token] - seen[token]) for token in both), default=math.inf)


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that runs.

    Args:
        port: where it listens.
        log: what it writes.
        process: its first process.
    """

    port: int
    log: Path
    process: subprocess.Popen[bytes]

    def get(self, path: str) -> str:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self.port}{path}", timeout=PATIENCE_S
        ) as answer:
            return answer.read().decode()

    def ask(self, prompt: list[int], tokens: int = 16) -> Answer:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/completions",
            data=self.body(prompt, tokens),
            headers={"Content-Type": "application/json"},
        )
        started = time.perf_counter()
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            found = json.loads(answer.read())["choices"][0]["logprobs"]
        took_s = time.perf_counter() - started
        return Answer(tokens=found["tokens"], likeliest=found["top_logprobs"], took_s=took_s)

    @staticmethod
    def body(prompt: list[int], tokens: int) -> bytes:
        asked: dict[str, Any] = {"model": "served", "prompt": prompt, "max_tokens": tokens}
        asked |= {"logprobs": LIKELIEST, "return_tokens_as_token_ids": True}
        return json.dumps({**asked, "temperature": 0, "ignore_eos": True}).encode()

    @contextmanager
    def asking(self, prompt: list[int]) -> Iterator[None]:
        """Ask, and go away when the block ends, whether or not there is an answer."""
        body = self.body(prompt, 16)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        head += "Content-Type: application/json\r\n\r\n"
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(head.encode() + body)
            yield

    def wait_until_reading(self) -> None:
        """Wait until some request is in a step."""
        until = time.monotonic() + 60
        while not re.search(r"^vllm:num_requests_running\S* [1-9]", self.get("/metrics"), re.M):
            assert time.monotonic() < until

    def told(self) -> list[str]:
        """Return what the plugin said."""
        return told_in(self.log.read_text())

    def prompts_read(self) -> list[int]:
        """Return the lengths of the prompts that the log calls read sparsely."""
        told = [line for line in self.told() if "read sparsely in" in line]
        return [int(line.split("prompt of ")[1].split()[0]) for line in told]

    def memory(self) -> int:
        """Return the bytes that its processes hold."""
        first = psutil.Process(self.process.pid)
        return sum(own.memory_info().rss for own in (first, *first.children(recursive=True)))


def command(model: Path, options: dict[str, Any] | None, port: int, **changed: object) -> list[str]:
    """Write a command line; without options it serves as vLLM comes."""
    flags: dict[str, object] = {
        "served_model_name": "served",
        "port": port,
        "dtype": "float32",
        "max_model_len": 16384,
        "enforce_eager": True,
        "enable_prefix_caching": False,  # so that all is read again
        **changed,
    }
    if options is not None:
        flags["attention_backend"] = "CUSTOM"
        flags["additional_config"] = json.dumps({"sparsefill": options})
    given = []
    for name, own in flags.items():
        flag = name.replace("_", "-")
        if isinstance(own, bool):
            given.append(f"--{flag}" if own else f"--no-{flag}")
        else:
            given += [f"--{flag}", str(own)]
    return ["vllm", "serve", str(model), *given]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(
    model: Path, options: dict[str, Any] | None, log: Path, **changed: object
) -> Iterator[Server]:
    """Serve until the block ends."""
    port = free_port()
    with log.open("w") as file:
        process = subprocess.Popen(
            command(model, options, port, **changed), env=environment(), stdout=file, stderr=file
        )
        server = Server(port=port, log=log, process=process)
        try:
            _wait_for(server)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(server: Server) -> None:
    until = time.monotonic() + READY_S
    while time.monotonic() < until:
        assert server.process.poll() is None, server.log.read_text()
        try:
            server.get("/health")
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise AssertionError(server.log.read_text())
