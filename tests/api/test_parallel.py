"""Clients at the same time, and requests that follow each other at once, also behind a kill."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.api.client import CHAT, Client

TALE = "My name is Ada. Once upon a time there was a dog by the sea. " * 5
CLIENTS = 8

Messages = list[dict[str, Any]]


def turn(client: Client, messages: Messages, tokens: int) -> Any:
    body = {"messages": messages, "max_tokens": tokens, "temperature": 0, "cache_scheme": "turbo4"}
    answer = client.ask("POST", CHAT, body)
    assert answer.status == 200, answer.body
    return answer.json


def cached(answer: Any) -> int:
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


def two_turns(client: Client, number: int) -> tuple[list[str], list[int]]:
    """Texts of two turns, the second asked as soon as the first is answered, and tokens read again."""
    messages: Messages = [{"role": "user", "content": f"{number}. {TALE}"}]
    texts, again, known = [], [], 0
    for _ in range(2):
        answer = turn(client, messages, 24)
        again.append(known - cached(answer))
        known = answer["usage"]["prompt_tokens"]
        reply = answer["choices"][0]["message"]
        texts.append(reply["content"])
        messages += [reply, {"role": "user", "content": "And then?"}]
    return texts, again


def test_clients_at_the_same_time_are_answered_as_alone_and_keep_their_caches(client: Client) -> None:
    with ThreadPoolExecutor(CLIENTS) as clients:
        together = list(clients.map(lambda number: two_turns(client, number), range(CLIENTS)))
    # The last tokens of a prompt are those of the reply's beginning, which the next one has as well.
    assert all(again[1] <= 0 for _, again in together)
    alone = [two_turns(client, number)[0] for number in range(0, CLIENTS, 3)]
    assert [texts for texts, _ in together][::3] == alone


@contextmanager
def served(model: Path) -> Iterator[tuple[Client, subprocess.Popen[str]]]:
    """``tqchat api`` as a process, killed at the end."""
    command = [sys.executable, "-m", "tqchat", "api", "--model", str(model), "--port", "0"]
    with subprocess.Popen(command, env=os.environ.copy(), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = re.search(r"http://127\.0\.0\.1:(\d+)/v1", process.stdout.readline())
            assert address is not None
            yield Client(int(address[1])), process
        finally:
            process.send_signal(signal.SIGKILL)


def test_a_kill_behind_a_reply_costs_no_more_than_its_turn(llama_folder: Path, home: Path) -> None:
    messages: Messages = [{"role": "user", "content": TALE}]
    prompts = []
    with served(llama_folder) as (client, _):
        for _ in range(3):
            answer = turn(client, messages, 12)
            prompts.append(answer["usage"]["prompt_tokens"])
            messages += [answer["choices"][0]["message"], {"role": "user", "content": "And then?"}]
    with served(llama_folder) as (client, _):
        answer = turn(client, messages, 12)
        assert answer["x_tqchat"]["restored_tokens"] == cached(answer) >= prompts[1]
        assert answer["usage"]["prompt_tokens"] > prompts[2]
