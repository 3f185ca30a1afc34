"""Sending within the context limit, and options when the context is nearly full."""

from __future__ import annotations

from tqchat.ui import figures
from tqchat.ui.actions.cache import choose_scheme
from tqchat.ui.actions.conversations import new
from tqchat.ui.parts.parts import Parts
from tqchat.ui.screens.dialog import Choose
from tqchat.ui.widgets.gauge.remaining import remaining_tokens

REPLY_TOKENS = 256
"""Tokens of the context reserved for a reply."""
SUMMARY, DROP, SCHEME, NEW, ANYWAY = "summary", "drop", "scheme", "new", "send"
"""The remedies, as the dialog shows them."""


def send(parts: Parts, text: str) -> None:
    """Send a message; if it does not fit into the context, show options first."""
    if _fits(parts, text):
        _send_now(parts, text)
    else:
        parts.host.run_worker(_offer_options(parts, text))


def _fits(parts: Parts, text: str) -> bool:
    """Whether a message and a reply fit into the context."""
    chat = parts.chat
    left = chat.context.tokens_left(text)
    limit = chat.models.context_limit
    return left is None or limit is None or not chat.shown.messages or left >= min(REPLY_TOKENS, limit // 8)


def _send_now(parts: Parts, text: str) -> None:
    """Send a message and clear the prompt; a message that cannot be sent now stays there."""
    chat = parts.chat
    if chat.turns.send(text):
        parts.prompt.clear_sent()
        parts.unsent.settle()
        parts.remember_conversation()
    elif chat.turns.shown_reply or chat.turns.shown_waiting or chat.context.summing_up:
        parts.say("One message at a time: Esc stops the reply or summary.", "warning")


async def show_options(parts: Parts, argument: str) -> None:
    """Show how full the context is, and options."""
    await _offer_options(parts, None)


async def _offer_options(parts: Parts, unsent: str | None) -> None:
    """Offer a summary, fewer turns, a smaller cache or a new conversation; then send ``unsent``."""
    chat = parts.chat
    limit = chat.models.context_limit
    used = ("≈ " if chat.context.is_estimate else "") + figures.number(chat.context.used)
    kept = chat.context.kept_when_dropping()
    count = len([one for one in chat.shown.messages if one.role != "system"])
    options: list[tuple[str, str]] = []
    if count > len(kept) or count > 2:
        options.append((SUMMARY, "of the older messages, on a new branch"))
    if count > len(kept) > 0:
        options.append((DROP, f"keep only the last {len(kept)} of {figures.number(count)} messages"))
    if _memory_is_short(parts, limit):
        options.append((SCHEME, "one that saves more: memory is short"))
    options.append((NEW, "begin a conversation"))
    if unsent is not None:
        options.append((ANYWAY, "the message as it is"))
    of = f" of {figures.number(limit)}" if limit else ""
    title = f"The context holds {used}{of} tokens"
    chosen = await parts.ask(Choose(title, options, options[0][0]))
    await _run_option(parts, chosen, unsent)


async def _run_option(parts: Parts, chosen: str | None, unsent: str | None) -> None:
    match chosen:
        case "summary" if not parts.attempt(parts.chat.context.summarise):
            parts.say("No summary is possible now; try again when the model is free.", "warning")
        case "summary" if unsent is not None:
            parts.say("Your message stays here until the summary is written.")
        case "drop":
            if parts.attempt(parts.chat.context.drop_oldest) and unsent is not None:
                _send_now(parts, unsent)
        case "scheme":
            await choose_scheme(parts)
        case "new":
            new(parts, "")
        case "send" if unsent is not None:
            _send_now(parts, unsent)


def _memory_is_short(parts: Parts, limit: int | None) -> bool:
    """Whether the memory budget is used up before the context limit under this scheme."""
    report, budget = parts.chat.caches.report, parts.chat.models.memory_budget_in_force
    left = remaining_tokens(report, budget) if report is not None and budget else None
    return left is not None and (limit is None or report is None or left.in_scheme < limit - report.tokens)
