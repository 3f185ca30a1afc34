"""What a person can do when the context is nearly full, offered before it fails."""

from __future__ import annotations

from textual import on, work

from tqchat.ui import figures
from tqchat.ui.cache_actions import CacheActions
from tqchat.ui.screens.chat import ChatScreen
from tqchat.ui.screens.dialog import Choose
from tqchat.ui.widgets.gauge.room import room

RESERVE = 256
"""Tokens that a reply should find room for."""
SUMMARY, DROP, SCHEME, NEW, ANYWAY = "summary", "drop", "scheme", "new", "send"


class RoomActions(CacheActions):
    """Offers a summary, fewer turns or a smaller cache instead of failing."""

    @work
    async def action_make_room(self) -> None:
        """Say how full the context is, and what can be done."""
        await self._offer_room(None)

    def has_room_for(self, text: str) -> bool:
        """Whether a message may be sent at once; if not, the person is asked what to do with it."""
        left = self.chat.context.tokens_left(text)
        limit = self.chat.models.context_limit
        if left is None or limit is None or not self.chat.shown.messages or left >= min(RESERVE, limit // 8):
            return True
        self._ask_before_sending(text)
        return False

    @work
    async def _ask_before_sending(self, text: str) -> None:
        await self._offer_room(text)

    async def _offer_room(self, unsent: str | None) -> None:
        chat = self.chat
        limit = chat.models.context_limit
        used = chat.context.used
        kept = chat.context.kept_when_dropping()
        count = len([one for one in chat.shown.messages if one.role != "system"])
        options: list[tuple[str, str]] = []
        if count > len(kept) or count > 2:
            options.append((SUMMARY, "of the older messages, on a new branch"))
        if count > len(kept) > 0:
            options.append((DROP, f"go on with the last {len(kept)} of {figures.number(count)} messages"))
        if self._memory_is_short(limit):
            options.append((SCHEME, "one that saves more: memory ends first"))
        options.append((NEW, "begin a conversation"))
        if unsent is not None:
            options.append((ANYWAY, "the message as it is"))
        of = f" of {figures.number(limit)}" if limit else ""
        title = f"The context holds {figures.number(used)}{of} tokens"
        chosen = await self.push_screen_wait(Choose(title, options, options[0][0]))
        await self._make_room(chosen, unsent)

    async def _make_room(self, chosen: str | None, unsent: str | None) -> None:
        match chosen:
            case "summary" if not self._try(self.chat.context.summarise):
                self.say("That cannot be summed up now; once the model is free, it can.", "warning")
            case "summary" if unsent is not None:
                self.say("Your message stays here until the summary is written.")
            case "drop":
                if self._try(self.chat.context.drop_oldest) and unsent is not None:
                    self.send_now(unsent)
            case "scheme":
                await self.run_action("scheme")
            case "new":
                self.action_new()
            case "send" if unsent is not None:
                self.send_now(unsent)

    def _memory_is_short(self, limit: int | None) -> bool:
        """Whether the memory budget ends before the model's own limit under this scheme."""
        report, budget = self.chat.caches.report, self.chat.models.memory_budget_in_force
        left = room(report, budget) if report is not None and budget else None
        return left is not None and (limit is None or report is None or left[0] < limit - report.tokens)

    @on(ChatScreen.ContextFull)
    def _context_full(self) -> None:
        self.action_make_room()
