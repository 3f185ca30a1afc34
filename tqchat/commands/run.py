"""``tqchat run``: one question, one reply, no screen. For scripts, pipes and screen readers."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tqchat import paths, settings
from tqchat.engine.commands import STARTER, ChatMessage, Sampling
from tqchat.engine.events import Done, Failed, Notice, TextDelta
from tqchat.errors import TqchatError
from tqchat.kv.scheme import AUTO, scheme_setting
from tqchat.text import PrintableStream, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tqchat.engine.events import Event

CUT = {
    "length": "--max-tokens allows no more",
    "context": "the model reads no more",
    "memory": "the cache has reached its memory budget",
}


class BadQuestion(TqchatError):
    """There is nothing to answer."""

    exit_code = 2


class BadOption(TqchatError):
    """An option's value is out of range."""

    exit_code = 2


class ReplyFailed(TqchatError):
    """The reply could not be completed."""


def main(
    question: str | None,
    *,
    model: str | None,
    scheme: str | None,
    draft: str | None,
    pack_prompts: bool,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    as_json: bool,
) -> int:
    """Answer one question on standard output and return the exit code.

    Raises:
        TqchatError: if the settings, the options, the model or the question will not do.
    """
    wishes = settings.load(paths.locate())
    name = scheme_setting(scheme if scheme is not None else wishes.scheme)
    sampling = _sampling(wishes.sampling, max_tokens, temperature, seed)
    messages = [ChatMessage("user", _question(question))]
    if wishes.system_prompt:
        messages.insert(0, ChatMessage("system", wishes.system_prompt))

    wishes = wishes.changed(
        {
            "model": model if model is not None else wishes.model,
            "draft": draft if draft is not None else wishes.draft,
            "pack_prompts": pack_prompts or wishes.pack_prompts,
        }
    )
    done = _print(_events(wishes, name, messages, sampling), as_json)
    if as_json:
        # Escaped to ASCII: nothing in the reply may steer a terminal, nor meet an encoding that lacks it.
        print(json.dumps(_summary(done)))
    elif done.stop_reason in CUT:
        print(
            f"tqchat: The reply was cut at {done.counts.generated} tokens: {CUT[done.stop_reason]}.",
            file=sys.stderr,
        )
    return 0


def _events(
    wishes: settings.Settings, scheme: str, messages: list[ChatMessage], sampling: Sampling
) -> Iterator[Event]:
    # Only here: everything that can be refused was refused before MLX took its second to import.
    from tqchat.engine import models
    from tqchat.engine.logs import log_to

    loaded = models.load(wishes.model, progress=_Download(wishes.model or STARTER))
    draft = None
    if wishes.draft is not None:
        draft = models.load(wishes.draft, progress=_Download(wishes.draft))
    # After the model: loading it prepares the backend, which must come before MLX is first imported.
    from tqchat.engine.session import Session

    if scheme == AUTO:
        from tqchat.engine.memory import auto_scheme, quality_profile

        choice = auto_scheme.choose_for_model(loaded.info, quality_profile.find(paths.locate(), loaded.info))
        print(f"tqchat: auto chose {choice.reason}", file=sys.stderr)
        scheme = choice.scheme
    with log_to(paths.locate().log_dir):
        yield from Session(loaded, scheme, wishes.limits, draft).send(messages, sampling)


class _Download:
    """A line for every tenth of a download: a log or a screen reader has no use for a moving bar."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tenths = -1

    def __call__(self, done: int, total: int) -> None:
        tenths = 10 * done // total if total else 10
        if tenths > self._tenths:
            self._tenths = tenths
            print(
                f"tqchat: Downloading {self._name}: {tenths * 10}% of {total / 1e6:,.0f} MB", file=sys.stderr
            )


def _print(events: Iterator[Event], as_json: bool) -> Done:
    """Show the reply as it comes, unless it is for JSON, and what the user should know on standard error."""
    stream = PrintableStream()
    done: Done | None = None
    for event in events:
        match event:
            case TextDelta() if not as_json:
                print(stream.feed(event.text), end="", flush=True)
            case Notice():
                print(f"tqchat: {printable(event.text)}", file=sys.stderr)
            case Failed():
                if event.text and not as_json:
                    print(stream.flush())
                raise ReplyFailed(event.message)
            case Done():
                done = event
            case _:
                pass
    if done is None:
        raise ReplyFailed("The model ended without a reply; try again.")
    if not as_json:
        print(stream.flush())
    return done


def _summary(done: Done) -> dict[str, Any]:
    counts = done.counts
    # Only where a draft model was at work: without one there is nothing to tell.
    drafted = {"drafted": counts.drafted, "accepted": counts.accepted} if counts.drafted else {}
    return {
        "reply": done.text,
        "model": done.model,
        "scheme": done.scheme,
        "tokens": {
            "prompt": counts.prompt,
            "restored": counts.restored,
            "prefilled": counts.prefilled,
            "generated": counts.generated,
            **drafted,
        },
        "speed": {
            "prompt_tok_s": round(done.prompt_tokens_per_second, 2),
            "decode_tok_s": round(done.decode_tokens_per_second, 2),
        },
        "memory": done.report.to_json(),
    }


def _question(question: str | None) -> str:
    if question is None or question == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise BadQuestion('There is no question; write `tqchat run "question"` or pipe one in.')
        try:
            question = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadQuestion("The question on standard input is not UTF-8 text.") from error
    if not question.strip():
        raise BadQuestion("The question is empty.")
    return question.strip("\n")


def _sampling(
    sampling: Sampling, max_tokens: int | None, temperature: float | None, seed: int | None
) -> Sampling:
    options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    for key, value in given.items():
        if (allowed := settings.allowed(key, value)) is not None:
            raise BadOption(f"--{key.replace('_', '-')} is {value}, but must be {allowed}.")
    return replace(sampling, **given)
