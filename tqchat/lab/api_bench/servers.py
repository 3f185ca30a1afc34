"""Server processes: started, asked, measured and killed."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqchat.errors import TqchatError
from tqchat.lab.api_bench import footprint
from tqchat.lab.api_bench.footprint import Footprint

START_TIMEOUT_S = 300.0
HOST = "127.0.0.1"
_CACHES = re.compile(r"Prompt Cache: \d+ sequences, ([\d.]+) GB")
"""What mlx-lm's server writes to its log when a request comes."""


class ServerFailed(TqchatError):
    """A server did not start, or did not answer."""


class OutOfTime(ServerFailed):
    """A server did not answer in the time it had."""


@dataclass(frozen=True)
class Kind:
    """A server to be measured.

    Attributes:
        name: As shown in the results.
        command: The command that starts it at a port.
    """

    name: str
    command: Callable[[int], list[str]]


def own(folder: Path, scheme: str) -> Kind:
    """``tqchat api`` with a scheme."""
    command = [sys.executable, "-m", "tqchat", "api", "--model", str(folder), "--scheme", scheme]
    return Kind(scheme, lambda port: [*command, "--port", str(port)])


def peer(folder: Path, preparations: Sequence[str]) -> Kind:
    """mlx-lm's server.

    Args:
        preparations: What ``api_bench.peer`` does for it on this machine, as shown in the results.
    """
    command = [sys.executable, "-m", "tqchat.lab.api_bench.peer", "--model", str(folder)]
    name = " with ".join(filter(None, ("mlx_lm.server", " and ".join(preparations))))
    return Kind(name, lambda port: [*command, "--port", str(port)])


class Server:
    """A server process in a folder of its own, where it keeps its files through restarts."""

    def __init__(self, kind: Kind, home: Path) -> None:
        self.name = kind.name
        self.footprint = Footprint()
        self._command, self._home, self._log = kind.command, home, home / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._card_before: int | None = None

    def start(self) -> None:
        """Start it and wait until it has answered.

        Raises:
            ServerFailed: if it does not.
        """
        with socket.socket() as free:
            free.bind((HOST, 0))
            self._port = int(free.getsockname()[1])
        self._card_before = footprint.card_bytes()
        environment = {**os.environ, "TQCHAT_HOME": str(self._home), "HF_HUB_OFFLINE": "1"}
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                self._command(self._port), env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._process = process
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._is_ready():
            if process.poll() is not None or time.monotonic() > deadline:
                last = self._log.read_text("utf-8", "replace").strip().splitlines()[-1:]
                raise ServerFailed(f"it did not start: {''.join(last)}")
            time.sleep(0.1)
        # mlx-lm's server is ready before its model is loaded.
        self.post("/v1/completions", {"prompt": "Hello", "max_tokens": 1}, deadline - time.monotonic())

    def kill(self) -> None:
        """Kill it, without a chance to save anything."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def measure(self) -> None:
        """Note the memory that it has now."""
        if self._process is not None:
            self.footprint.add(self._process.pid, self._card_before)

    def post(self, path: str, body: dict[str, Any], timeout_s: float) -> Any:
        """The answer to a request, as JSON.

        Raises:
            OutOfTime: if it does not come in time.
            ServerFailed: if it is an error, or there is none.
        """
        try:
            status, answer = self._call("POST", path, body, max(timeout_s, 0.01))
        except TimeoutError as error:
            raise OutOfTime("it did not answer in time") from error
        except (OSError, http.client.HTTPException) as error:
            raise ServerFailed(f"it did not answer ({error or type(error).__name__})") from error
        if status != 200 or not isinstance(answer, dict):
            raise ServerFailed(f"it answered {status}: {str(answer)[:200]}")
        return answer

    def logged_cache_bytes(self) -> int | None:
        """Bytes of the caches that mlx-lm's server holds, which it logs in steps of 10 MB."""
        sizes = _CACHES.findall(self._log.read_text("utf-8", "replace"))
        return int(float(sizes[-1]) * 1e9) if sizes else None

    def _is_ready(self) -> bool:
        try:
            return self._call("GET", "/health", None, 5.0)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def _call(self, method: str, path: str, body: Any, timeout_s: float) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(HOST, self._port, timeout=timeout_s)
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        try:
            return answer.status, json.loads(text)
        except ValueError:
            return answer.status, text
