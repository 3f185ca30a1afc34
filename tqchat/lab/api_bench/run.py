"""The measurement: all servers side by side, turn by turn."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median

from tqchat.engine import backend
from tqchat.engine.models import LoadedModel
from tqchat.lab import reading
from tqchat.lab.api_bench import clients, servers
from tqchat.lab.api_bench.clients import CLIENTS
from tqchat.lab.api_bench.replay import REPLY_TOKENS, Replay
from tqchat.lab.api_bench.servers import Kind, Server, ServerFailed
from tqchat.lab.bench import timing
from tqchat.lab.bench.decode import LeaveOut
from tqchat.lab.bench.results import BenchRow
from tqchat.lab.candidates import CannotTakePart

TURNS = 30
CLIENT_ROUNDS = 3
TEMPLATE_TOKENS = 10
"""Tokens that a chat template adds to a message and its reply, about."""
MEMORY_SHARE = 0.6
"""Servers run side by side if their weights take at most this share of the free memory."""


def measure(
    model: LoadedModel,
    schemes: Sequence[str],
    tokens: int,
    text: str,
    tell: Callable[[str], None],
    leave_out: LeaveOut,
) -> Iterator[BenchRow]:
    """Replay the session against ``tqchat api`` under each scheme and mlx-lm's server.

    The servers take turns, so that other load on the machine slows all of them; one by one if memory does not
    suffice for all.

    Args:
        tokens: Length of the history at the end, about.
        text: What the user says.
        leave_out: Called for a server that fails.
    """
    ids = reading.encode(model, text)
    messages = list(_texts(model, ids, max(8, tokens // TURNS - REPLY_TOKENS - TEMPLATE_TOKENS), TURNS))
    machine = backend.prepare()
    kinds = [servers.own(model.folder, scheme) for scheme in schemes]
    widened = machine.name == "cpu" and model.compute == "float32"
    preparations = ["OpenBLAS"] * (machine.blas is not None) + ["float32"] * widened
    kinds.append(servers.peer(model.folder, preparations))
    fits = model.info.weight_bytes * len(kinds) < backend.free_memory() * MEMORY_SHARE
    for group in [kinds] if fits else [[kind] for kind in kinds]:
        prompts = _texts(model, ids, clients.PROMPT_TOKENS)
        yield from side_by_side(group, messages, prompts, tell, leave_out)


def side_by_side(
    kinds: Sequence[Kind],
    messages: Sequence[str],
    prompts: Iterator[str],
    tell: Callable[[str], None],
    leave_out: LeaveOut,
) -> Iterator[BenchRow]:
    """Start servers, let them take turns in rotating order, and ask those that are left from several clients.

    Args:
        messages: What the user says, turn by turn.
        prompts: Short prompts for the clients, without an end.
    """
    with ExitStack() as stack:
        running: list[Replay] = []
        for kind in kinds:
            home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tqchat-api-")))
            server = Server(kind, home)
            stack.callback(server.kill)
            tell(f"api {kind.name} starts")
            try:
                server.start()
            except ServerFailed as error:
                leave_out(kind.name, error)
            else:
                running.append(Replay(server, messages))
        replays = list(running)
        for number in range(len(messages)):
            shift = number % max(1, len(running))
            for replay in running[shift:] + running[:shift]:
                try:
                    turn = replay.take_turn()
                except ServerFailed as error:
                    leave_out(replay.server.name, error)
                    running.remove(replay)
                    continue
                place = f"api {replay.server.name} turn {number + 1} of {len(messages)}"
                if turn is None:
                    tell(f"{place}: time is up")
                    running.remove(replay)
                else:
                    tell(f"{place}: {turn.seconds:.2f} s; {turn.prompt} tokens; {turn.cached} cached")
        yield from (_row(replay) for replay in replays if replay.turns)
        yield from _clients([replay.server for replay in running], prompts, tell, leave_out)


def _row(replay: Replay) -> BenchRow:
    seconds = [turn.seconds for turn in replay.turns]
    reread = replay.read_again()
    footprint = replay.server.footprint
    last = replay.turns[-1]
    restarted = len(reread) > replay.restart > 0
    return BenchRow(
        "api",
        replay.server.name,
        last.prompt + last.generated,
        median(seconds),
        timing.spread(seconds),
        peak_bytes=footprint.peak_bytes,
        total_s=sum(seconds),
        most_reread=max(again for n, again in enumerate(reread) if n != replay.restart or not restarted),
        turns=len(seconds),
        slowest_s=max(seconds),
        restart_s=seconds[replay.restart] if restarted else None,
        restart_reread=reread[replay.restart] if restarted else None,
        resident_bytes=footprint.resident_bytes,
        device_bytes=footprint.device_bytes,
        cache_bytes=replay.cache_bytes,
        fp16_bytes=replay.fp16_bytes,
    )


def _clients(
    running: Sequence[Server], prompts: Iterator[str], tell: Callable[[str], None], leave_out: LeaveOut
) -> Iterator[BenchRow]:
    for number in CLIENTS:
        runs = {
            f"{server.name}, {number} client{'s' * (number > 1)}": partial(
                _seconds_per_token, server, number, prompts
            )
            for server in running
        }
        times = timing.time_interleaved(
            runs, CLIENT_ROUNDS, lambda name: tell(f"api {name.replace(', ', '; ')}"), leave_out
        )
        for name, seconds in times.items():
            each = median(seconds)
            yield BenchRow(
                "api clients", name, clients.PROMPT_TOKENS, each, timing.spread(seconds), tok_s=1 / each
            )


def _seconds_per_token(server: Server, number: int, prompts: Iterator[str]) -> float:
    try:
        return clients.seconds_per_token(server, [next(prompts) for _ in range(number)])
    except ServerFailed as error:
        raise CannotTakePart(str(error)) from error


def _texts(model: LoadedModel, ids: Sequence[int], tokens: int, number: int | None = None) -> Iterator[str]:
    """Pieces of the text of about ``tokens`` tokens, different ones, from its beginning again at its end."""
    for place in count() if number is None else range(number):
        start = place * tokens
        piece = [ids[(start + offset) % len(ids)] for offset in range(tokens)]
        yield str(model.tokenizer.decode(piece, skip_special_tokens=True)).strip()
