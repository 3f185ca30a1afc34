"""``tqchat run``: answers one question on standard output, for scripts, pipes and screen readers."""

from __future__ import annotations

import argparse
import json
import sys
import threading
from contextlib import ExitStack, closing
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from tqchat import paths, settings
from tqchat.commands import question
from tqchat.commands.interruption import Interruption
from tqchat.commands.models.fetching import fetch_if_missing
from tqchat.engine.commands import ChatMessage, Sampling, drafting_of, model_ref
from tqchat.engine.events import Done, Failed, Notice, TextDelta
from tqchat.errors import TqchatError
from tqchat.kv.scheme import AUTO, scheme_setting
from tqchat.terminal import for_data
from tqchat.text import PrintableStream

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from tqchat.commands.turn import StoredTurn
    from tqchat.engine.events import Event
    from tqchat.engine.session import Session
    from tqchat.store.database import Conversation

_SAMPLING = tuple(field.name for field in fields(Sampling))
OPTIONS = (*_SAMPLING, "thinking", "thinking_budget")
"""Settings that ``run`` has an option for."""

CUT_REASONS = {
    "length": "it reached --max-tokens",
    "context": "it reached the model's context limit",
    "memory": "the cache reached its memory budget",
}


class BadOption(TqchatError):
    """An option's value is out of range."""

    exit_code = 2


class ReplyFailed(TqchatError):
    """Generation failed."""


def main(options: argparse.Namespace) -> int:
    """Answer one question on standard output and return the exit code.

    Raises:
        TqchatError: if the settings, options, model or question are invalid, or generation fails.
        Interrupted: on a signal, after what was generated so far is printed.
    """
    try:
        return _run(options)
    except TqchatError as error:
        if options.json:
            print(json.dumps({"error": str(error)}), file=for_data(sys.stdout))
        raise


def _run(options: argparse.Namespace) -> int:
    locations = paths.locate()
    user_settings = settings.load(locations)
    chosen = scheme_setting(options.scheme) if options.scheme is not None else None
    given = _checked({name: getattr(options, name) for name in OPTIONS})
    asked = question.read(options.question, options.file)
    with ExitStack() as stack:
        turn: StoredTurn | None = None
        if options.continues or options.conversation is not None:
            # Its import takes a while, and most questions do not need it.
            from tqchat.commands.turn import open_turn

            turn = stack.enter_context(open_turn(locations, options.conversation, user_settings.cache_budget))
            user_settings = _settings_of(turn.conversation, user_settings)
        user_settings = user_settings.with_values(given | _named(options, user_settings))
        request = _Request(user_settings, chosen or user_settings.scheme, asked, turn, options.verbose)
        with Interruption() as interruption, closing(_events(request, interruption.stop)) as events:
            done = _print(events, options.json, options.show_thinking)
            _report(done, options.json, drafting_of(user_settings.draft).is_asked_for)
    return 0


@dataclass(frozen=True)
class _Request:
    """A question with all that its answer depends on.

    Attributes:
        settings: The settings in force: options, the conversation's, the user's.
        turn: The stored conversation that it belongs to; ``None`` for a question of its own.
        verbose: Whether to say which scheme ``auto`` chose.
    """

    settings: settings.Settings
    scheme: str
    question: str
    turn: StoredTurn | None
    verbose: bool


def _settings_of(conversation: Conversation, user: settings.Settings) -> settings.Settings:
    """The settings of a conversation: its own, else the user's."""
    own = {
        "model": _on_this_machine(conversation.model),
        "scheme": conversation.scheme,
        "adapter": conversation.adapter,
        "thinking": conversation.thinking,
        "thinking_budget": conversation.thinking_budget,
    }
    kept = {name: value for name, value in own.items() if value is not None}
    return user.with_values(
        {**kept, **conversation.sampling.given, "system_prompt": conversation.system_prompt}
    )


def _on_this_machine(model: str | None) -> str | None:
    """The model that answered last, unless it would have to be downloaded."""
    from tqchat.engine.hub.resolve import local_folder

    try:
        return model if model is not None and local_folder(model) is not None else None
    except TqchatError:
        return None


def _named(options: argparse.Namespace, user: settings.Settings) -> dict[str, Any]:
    """The settings that have options of other names."""
    named = {name: getattr(options, name) for name in ("model", "draft", "adapter")}
    named["system_prompt"] = options.system
    return {
        **{name: value for name, value in named.items() if value is not None},
        "pack_prompts": options.pack_prompts or user.pack_prompts,
    }


def _report(done: Done, as_json: bool, with_drafts: bool) -> None:
    """Print the figures for ``--json``, or why the reply was cut off.

    Args:
        with_drafts: Whether drafts are part of the figures. Where they come by themselves they are not, so
            that the fields do not depend on what was said.
    """
    if as_json:
        # ASCII only: safe for terminals and for every encoding.
        print(json.dumps(_summary(done, with_drafts)), file=for_data(sys.stdout))
    elif done.stop_reason in CUT_REASONS:
        before = ", before its answer" if done.reasoning and not done.text.strip() else ""
        print(
            f"tqchat: The reply was cut off after {done.counts.generated} tokens{before}: "
            f"{CUT_REASONS[done.stop_reason]}.",
            file=sys.stderr,
        )
    elif done.stop_reason == "stop" and not (done.text.strip() or done.reasoning):
        print("tqchat: The model's reply is empty; ask in other words.", file=sys.stderr)


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


def _events(request: _Request, stop: threading.Event) -> Generator[Event]:
    # Import MLX (about a second) only after all arguments have been checked.
    from tqchat.engine import models
    from tqchat.engine.logs import log_to
    from tqchat.engine.memory import quality_profile

    user_settings, turn = request.settings, request.turn
    fetch_if_missing(model_ref(user_settings.model), stop)
    loaded = models.load(
        user_settings.model,
        adapter=user_settings.adapter,
        find_profile=lambda model: quality_profile.find(paths.locate(), model),
    )
    _tell_of_compilation()
    if loaded.info.warning is not None:
        yield Notice(None, loaded.info.warning, "warning")
    drafting, draft = drafting_of(user_settings.draft), None
    if drafting.model is not None:
        fetch_if_missing(drafting.model, stop)
        draft = models.load(drafting.model)
    # After models.load, which prepares the backend before MLX is first imported.
    from tqchat.engine.decoding import no_draft_reason
    from tqchat.engine.session import Session

    if drafting.is_asked_for and (reason := no_draft_reason(loaded)) is not None:
        yield Notice(None, reason, "warning")
    scheme = request.scheme
    if scheme == AUTO:
        from tqchat.engine.memory import auto_scheme

        choice = auto_scheme.choose_for_model(loaded.info, loaded.profile)
        scheme = choice.scheme
        changed = turn is not None and turn.last_scheme not in (None, scheme)
        if request.verbose or changed:
            print(f"tqchat: auto chose {choice.reason}", file=sys.stderr)
    with log_to(paths.locate().log_dir):
        began = None if turn is None else turn.conversation.began
        session = Session(loaded, scheme, user_settings.limits, draft, began, drafting.lookup)
        session.thinking = user_settings.reasoning
        # At a terminal the answer is shown as it comes; what reads a pipe cannot take anything back.
        doubtful = loaded.reply_format.reasons and session.thinking.choice != "off"
        with closing(_answer(request, session, stop)) as events:
            yield from _certain(events) if doubtful and not sys.stdout.isatty() else events


def _tell_of_compilation() -> None:
    """Say so once if kernels have to be compiled for the reply: the first one takes up to a minute."""
    from tqchat.engine.models import warm_up

    said = threading.Event()

    def say(text: str) -> None:
        if not said.is_set():
            said.set()
            print(f"tqchat: {warm_up.COMPILING} this takes up to a minute.", file=sys.stderr)

    if (folder := warm_up.kernel_folder()) is not None:
        warm_up.KernelWatch(folder, say)


def _answer(request: _Request, session: Session, stop: threading.Event) -> Generator[Event]:
    system_prompt, sampling = request.settings.system_prompt, request.settings.sampling
    if request.turn is None:
        messages = [ChatMessage("user", request.question)]
        if system_prompt:
            messages.insert(0, ChatMessage("system", system_prompt))
        yield from session.send(messages, sampling, stop)
        return
    yield from request.turn.answer(
        session,
        request.question,
        system_prompt,
        stop,
        lambda transcript, vault, name: session.send(transcript, sampling, stop, name, vault=vault),
    )


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
                if thinking:
                    print(thoughts.flush(), file=sys.stderr)
                if not as_json:
                    print(stream.flush(), flush=True)
            case _:
                pass
    if done is None:
        raise ReplyFailed("The model ended without a reply; try again.")
    return done


def _summary(done: Done, with_drafts: bool) -> dict[str, Any]:
    counts = done.counts
    drafted = {"drafted": counts.drafted, "accepted": counts.accepted} if with_drafts else {}
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


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given.

    Raises:
        BadOption: if one is out of its range.
    """
    given = {key: value for key, value in options.items() if value is not None}
    wrong = [
        f"{_option(key)} is {value}, but must be {allowed}."
        for key, value in given.items()
        if (allowed := settings.violation(key, value)) is not None
    ]
    if wrong:
        raise BadOption("\n".join(wrong))
    return given
