"""Tries message orders and content forms until a template writes all contents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tqchat.engine.commands import ChatMessage
from tqchat.engine.reasoning_marks import Pair, opened_at_end, split_thought
from tqchat.engine.templates.arrangements import (
    ARRANGEMENTS,
    ARRANGEMENTS_WITH_TOOLS,
    Form,
    Messages,
    as_template_messages,
    forms,
)
from tqchat.engine.templates.control_tokens import Disguise
from tqchat.engine.templates.errors import (
    PromptRejected,
    PromptStopped,
    TemplateError,
    TemplateLimit,
    TemplateStopped,
)
from tqchat.engine.templates.finding import ChatTemplate
from tqchat.engine.templates.limits import one_budget
from tqchat.engine.templates.presence import Presence
from tqchat.engine.templates.tool_forms import ToolForms

_LISTS = ("tools", "documents")
"""Template variables that are null in a plain chat."""

_PROBE = "tqchatprobe"
"""Replaces a content, to see whether the template writes it."""


@dataclass(frozen=True)
class _Attempt:
    """Result of one message order and content form.

    Attributes:
        complete: Whether the last user message and the system prompts are in the text (see ``Presence``).
        changed: Whether at least half of the words of each are in it.
        whole: Whether all calls and results are, earlier ones too.
        missing: How many messages are not in the text.
    """

    text: str
    complete: bool
    changed: bool
    whole: bool
    missing: int


class TemplateWriter:
    """Writes transcripts with one template.

    Args:
        variables, began: As for ``ChatTemplate.render``.
        disguise: Escapes control tokens in the contents.
        tools: For chats with tools.
    """

    def __init__(
        self,
        template: ChatTemplate,
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
        began: float | None,
        disguise: Disguise,
        tools: ToolForms | None = None,
    ) -> None:
        self._template = template
        self._add_generation_prompt = add_generation_prompt
        self._variables = variables
        self._began = began
        self._disguise = disguise
        self._tools = tools

    def written(self, messages: Sequence[ChatMessage]) -> str:
        """The prompt's text for the first message order and form that the template writes completely.

        Earlier messages may be missing from it (a template may drop them), but not the last user message or
        the system prompts.

        Raises:
            PromptRejected: if the template refuses all of them, or leaves out those messages.
        """
        try:
            with one_budget():
                try:
                    return self._first_complete(tuple(messages))
                except TemplateLimit:
                    raise
                except TemplateError:
                    if not self._lists_nothing():
                        raise
                return self._first_complete(tuple(messages))
        except TemplateStopped as error:
            raise PromptStopped("The prompt was stopped before it was complete.") from error
        except TemplateError as error:
            reason = str(error).strip().rstrip(".")
            raise PromptRejected(
                f"This model's chat template cannot take the conversation: {reason}; choose another version "
                "of the model."
            ) from error

    def _lists_nothing(self) -> bool:
        """Give the template empty lists, if it reads any, for those that a plain chat does not have.

        Templates that are made only for tools or documents go through them without asking whether there are
        any.
        """
        read: dict[str, Any] = {
            name: [] for name in _LISTS if name in self._template.variables and self._tools is None
        }
        self._variables = {**read, **self._variables}
        return bool(read)

    def _first_complete(self, messages: Messages) -> str:
        opened = self._opened_thought()
        probes = _probes(messages)
        refusal: TemplateError | None = None
        changed: _Attempt | None = None
        seen: set[Messages] = set()
        left_out = False
        second_best: _Attempt | None = None
        for arrange in ARRANGEMENTS if self._tools is None else ARRANGEMENTS_WITH_TOOLS:
            order = arrange(messages)
            if order in seen:
                continue
            seen.add(order)
            best: _Attempt | None = None
            for form in forms(order):
                try:
                    text = self._run(self._disguised(order, opened), form)
                except TemplateLimit:
                    raise
                except TemplateError as error:
                    refusal = refusal or error
                    continue
                attempt = self._judged(messages, text, self._probed(arrange(probes), form), opened)
                left_out |= not attempt.complete
                changed = changed or (attempt if attempt.changed else None)
                if attempt.complete and (best is None or attempt.missing < best.missing):
                    best = attempt
                if best is not None and not best.missing:
                    break
            if best is not None and best.whole:
                return best.text
            second_best = second_best or best
        if (fallback := second_best or changed) is not None:
            return fallback.text
        if left_out or refusal is None:
            raise PromptRejected(
                "This model's chat template leaves out what was said, as text and as a list of parts; "
                "choose another version of the model."
            )
        raise refusal

    def _probed(self, probes: Messages, form: Form) -> str | None:
        """The text with probes for contents; ``None`` if the template refuses them."""
        try:
            return self._run(probes, form).casefold()
        except TemplateLimit:
            raise
        except TemplateError:
            return None

    def _judged(self, messages: Messages, text: str, probed: str | None, opened: Pair | None) -> _Attempt:
        present = Presence(self._disguise.restored(text))
        tools, written = self._tools, [one.content for one in messages]
        if tools is not None:
            written += [tools.text(), *(call.arguments for one in messages for call in one.tool_calls)]
        if present.of_parts_as_code(*written) or (tools and tools.is_written_as_code(messages, text)):
            return _Attempt(text, False, False, False, len(messages))
        passed = [
            probed is None or not one.content.strip() or _probe(n) in probed for n, one in enumerate(messages)
        ]
        last = max((n for n, one in enumerate(messages) if one.role == "user"), default=-1)
        results = [n for n, one in enumerate(messages) if one.role == "tool" or one.tool_calls]
        matters = [n for n, one in enumerate(messages) if one.role == "system" or n == last]
        matters += [n for n in results if n > last]
        calls = [
            probed is None or all(_call_probe(n, k) in probed for k in range(len(one.tool_calls)))
            for n, one in enumerate(messages)
        ]
        called = all(calls[n] for n in matters)
        called = called and (tools is None or all(map(present.of, tools.names)))
        complete = called and all(passed[n] and present.of(messages[n].content) for n in matters)
        return _Attempt(
            text,
            complete=complete,
            changed=complete
            or (called and all(passed[n] and present.of_most(messages[n].content) for n in matters)),
            whole=all(calls[n] and passed[n] for n in results),
            missing=sum(
                not (passed[n] and present.of(_answer(one, opened))) for n, one in enumerate(messages)
            ),
        )

    def _run(self, messages: Sequence[ChatMessage], form: Form) -> str:
        return self._template.render(
            as_template_messages(messages, form, self._tools),
            add_generation_prompt=self._add_generation_prompt,
            variables=self._variables,
            began=self._began,
            tools=self._tools.definitions if self._tools is not None else None,
        )

    def _disguised(self, messages: Messages, opened: Pair | None) -> list[ChatMessage]:
        hidden = []
        for one in messages:
            if one.role == "assistant" and not one.reasoning:
                content = self._disguise.reply(one.content, opened)
            else:
                content = self._disguise.content(one.content)
            hidden.append(replace(one, content=content, reasoning=self._disguise.content(one.reasoning)))
        return hidden

    def _opened_thought(self) -> Pair | None:
        """Marks of the reasoning that the template opens before a reply, if any."""
        for form in forms([ChatMessage("user", _PROBE)]):
            try:
                text = self._template.render(
                    as_template_messages([ChatMessage("user", _PROBE)], form),
                    add_generation_prompt=True,
                    variables=self._variables,
                    began=self._began,
                )
            except TemplateLimit:
                raise
            except TemplateError:
                continue
            if _PROBE in text:
                return opened_at_end(text.rpartition(_PROBE)[2])
        return None


def _probe(number: int) -> str:
    return f"{_PROBE}{number}x"


def _probes(messages: Messages) -> Messages:
    """The messages with each content, and the arguments of each call, replaced by a unique word."""
    return tuple(
        replace(
            one,
            content=_probe(n) if one.content.strip() else one.content,
            reasoning="" if one.content.strip() else one.reasoning,
            tool_calls=tuple(
                replace(call, arguments=f'{{"{_call_probe(n, k)}": 1}}')
                for k, call in enumerate(one.tool_calls)
            ),
        )
        for n, one in enumerate(messages)
    )


def _call_probe(number: int, call: int) -> str:
    return f"{_PROBE}{number}c{call}x"


def _answer(message: ChatMessage, opened: Pair | None) -> str:
    """A message's content without reasoning, which the template may leave out."""
    if message.role != "assistant" or message.reasoning:
        return message.content
    thought = split_thought(message.content, opened)
    return message.content if thought is None else thought[3]
