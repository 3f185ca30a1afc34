"""The server's default address."""

from __future__ import annotations

LOOPBACK = "127.0.0.1"
PORT = 8044
TOKEN_VARIABLE = "TQCHAT_API_TOKEN"
