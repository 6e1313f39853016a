"""Many clients of a server at once, some of which go away."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tests.vllm.server import Answer, Server

CLIENTS = 32
SHORTEST, LONGEST = 64, 8000
LEAVES_EVERY = 20  # one request of so many is given up


@dataclass
class Load:
    """Asks a server from many clients at once, for a time.

    Args:
        prompts: which are asked, drawn at random.
        answers: the prompt of each answer, and the answer.
        given_up: requests whose client went away.
        memory: seconds since the start, and the bytes that the server held.
    """

    server: Server
    prompts: list[list[int]]
    answers: list[tuple[int, Answer]] = field(default_factory=list)
    given_up: int = 0
    memory: list[tuple[float, int]] = field(default_factory=list)

    def run(self, seconds: float) -> None:
        """Ask; an error of any client is raised."""
        started = time.monotonic()
        over = threading.Event()
        with ThreadPoolExecutor(CLIENTS) as clients:
            asking = [clients.submit(self._ask, random.Random(i), over) for i in range(CLIENTS)]
            while (elapsed := time.monotonic() - started) < seconds:
                self.memory.append((elapsed, self.server.memory()))
                time.sleep(min(2, seconds))
                if any(one.done() for one in asking):  # it failed
                    break
            over.set()
            for one in asking:
                one.result()

    def _ask(self, drawn: random.Random, over: threading.Event) -> None:
        while not over.is_set():
            which = drawn.randrange(len(self.prompts))
            if drawn.randrange(LEAVES_EVERY) == 0:
                with self.server.asking(self.prompts[which]):
                    time.sleep(drawn.uniform(0.05, 2))
                self.given_up += 1
            else:
                self.answers.append((which, self.server.ask(self.prompts[which])))

    def growth(self) -> float:
        """Return by what share the server's memory grew from the second fifth to the last."""
        end = self.memory[-1][0]
        early = max(held for at, held in self.memory if end / 5 <= at < 2 * end / 5)
        late = max(held for at, held in self.memory if at >= 4 * end / 5)
        return late / early - 1


def lengths(count: int) -> list[int]:
    """Spread lengths evenly over their logarithm."""
    ratio = LONGEST / SHORTEST
    return [round(SHORTEST * ratio ** (i / (count - 1))) for i in range(count)]
