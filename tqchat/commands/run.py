"""``tqchat run``: answers one question on standard output, for scripts, pipes and screen readers."""

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

CUT_REASONS = {
    "length": "it reached --max-tokens",
    "context": "it reached the model's context limit",
    "memory": "the cache reached its memory budget",
}


class BadQuestion(TqchatError):
    """The question is missing, empty or not text."""

    exit_code = 2


class BadOption(TqchatError):
    """An option's value is out of range."""

    exit_code = 2


class ReplyFailed(TqchatError):
    """Generation failed."""


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
        TqchatError: if the settings, options, model or question are invalid, or generation fails.
    """
    user_settings = settings.load(paths.locate())
    name = scheme_setting(scheme if scheme is not None else user_settings.scheme)
    sampling = _sampling(user_settings.sampling, max_tokens, temperature, seed)
    messages = [ChatMessage("user", _question(question))]
    if user_settings.system_prompt:
        messages.insert(0, ChatMessage("system", user_settings.system_prompt))

    user_settings = user_settings.with_values(
        {
            "model": model if model is not None else user_settings.model,
            "draft": draft if draft is not None else user_settings.draft,
            "pack_prompts": pack_prompts or user_settings.pack_prompts,
        }
    )
    done = _print(_events(user_settings, name, messages, sampling), as_json)
    if as_json:
        # ASCII only: safe for terminals and for every encoding.
        print(json.dumps(_summary(done)))
    elif done.stop_reason in CUT_REASONS:
        print(
            f"tqchat: The reply was cut off after {done.counts.generated} tokens: "
            f"{CUT_REASONS[done.stop_reason]}.",
            file=sys.stderr,
        )
    return 0


def _events(
    user_settings: settings.Settings, scheme: str, messages: list[ChatMessage], sampling: Sampling
) -> Iterator[Event]:
    # Import MLX (about a second) only after all arguments have been checked.
    from tqchat.engine import models
    from tqchat.engine.logs import log_to

    loaded = models.load(user_settings.model, progress=_Download(user_settings.model or STARTER))
    draft = None
    if user_settings.draft is not None:
        draft = models.load(user_settings.draft, progress=_Download(user_settings.draft))
    # After models.load, which prepares the backend before MLX is first imported.
    from tqchat.engine.session import Session

    if scheme == AUTO:
        from tqchat.engine.memory import auto_scheme, quality_profile

        choice = auto_scheme.choose_for_model(loaded.info, quality_profile.find(paths.locate(), loaded.info))
        print(f"tqchat: auto chose {choice.reason}", file=sys.stderr)
        scheme = choice.scheme
    with log_to(paths.locate().log_dir):
        yield from Session(loaded, scheme, user_settings.limits, draft).send(messages, sampling)


class _Download:
    """Download progress, one line per 10 %: readable in logs and by screen readers."""

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
    """Print the reply as it streams (unless for JSON) and notices on standard error."""
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
    # Only if a draft model was used.
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
            raise BadQuestion(
                "The question on standard input is not UTF-8 text; convert it to UTF-8."
            ) from error
    if not question.strip():
        raise BadQuestion('The question is empty; write `tqchat run "question"`.')
    return question.strip("\n")


def _sampling(
    sampling: Sampling, max_tokens: int | None, temperature: float | None, seed: int | None
) -> Sampling:
    options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    for key, value in given.items():
        if (allowed := settings.violation(key, value)) is not None:
            raise BadOption(f"--{key.replace('_', '-')} is {value}, but must be {allowed}.")
    return replace(sampling, **given)
