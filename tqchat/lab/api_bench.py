"""An agent's session over HTTP: a growing history is sent again at every turn, to ``tqchat api`` and to
mlx-lm's server. Both are killed once in the middle."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from tqchat.errors import TqchatError
from tqchat.lab.bench import timing
from tqchat.lab.bench.results import BenchRow

TURNS = 30
REPLY_TOKENS = 32
WORDS_PER_TOKEN = 0.75
START_TIMEOUT_S = 300.0
REPLY_TIMEOUT_S = 600.0
PEER = "mlx_lm.server"


class ServerFailed(TqchatError):
    """A server did not start, or did not answer."""


@dataclass(frozen=True)
class Turn:
    """One reply: seconds, tokens of the prompt, those of them that were cached, and tokens generated."""

    seconds: float
    prompt: int
    cached: int
    generated: int


@dataclass(frozen=True)
class Replay:
    """A session with one server.

    Attributes:
        resident_bytes: The server's resident memory at the end.
    """

    turns: tuple[Turn, ...]
    resident_bytes: int | None

    def read_again(self) -> list[int]:
        """Of each turn but the first: tokens that were in the history before, and were read once more."""
        return [
            now.prompt - now.cached - max(0, now.prompt - before.prompt - before.generated)
            for before, now in zip(self.turns, self.turns[1:], strict=False)
        ]


def replays(
    folder: Path, schemes: Sequence[str], tokens: int, text: str, tell: Callable[[str], None]
) -> Iterator[BenchRow]:
    """Replay the session against each server: ``tqchat api`` under each scheme, and mlx-lm's.

    Args:
        folder: The model's.
        tokens: Length of the history at the end.

    Raises:
        ServerFailed: if a server does not answer.
    """
    for scheme in schemes:
        tell(f"api, {scheme}")
        yield _row(scheme, tokens, replay(partial(_own, folder, scheme), tokens, text))
    tell(f"api, {PEER}")
    yield _row(PEER, tokens, replay(partial(_peer, folder), tokens, text))


def _row(name: str, tokens: int, found: Replay) -> BenchRow:
    seconds = [turn.seconds for turn in found.turns]
    return BenchRow(
        "api",
        name,
        tokens,
        median(seconds),
        timing.spread(seconds),
        peak_bytes=found.resident_bytes,
        total_s=sum(seconds),
        most_reread=max(found.read_again()),
    )


def replay(command: Callable[[int], list[str]], tokens: int, text: str) -> Replay:
    """Thirty turns; after half of them the server is killed and started again.

    Args:
        command: The command that starts the server at a port.
    """
    words = text.split()
    each = max(8, int((tokens / TURNS - REPLY_TOKENS) * WORDS_PER_TOKEN))
    messages: list[dict[str, str]] = []
    turns: list[Turn] = []
    resident: int | None = None
    with tempfile.TemporaryDirectory(prefix="tqchat-api-") as home:
        for half in (range(TURNS // 2), range(TURNS // 2, TURNS)):
            with _running(command, Path(home)) as (process, port):
                for number in half:
                    start = number * each
                    said = " ".join(words[(start + n) % len(words)] for n in range(each))
                    messages.append({"role": "user", "content": said})
                    turn, reply = _ask(port, messages)
                    turns.append(turn)
                    messages.append({"role": "assistant", "content": reply or "..."})
                resident = _resident_bytes(process.pid)
    return Replay(tuple(turns), resident)


def _own(folder: Path, scheme: str, port: int) -> list[str]:
    command = [sys.executable, "-m", "tqchat", "api", "--model", str(folder), "--scheme", scheme]
    return [*command, "--port", str(port)]


def _peer(folder: Path, port: int) -> list[str]:
    return [sys.executable, "-m", "mlx_lm", "server", "--model", str(folder), "--port", str(port)]


@contextmanager
def _running(
    command: Callable[[int], list[str]], home: Path
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A server that is killed at the end, and its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    environment = {**os.environ, "TQCHAT_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    with (home / "server.log").open("wb") as log:
        process = subprocess.Popen(command(port), env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                last = (home / "server.log").read_text("utf-8", "replace").strip().splitlines()[-1:]
                raise ServerFailed(f"The server did not start: {''.join(last)}")
            time.sleep(0.1)
        yield process, port
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    try:
        return _call(port, "GET", "/health", None, 5.0)[0] == 200
    except OSError:
        return False


def _ask(port: int, messages: list[dict[str, str]]) -> tuple[Turn, str]:
    body = {"messages": messages, "max_tokens": REPLY_TOKENS, "temperature": 0}
    began = time.perf_counter()
    try:
        status, answer = _call(port, "POST", "/v1/chat/completions", body, REPLY_TIMEOUT_S)
    except OSError as error:
        raise ServerFailed(f"The server did not answer ({error}).") from error
    seconds = time.perf_counter() - began
    if status != 200:
        raise ServerFailed(f"The server answered {status}: {str(answer)[:200]}")
    usage = answer["usage"]
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    turn = Turn(seconds, usage["prompt_tokens"], cached, usage["completion_tokens"])
    return turn, answer["choices"][0]["message"].get("content") or ""


def _call(port: int, method: str, path: str, body: Any, timeout: float) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        try:
            return answer.status, json.loads(text)
        except ValueError:
            return answer.status, text
    finally:
        connection.close()


def _resident_bytes(pid: int) -> int | None:
    """Resident memory of a process; ``None`` where the system does not say."""
    result = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True)
    return int(result.stdout) * 1024 if result.stdout.strip().isdigit() else None
