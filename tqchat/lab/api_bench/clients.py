"""Several clients that ask one server at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tqchat.lab.api_bench.servers import Server, ServerFailed

CLIENTS = (1, 8)
PROMPT_TOKENS = 100
REPLY_TOKENS = 64
LIMIT_S = 300.0


def seconds_per_token(server: Server, prompts: Sequence[str]) -> float:
    """Send each prompt from a client of its own: seconds until all have ended, by tokens generated in all.

    The prompts are texts to be continued, so that a model that says little in a chat does not end at once.

    Raises:
        ServerFailed: if one is not answered.
    """

    def ask(prompt: str) -> Any:
        body = {"prompt": prompt, "max_tokens": REPLY_TOKENS, "temperature": 0}
        return server.post("/v1/completions", body, LIMIT_S)

    with ThreadPoolExecutor(len(prompts)) as clients:
        began = time.perf_counter()
        answers = list(clients.map(ask, prompts))
        seconds = time.perf_counter() - began
    generated = sum(int(answer["usage"]["completion_tokens"]) for answer in answers)
    if not generated:
        raise ServerFailed("it generated no tokens")
    return seconds / generated
