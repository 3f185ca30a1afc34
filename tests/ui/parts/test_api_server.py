"""The app answers other programs."""

from __future__ import annotations

import re
import threading

from tests.api.client import Answer, Client
from tests.ui.conftest import OpenApp
from tqchat.engine.events import RequestsUpdate, TextDelta
from tqchat.ui.actions.table import ACTIONS
from tqchat.ui.parts import api_server


async def test_the_server_is_started_watched_and_stopped(open_app: OpenApp) -> None:
    async with open_app((180, 45)) as ui:
        ui.app.parts.api = api_server.server(ui.app.parts, port=0)
        await ui.send("/api")
        await ui.shows("Other programs are answered at http://127.0.0.1:")
        assert ui.app.parts.api.address is not None
        client = Client.of(ui.app.parts.api)
        answers: list[Answer] = []
        asking = threading.Thread(target=lambda: answers.append(client.chat("Hi", stream=True)), daemon=True)
        asking.start()
        await ui.until(lambda: bool(ui.engine.tickets))
        ticket = ui.engine.tickets[0]
        ticket.receive(TextDelta(ticket.id, "Hi"))
        await ui.until(lambda: ui.app.parts.api.who[0].began)
        await ui.send("/api")
        await ui.shows("is being answered")
        ui.engine.emit(RequestsUpdate(1, 0, 1, 12_000_000, 48_000_000))
        await ui.shows("other programs")
        choices = ACTIONS["api"].choices
        assert choices is not None
        (choice,) = choices(ui.app.parts)
        assert choice[0] == "off" and re.search(r"Answering at \S+; a program at \S+ is being", choice[1])
        await ui.send("/api off")
        await ui.shows("Other programs are not answered.")
        assert ui.app.parts.api.address is None and ticket.stopped.is_set()
        asking.join()
        assert "stopping" in answers[0].body.decode()
