"""One conversation's transcripts as prompts, and what is said about them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tqchat.engine.commands import ChatMessage, Thinking, ThinkingChoice
from tqchat.engine.events import Notice
from tqchat.engine.failures import ContextFull
from tqchat.engine.models import LoadedModel
from tqchat.engine.reasoning import unfinished_reply
from tqchat.engine.sequences import common_prefix
from tqchat.engine.templates import chat_template, render
from tqchat.engine.templates.sandbox import wall_clock

Tools = Sequence[Mapping[str, Any]]
"""Definitions of functions that the model may call."""


class Prompts:
    """Renders transcripts for one model under the present choice of thinking.

    Attributes:
        thinking: Whether and how much the model reasons.
        began: When the conversation began; a chat template that writes the date writes this one.
    """

    def __init__(self, model: LoadedModel, began: float | None = None) -> None:
        self._model = model
        self.thinking = Thinking()
        self.began = wall_clock() if began is None else began
        self._has_template = chat_template(model.tokenizer) is not None
        self._told_of_plain_text = False
        self._told_of_switch: ThinkingChoice | None = None

    def render(
        self, messages: Sequence[ChatMessage], add_generation_prompt: bool = True, tools: Tools = ()
    ) -> list[int]:
        """The tokens of a transcript, of a chat with these tools."""
        switch, choice = self._model.thinking_switch, self.thinking.choice
        variables: Mapping[str, Any] = {}
        if switch is not None and choice is not None:
            messages = switch.messages(messages, choice)
            variables = switch.variables(choice)
        return render(
            self._model.tokenizer,
            messages,
            add_generation_prompt=add_generation_prompt,
            variables=variables,
            began=self.began,
            tools=tools,
        )

    def with_beginning(
        self, messages: Sequence[ChatMessage], continues: bool, held: Sequence[int], tools: Tools = ()
    ) -> tuple[list[int], list[int]]:
        """The tokens to read, and those of them that are the beginning of the reply.

        Args:
            continues: The last message is a reply to be continued.
            held: The tokens in the cache.
        """
        if continues and len(messages) > 1 and messages[-1].role == "assistant":
            prompt = self.render(messages[:-1], tools=tools)
            said = unfinished_reply(self._model.reply_format, prompt, messages[-1], held)
            return prompt + said, said
        return self.render(messages, tools=tools), []

    def transcript(self, messages: Sequence[ChatMessage]) -> list[int]:
        """The tokens of a transcript that is read as it is.

        Raises:
            ContextFull: if the model's context is too short for it.
        """
        tokens = self.render(messages, add_generation_prompt=False)
        limit = self._model.context_limit
        if limit is not None and len(tokens) > limit:
            raise ContextFull(len(tokens), limit)
        return tokens

    def end_of_messages(self, messages: Sequence[ChatMessage], prompt: list[int], tools: Tools = ()) -> int:
        """Number of tokens of a prompt up to the end of its last message.

        What follows is not always the same when it is read again: many templates write past replies
        differently.
        """
        spoken = self.render(messages, add_generation_prompt=False, tools=tools)
        return min(common_prefix(spoken, prompt), len(prompt) - 1)

    def notices(self, conversation_id: str) -> Iterator[Notice]:
        """Sentences about a missing template or reasoning switch, each once."""
        if not self._has_template and not self._told_of_plain_text:
            self._told_of_plain_text = True
            yield Notice(
                conversation_id,
                f"{self._model.info.name} has no chat template: the conversation is written as plain text, "
                "which suits base models; for a chat, choose an instruct version.",
            )
        yield from self._missing_switch(conversation_id)

    def _missing_switch(self, conversation_id: str) -> Iterator[Notice]:
        """Say that the model cannot be told how much to reason, unless it does what is wanted anyway."""
        choice, model = self.thinking.choice, self._model
        if choice is None or choice == self._told_of_switch:
            return
        self._told_of_switch = choice
        if model.thinking_switch is not None and model.thinking_switch.nearest(choice) is not None:
            return
        if choice != "off" or model.reply_format.reasons:
            switch = "has no switch for its reasoning" if model.thinking_switch is None else "cannot do that"
            yield Notice(
                conversation_id, f"Thinking is set to {choice}, but {model.info.name} {switch}.", "warning"
            )


def reread_notice(conversation_id: str, tokens: int, kept: int, kind: str) -> Notice:
    """Say that a prompt is read again because the model's cache (``kind``) cannot be trimmed so far."""
    count = f"{tokens - kept:,} of" if kept else "all"
    return Notice(
        conversation_id,
        f"This model's {kind} cache cannot go back that far, so {count} {tokens:,} tokens are read again.",
    )
