"""Answering other programs from the app."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tqchat.api.usual import PORT, TOKEN_VARIABLE
from tqchat.kv.scheme import scheme_setting
from tqchat.ui.actions.registry import Refused
from tqchat.ui.parts.parts import Parts

if TYPE_CHECKING:
    from tqchat.api.desk import Visitor
    from tqchat.api.server import ApiServer

ON, OFF = "on", "off"


async def switch(parts: Parts, argument: str) -> None:
    """Start or stop the server; without an argument start it, or say where it is and who asks.

    Raises:
        Refused: if the argument is neither ``on`` nor ``off``.
        TqchatError: if it cannot be started.
    """
    if argument not in ("", ON, OFF):
        raise Refused(f"/api takes {ON} or {OFF}.")
    if parts.api is None:
        parts.api = server(parts)
    running = parts.api
    if argument == OFF:
        await asyncio.to_thread(running.stop)
        parts.say("Other programs are not answered.")
    elif running.address is None:
        parts.say(f"Other programs are answered at {await asyncio.to_thread(running.start)}.")
    else:
        parts.say(f"Other programs are answered at {running.address}; {_asking(running.who)}")


def server(parts: Parts, port: int = PORT) -> ApiServer:
    """A server that asks the app's engine, on this machine only."""
    from tqchat.api.asked import Defaults
    from tqchat.api.options import Options
    from tqchat.api.server import ApiServer

    options = Options(
        lambda: Defaults.of(parts.settings, scheme_setting(parts.settings.scheme)),
        port=port,
        token=os.environ.get(TOKEN_VARIABLE) or None,
    )
    return ApiServer(parts.engine.ask, lambda: parts.chat.models.current, options)


def choices(parts: Parts) -> Sequence[tuple[str, str]]:
    """Entries of the palette, each with its description."""
    address = None if parts.api is None else parts.api.address
    if parts.api is None or address is None:
        return [(ON, "Answer other programs on this machine, in OpenAI's protocol.")]
    return [(OFF, f"Answering at {address}; {_asking(parts.api.who)}")]


def _asking(who: Sequence[Visitor]) -> str:
    """The requests in progress, as a sentence."""
    if not who:
        return "none asks now."
    one = who[0]
    seconds = max(0, int(time.time() - one.since))
    doing = "is being answered" if one.began else "waits"
    others = f", and {len(who) - 1} more" if len(who) > 1 else ""
    return f"{one.agent or 'a program'} at {one.peer} {doing} ({seconds} s){others}."
