"""`vllm serve` with the plugin, over HTTP."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.vllm.conftest import environment, told_in

READY_S = 200


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that runs.

    Args:
        port: where it listens.
        log: what it writes.
    """

    port: int
    log: Path

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=100) as answer:
            return answer.read().decode()

    def complete(self, prompt: list[int], tokens: int = 16) -> str:
        body = self.body(prompt, tokens)
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/completions",
            data=body,
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=100) as answer:
            return json.loads(answer.read())["choices"][0]["text"]

    @staticmethod
    def body(prompt: list[int], tokens: int) -> bytes:
        asked: dict[str, Any] = {"model": "tiny", "prompt": prompt, "max_tokens": tokens}
        return json.dumps({**asked, "temperature": 0, "ignore_eos": True}).encode()

    def give_up(self, prompt: list[int], after_s: float) -> None:
        """Ask, and go away before there is an answer."""
        body = self.body(prompt, 16)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        head += "Content-Type: application/json\r\n\r\n"
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(head.encode() + body)
            time.sleep(after_s)

    def told(self) -> list[str]:
        return told_in(self.log.read_text())


def command(model: Path, options: dict[str, Any], port: int) -> list[str]:
    flags: dict[str, object] = {
        "served-model-name": "tiny",
        "port": port,
        "dtype": "float32",
        "max-model-len": 16384,
        "max-num-batched-tokens": 128,  # many steps: a client can go away in the midst of them
        "max-num-seqs": 8,
        "attention-backend": "CUSTOM",
        "additional-config": json.dumps({"sparsefill": options}),
    }
    given = [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    switches = ["--enforce-eager", "--no-enable-prefix-caching"]  # so that all is read again
    return ["vllm", "serve", str(model), *switches, *given]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(model: Path, options: dict[str, Any], log: Path) -> Iterator[Server]:
    port = free_port()
    with log.open("w") as file:
        process = subprocess.Popen(
            command(model, options, port), env=environment(), stdout=file, stderr=file
        )
        server = Server(port=port, log=log)
        try:
            wait_for(server, process)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for(server: Server, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + READY_S
    while time.monotonic() < until:
        assert process.poll() is None, server.log.read_text()
        try:
            server.get("/health")
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise AssertionError(server.log.read_text())


def prompt(tokens: int, seed: int) -> list[int]:
    return [3 + (seed + 7 * i + i * i // 13) % 255 for i in range(tokens)]


@pytest.mark.smoke
def test_a_server_answers_counts_and_bears_clients_that_go_away(model: Path, tmp_path: Path):
    options = {"pattern": "dense", "min_length": 512, "recall_every": 2}
    with serving(model, options, tmp_path / "serve.log") as server:
        asked = [prompt(100, 1), prompt(3000, 2), prompt(700, 3)]
        alone = [server.complete(own) for own in asked]
        assert all(alone)
        assert len(set(alone)) == 3
        with ThreadPoolExecutor(4) as clients:
            gone = clients.submit(server.give_up, prompt(16000, 4), 0.5)
            together = list(clients.map(server.complete, [[*own] for own in asked[::-1]]))[::-1]
            gone.result()
        assert together == alone
        server.complete(prompt(20, 5), tokens=100)  # steps enough that who left is forgotten
        told = [line for line in server.told() if "read sparsely" in line]
        shown = server.get("/metrics")
    lengths = [int(line.split("prompt of ")[1].split()[0]) for line in told]
    given_up = [n for n in lengths if n not in (3000, 700)]
    assert len(given_up) == 1, told
    assert 0 < given_up[0] < 16000  # in mid-prefill
    assert sorted(n for n in lengths if n in (3000, 700)) == [700, 700, 3000, 3000]
    assert f'sparsefill:prompts_total{{path="sparse"}} {len(told)}.0' in shown
    assert 'sparsefill:prompts_total{path="dense"} 3.0' in shown
    assert f"sparsefill:density_count {len(told)}.0" in shown
    assert f"sparsefill:recall_count {len(told) // 2}.0" in shown


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"minlength": 4096}, "no option 'minlength'; use profile, pattern, min_length"),
        (
            {"profile": "smollm2-135m-instruct"},
            "this profile is for a model with layers=30, got layers=2",
        ),
        ({"backend": "cudnn"}, "unknown backend 'cudnn'; use one of"),
        ({"backend": "triton"}, "triton backend"),
    ],
    ids=lambda own: next(iter(own)) if isinstance(own, dict) else "",
)
def test_what_cannot_be_served_keeps_the_server_from_starting(
    options: dict[str, Any], why: str, model: Path
):
    done = subprocess.run(
        command(model, options, free_port()),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode != 0
    [told] = told_in(done.stdout)
    assert told.startswith("sparsefill cannot start: ")
    assert why in told
