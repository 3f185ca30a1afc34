"""``tqchat api``: answers other programs that speak OpenAI's protocol, by default on this machine only."""

from __future__ import annotations

import argparse
import os
import queue
import sys
from typing import TYPE_CHECKING

from tqchat import paths, settings
from tqchat.api.asked import Defaults
from tqchat.api.options import Options
from tqchat.api.server import STOP_TIMEOUT_S, ApiServer, check_installed
from tqchat.api.usual import TOKEN_VARIABLE
from tqchat.commands.interruption import Interrupted, Interruption, end_process
from tqchat.commands.models.fetching import fetch_if_missing
from tqchat.engine.commands import LoadModel, model_ref
from tqchat.engine.events import Event, ModelFailed, ModelInfo, ModelReady, Notice
from tqchat.engine.requests.options import RequestOptions
from tqchat.errors import TqchatError
from tqchat.kv.scheme import scheme_setting

if TYPE_CHECKING:
    from tqchat.settings import Settings

END_TIMEOUT_S = 10.0
"""Time to save the caches after a signal."""


class ModelUnusable(TqchatError):
    """The model cannot be loaded."""


def main(options: argparse.Namespace) -> int:
    """Serve until a signal comes.

    Raises:
        TqchatError: if an option or a setting is invalid, the model cannot be loaded, or the address cannot
            be listened on.
    """
    locations = paths.locate()
    user_settings = settings.load(locations)
    chosen = scheme_setting(options.scheme or user_settings.scheme)
    server_options = Options(
        lambda: Defaults.of(user_settings, chosen),
        options.host,
        options.port,
        options.token or os.environ.get(TOKEN_VARIABLE) or None,
    )
    check_installed()  # before the model is loaded
    server_options.checked_host()
    locations.ensure()
    try:
        with Interruption(END_TIMEOUT_S) as interruption:
            _serve(options, user_settings, server_options, interruption)
    except Interrupted:
        end_process(0)  # that is how it ends
    return 0


def _serve(
    options: argparse.Namespace, user_settings: Settings, server_options: Options, interruption: Interruption
) -> None:
    from tqchat.engine.memory import quality_profile
    from tqchat.engine.worker import Engine

    locations = paths.locate()
    loading = _Loading()
    model = options.model or user_settings.model
    fetch_if_missing(model_ref(model), interruption.stop)
    engine = Engine(
        loading.take,
        paths=locations,
        cache_budget=user_settings.cache_budget,
        limits=lambda: user_settings.limits,
        draft=options.draft or user_settings.draft,
        adapter=options.adapter or user_settings.adapter,
        find_profile=lambda info: quality_profile.find(locations, info),
        requests=RequestOptions(store=not options.no_store, keep_days=options.keep_days),
    )
    server = ApiServer(engine.ask, lambda: loading.model, server_options)
    address = server.start()
    engine.start()
    engine.submit(LoadModel(model))
    try:
        if (info := loading.wait(interruption)) is not None:
            print(f"tqchat serves {info.label} at {address}\nPress Ctrl+C to stop.", flush=True)
            interruption.stop.wait()
    finally:
        server.stop()
        engine.shutdown(END_TIMEOUT_S - STOP_TIMEOUT_S - 1)


class _Loading:
    """Follows the engine's events until the model is loaded; its notices go to standard error."""

    def __init__(self) -> None:
        self.model: ModelInfo | None = None
        self._ended: queue.SimpleQueue[str] = queue.SimpleQueue()

    def take(self, event: Event) -> None:
        """Take an event of the engine, on its thread."""
        match event:
            case ModelReady(info=info):
                self.model = info
                self._ended.put("")
            case ModelFailed(message=message):
                self._ended.put(message)
            case Notice():
                print(f"tqchat: {event.text}", file=sys.stderr)
            case _:
                pass

    def wait(self, interruption: Interruption) -> ModelInfo | None:
        """Wait until the model is loaded; ``None`` if a signal came first.

        Raises:
            ModelUnusable: if that fails.
        """
        while not interruption.stop.is_set():
            try:
                if problem := self._ended.get(timeout=0.1):
                    raise ModelUnusable(problem)
                return self.model
            except queue.Empty:
                continue
        return None
