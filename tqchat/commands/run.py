"""``tqchat run``: answers one question on standard output, for scripts, pipes and screen readers."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from tqchat import paths, settings
from tqchat.commands.interruption import Interruption
from tqchat.engine.commands import ChatMessage, Sampling, model_ref
from tqchat.engine.events import Done, Failed, Notice, TextDelta
from tqchat.errors import TqchatError
from tqchat.kv.scheme import AUTO, scheme_setting
from tqchat.terminal import for_data
from tqchat.text import PrintableStream
from tqchat.units import size

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

    from tqchat.engine.events import Event

_SAMPLING = tuple(field.name for field in fields(Sampling))
OPTIONS = (*_SAMPLING, "thinking", "thinking_budget")
"""Settings that ``run`` has an option for."""

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
    adapter: str | None,
    pack_prompts: bool,
    given: dict[str, Any],
    show_thinking: bool,
    as_json: bool,
) -> int:
    """Answer one question on standard output and return the exit code.

    Args:
        given: Values of ``OPTIONS``; ``None`` for those not given.
        show_thinking: Print the reasoning on standard error.

    Raises:
        TqchatError: if the settings, options, model or question are invalid, or generation fails.
        Interrupted: on a signal, after what was generated so far is printed.
    """
    user_settings = settings.load(paths.locate())
    name = scheme_setting(scheme if scheme is not None else user_settings.scheme)
    user_settings = user_settings.with_values(_checked(given))
    messages = [ChatMessage("user", _question(question))]
    if user_settings.system_prompt:
        messages.insert(0, ChatMessage("system", user_settings.system_prompt))

    user_settings = user_settings.with_values(
        {
            "model": model if model is not None else user_settings.model,
            "draft": draft if draft is not None else user_settings.draft,
            "adapter": adapter if adapter is not None else user_settings.adapter,
            "pack_prompts": pack_prompts or user_settings.pack_prompts,
        }
    )
    with Interruption() as interruption:
        events = _events(user_settings, name, messages, interruption.stop)
        done = _print(events, as_json, show_thinking)
        _report(done, as_json)
    return 0


def _report(done: Done, as_json: bool) -> None:
    """Print the figures for ``--json``, or why the reply was cut off."""
    if as_json:
        # ASCII only: safe for terminals and for every encoding.
        print(json.dumps(_summary(done)), file=for_data(sys.stdout))
    elif done.stop_reason in CUT_REASONS:
        before = ", before its answer" if done.reasoning and not done.text.strip() else ""
        print(
            f"tqchat: The reply was cut off after {done.counts.generated} tokens{before}: "
            f"{CUT_REASONS[done.stop_reason]}.",
            file=sys.stderr,
        )


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for every sampling setting."""
    for name in _SAMPLING:
        setting = settings.SETTINGS_BY_NAME[name]
        parser.add_argument(
            _option(name),
            metavar="N",
            type=int if setting.kind == "integer" else float,
            help=setting.help[0].lower() + setting.help[1:].rstrip("."),
        )


def _option(name: str) -> str:
    return f"--{name.replace('thinking', 'think').replace('_', '-')}"


def _events(
    user_settings: settings.Settings, scheme: str, messages: list[ChatMessage], stop: threading.Event
) -> Iterator[Event]:
    # Import MLX (about a second) only after all arguments have been checked.
    from tqchat.engine import models
    from tqchat.engine.logs import log_to
    from tqchat.engine.memory import quality_profile

    loaded = models.load(
        user_settings.model,
        progress=_Download(model_ref(user_settings.model)),
        adapter=user_settings.adapter,
        find_profile=lambda model: quality_profile.find(paths.locate(), model),
    )
    if loaded.info.warning is not None:
        yield Notice(None, loaded.info.warning, "warning")
    draft = None
    if user_settings.draft is not None:
        draft = models.load(user_settings.draft, progress=_Download(user_settings.draft))
    # After models.load, which prepares the backend before MLX is first imported.
    from tqchat.engine.session import Session

    if scheme == AUTO:
        from tqchat.engine.memory import auto_scheme

        choice = auto_scheme.choose_for_model(loaded.info, loaded.profile)
        print(f"tqchat: auto chose {choice.reason}", file=sys.stderr)
        scheme = choice.scheme
    with log_to(paths.locate().log_dir):
        session = Session(loaded, scheme, user_settings.limits, draft)
        session.thinking = user_settings.reasoning
        events = session.send(messages, user_settings.sampling, stop)
        # At a terminal the answer is shown as it comes; what reads a pipe cannot take anything back.
        doubtful = loaded.reply_format.reasons and session.thinking.choice != "off"
        yield from _certain(events) if doubtful and not sys.stdout.isatty() else events


def _certain(events: Iterator[Event]) -> Iterator[Event]:
    """The events of a reply, without text of an answer that may still turn out to be reasoning.

    Some models mark only the end of their reasoning. Text that comes before any reasoning is held back until
    such a mark or the end of the reply.
    """
    held: list[TextDelta] = []
    certain = False
    for event in events:
        match event:
            case TextDelta() if event.part == "reasoning":
                if event.takes_answer:
                    event = replace(event, text="".join(one.text for one in held), takes_answer=False)
                    held.clear()
                certain = True
            case TextDelta() if not certain:
                held.append(event)
                continue
            case Done() | Failed():
                yield from held
                held.clear()
            case _:
                pass
        yield event


class _Download:
    """Download progress, one line per 10 %: readable in logs and by screen readers."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tenths = -1

    def __call__(self, done: int, total: int) -> None:
        tenths = 10 * done // total if total else 10
        if tenths > self._tenths:
            self._tenths = tenths
            print(f"tqchat: Downloading {self._name}: {tenths * 10}% of {size(total)}", file=sys.stderr)


def _print(events: Iterator[Event], as_json: bool, show_thinking: bool) -> Done:
    """Print the answer as it streams, except for JSON; notices go to standard error."""
    stream, thoughts = PrintableStream(), PrintableStream()
    thinking = False
    done: Done | None = None
    for event in events:
        match event:
            case TextDelta() if event.part == "reasoning":
                if event.takes_answer and not as_json:
                    # The text printed so far was reasoning without an opening tag; the answer follows.
                    print(stream.flush())
                if show_thinking and event.text:
                    print(thoughts.feed(event.text), end="", flush=True, file=sys.stderr)
                    thinking = True
            case TextDelta() if not as_json:
                if thinking:
                    print(thoughts.flush(), file=sys.stderr)
                    thinking = False
                print(stream.feed(event.text), end="", flush=True)
            case Notice():
                print(f"tqchat: {event.text}", file=sys.stderr)
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
    if thinking:
        print(thoughts.flush(), file=sys.stderr)
    if not as_json:
        print(stream.flush())
    return done


def _summary(done: Done) -> dict[str, Any]:
    counts = done.counts
    # Only if a draft model was used.
    drafted = {"drafted": counts.drafted, "accepted": counts.accepted} if counts.drafted else {}
    return {
        "reply": done.text,
        "reasoning": done.reasoning,
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


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given.

    Raises:
        BadOption: if one is out of its range.
    """
    given = {key: value for key, value in options.items() if value is not None}
    for key, value in given.items():
        if (allowed := settings.violation(key, value)) is not None:
            raise BadOption(f"{_option(key)} is {value}, but must be {allowed}.")
    return given
