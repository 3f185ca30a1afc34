"""From a transcript to the model's tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tqchat.engine.commands import ChatMessage
from tqchat.engine.templates import arrangements
from tqchat.engine.templates.control_tokens import Disguise, control_tokens
from tqchat.engine.templates.errors import PromptRejected, TemplateError
from tqchat.engine.templates.finding import ChatTemplate, chat_template
from tqchat.engine.templates.marks import ReasoningMarks, opened_at_end, split_thought
from tqchat.engine.templates.presence import Presence

PLAIN_STOP = "\nUser:"
"""Where a reply ends for a model without a chat template: it has begun to speak for the person."""

_PROBE = "tqchatprobe"
_PLAIN_NAMES = {"user": "User: ", "assistant": "Assistant: ", "system": ""}


@dataclass(frozen=True)
class Rendered:
    """A prompt's text: with the contents disguised, and what brings them back."""

    disguised: str
    disguise: Disguise

    @property
    def text(self) -> str:
        """The text as the model's template writes it."""
        return self.disguise.restored(self.disguised)


def render(
    tokenizer: Any,
    messages: Sequence[ChatMessage],
    *,
    add_generation_prompt: bool = True,
    variables: Mapping[str, Any] | None = None,
    began: float | None = None,
) -> list[int]:
    """The token ids of a transcript, as the model's chat template writes it.

    The template is given the messages in its role order and its form of content (``arrangements``), and what
    was said must be in the prompt. Contents are ordinary text: only the template writes control tokens. The
    beginning-of-sequence token is there once, if either the template or the tokenizer writes it. A model
    without a template gets ``plain_text``.

    Args:
        tokenizer: mlx-lm's ``TokenizerWrapper``.
        add_generation_prompt: Whether the tokens end where the reply begins.
        variables: What the template is told besides, e.g. ``{"enable_thinking": False}``.
        began: The time that the template's clock shows, as ``wall_clock`` tells it; ``None`` is now.

    Raises:
        PromptRejected: if there is nothing to say, or the template refuses the messages or leaves them out.
    """
    template = chat_template(tokenizer)
    rendered = rendered_text(
        tokenizer, messages, add_generation_prompt=add_generation_prompt, variables=variables, began=began
    )
    return with_bos(tokenizer, encoded(rendered), plain=template is None)


def rendered_text(
    tokenizer: Any,
    messages: Sequence[ChatMessage],
    *,
    add_generation_prompt: bool = True,
    variables: Mapping[str, Any] | None = None,
    began: float | None = None,
) -> Rendered:
    """The text that ``render`` encodes.

    Raises:
        PromptRejected: as ``render`` does.
    """
    if not messages:
        raise PromptRejected("There is no message to answer yet.")
    template = chat_template(tokenizer)
    control = control_tokens(tokenizer, template)
    disguise = Disguise(control, [text for one in messages for text in (one.content, one.reasoning)])
    if template is None:
        disguised = [replace(one, content=disguise.content(one.content)) for one in messages]
        return Rendered(plain_text(disguised, add_generation_prompt), disguise)
    told = {**default_variables(tokenizer), **(variables or {})}
    prompt = _Prompt(template, add_generation_prompt, told, began, disguise)
    return Rendered(prompt.written(messages), disguise)


def encoded(rendered: Rendered) -> list[int]:
    """Token ids of a prompt's text, without what the tokenizer would put around it."""
    return rendered.disguise.encode(rendered.disguised)


def default_variables(tokenizer: Any) -> dict[str, Any]:
    """What mlx-lm tells every template: whether the tokenizer has marks for reasoning."""
    name = getattr(tokenizer, "_thinking_kwarg", None) or "enable_thinking"
    return {name: bool(getattr(tokenizer, "has_thinking", False))}


def plain_text(messages: Sequence[ChatMessage], add_generation_prompt: bool) -> str:
    """The form for models without a chat template: ``User: ...``, ``Assistant: ...``, blank lines between."""
    parts = [_PLAIN_NAMES[one.role] + one.content.strip() for one in messages]
    if add_generation_prompt:
        parts.append("Assistant:")
    return "\n\n".join(parts)


def with_bos(tokenizer: Any, tokens: list[int], plain: bool = False) -> list[int]:
    """The tokens with exactly one beginning-of-sequence token in front, if the template or the tokenizer
    writes one.

    Args:
        plain: Whether there is no template; then whatever else the tokenizer puts in front goes there too.
    """
    bos = getattr(tokenizer, "bos_token_id", None)
    prefix = _own_prefix(tokenizer)
    if plain and tokens[: len(prefix)] != prefix:
        return prefix + tokens
    if bos is None:
        return tokens
    start = 0
    while start < len(tokens) and tokens[start] == bos:
        start += 1
    return [bos, *tokens[start:]] if start or bos in prefix[:1] else tokens


def _own_prefix(tokenizer: Any) -> list[int]:
    """Tokens that the tokenizer puts before a text by itself."""
    bare = list(tokenizer.encode("a", add_special_tokens=False))
    full = list(tokenizer.encode("a"))
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start]
    return []


class _Prompt:
    """One transcript on its way through a template."""

    def __init__(
        self,
        template: ChatTemplate,
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
        began: float | None,
        disguise: Disguise,
    ) -> None:
        self._template = template
        self._add_generation_prompt = add_generation_prompt
        self._variables = variables
        self._began = began
        self._disguise = disguise
        self._opened = self._opens_thought()

    def written(self, messages: Sequence[ChatMessage]) -> str:
        """The template's text for the first arrangement and form that it takes and that has everything in it.

        Raises:
            PromptRejected: if there is none that has the last user message and the system prompt in it.
        """
        refusal: TemplateError | None = None
        best: tuple[int, str] | None = None
        accepted: list[tuple[arrangements.Messages, arrangements.Form, str]] = []
        for order in arrangements.arrangements(messages):
            for form in arrangements.forms(order):
                try:
                    text = self._run(self._disguised(order), form)
                except TemplateError as error:
                    refusal = error
                    continue
                present = Presence(self._disguise.restored(text))
                if present.of_parts_as_code(*(one.content for one in messages)):
                    continue
                accepted.append((order, form, text))
                if not all(present.of(one.content) for one in _what_matters(messages)):
                    continue
                missing = sum(not present.of(self._answer(one)) for one in messages)
                if not missing:
                    return text
                if best is None or missing < best[0]:
                    best = (missing, text)
            if best is not None:
                return best[1]
        for order, form, text in accepted:
            if self._says_it_differently(messages, order, form, text):
                return text
        if refusal is None or accepted:
            raise PromptRejected(
                "This model's chat template leaves out what was said, as text and as a list of parts; "
                "choose another version of the model."
            )
        reason = str(refusal).strip().rstrip(".")
        raise PromptRejected(
            f"This model's chat template cannot take the conversation: {reason}."
        ) from refusal

    def _run(self, messages: Sequence[ChatMessage], form: arrangements.Form) -> str:
        return self._template.render(
            arrangements.as_template_messages(messages, form),
            add_generation_prompt=self._add_generation_prompt,
            variables=self._variables,
            began=self._began,
        )

    def _disguised(self, messages: Sequence[ChatMessage]) -> list[ChatMessage]:
        hidden = []
        for one in messages:
            content = (
                self._disguise.reply(one.content, self._opened)
                if one.role == "assistant" and not one.reasoning
                else self._disguise.content(one.content)
            )
            hidden.append(replace(one, content=content, reasoning=self._disguise.content(one.reasoning)))
        return hidden

    def _answer(self, message: ChatMessage) -> str:
        """A message without reasoning, which the template may leave out."""
        if message.role != "assistant":
            return message.content
        thought = split_thought(message.content, self._opened)
        return message.content if thought is None else thought[3]

    def _says_it_differently(
        self,
        messages: Sequence[ChatMessage],
        order: arrangements.Messages,
        form: arrangements.Form,
        text: str,
    ) -> bool:
        """Whether a template that changes the words writes other words in their place."""
        present = Presence(self._disguise.restored(text))
        for one in _what_matters(messages):
            if present.of(one.content):
                continue
            probed = [
                replace(other, content=other.content.replace(one.content, _PROBE)) if one.content else other
                for other in order
            ]
            try:
                probe_is_there = _PROBE in self._run(probed, form).casefold()
            except TemplateError:
                return False
            if not probe_is_there or not present.of_most(one.content):
                return False
        return True

    def _opens_thought(self) -> ReasoningMarks | None:
        for form in (False, True):
            content: Any = [{"type": "text", "text": _PROBE}] if form else _PROBE
            try:
                text = self._template.render(
                    [{"role": "user", "content": content}],
                    add_generation_prompt=True,
                    variables=self._variables,
                    began=self._began,
                )
            except TemplateError:
                continue
            if _PROBE in text:
                return opened_at_end(text.rpartition(_PROBE)[2])
        return None


def _what_matters(messages: Sequence[ChatMessage]) -> Iterator[ChatMessage]:
    """The last user message and the system prompts."""
    last = next((one for one in reversed(messages) if one.role == "user"), None)
    yield from (one for one in messages if one.role == "system" or one is last)
