"""A server in OpenAI's form that starts at once, counts words as tokens and always says the same."""

from __future__ import annotations

import argparse
import json
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import takewhile
from pathlib import Path
from typing import Any

REPLY = "two words"


def handler(options: argparse.Namespace) -> type[BaseHTTPRequestHandler]:
    seen = Path(os.environ["TQCHAT_HOME"]) / "seen.txt"
    held = seen.read_text().split() if options.keep and seen.exists() else []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, {})

        def do_POST(self) -> None:
            nonlocal held
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if "messages" not in body:
                self._send(200, {"usage": {"completion_tokens": 2}})
                return
            words = " ".join(message["content"] for message in body["messages"]).split()
            turn = len(body["messages"]) // 2
            if turn == options.stall_at:
                time.sleep(60)
            if turn == options.refuse_at:
                self._send(500, {"error": "no"})
                return
            same = takewhile(lambda pair: pair[0] == pair[1], zip(held, words, strict=False))
            cached = len(list(same))
            held = words + REPLY.split()
            if options.keep:
                seen.write_text(" ".join(held))
            usage = {"prompt_tokens": len(words), "completion_tokens": 2}
            usage["prompt_tokens_details"] = {"cached_tokens": cached}
            answer = {"usage": usage, "choices": [{"message": {"content": REPLY}}]}
            if options.keep:
                answer["x_tqchat"] = {"bytes": len(held), "fp16_bytes": 4 * len(held)}
            self._send(200, answer)

        def _send(self, status: int, answer: dict[str, Any]) -> None:
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--keep", action="store_true", help="remember the history on disk")
    parser.add_argument("--stall-at", type=int, help="do not answer the turn of this number, from 0")
    parser.add_argument("--refuse-at", type=int, help="answer it with an error")
    options = parser.parse_args()
    ThreadingHTTPServer(("127.0.0.1", options.port), handler(options)).serve_forever()
