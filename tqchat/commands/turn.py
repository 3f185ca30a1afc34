"""One turn of a stored conversation on the command line: as in the app, question and reply are stored."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tqchat.engine import events
from tqchat.engine.commands import ChatMessage
from tqchat.errors import TqchatError
from tqchat.paths import Paths
from tqchat.store.database import Conversation, Database, Message, UnknownConversation
from tqchat.store.vault import Vault
from tqchat.ui.controller.records import Reply
from tqchat.ui.controller.texts.transcript import for_engine
from tqchat.ui.controller.turns.reply_writer import ReplyWriter
from tqchat.ui.controller.view import Severity

if TYPE_CHECKING:
    from tqchat.engine.session import Session


class NothingToContinue(TqchatError):
    """There is no conversation yet."""

    exit_code = 2


class StoredTurn:
    """A question to a stored conversation, and its reply.

    The question is in the database before its reply begins, and the reply at most half a second behind. A
    question to which nothing was generated is taken back.

    Attributes:
        conversation: The conversation; its lease is held.
        before: Its messages before the question.
    """

    def __init__(self, database: Database, conversation: Conversation, vault: Vault) -> None:
        self._database, self.conversation, self._vault = database, conversation, vault
        self.before: list[Message] = database.messages(conversation.id)

    @property
    def last_scheme(self) -> str | None:
        """The scheme of the last reply."""
        return next((one.scheme for one in reversed(self.before) if one.scheme), None)

    def answer(
        self,
        session: Session,
        question: str,
        system_prompt: str | None,
        stop: threading.Event,
        send: Callable[[tuple[ChatMessage, ...], Vault, str], Iterator[events.Event]],
    ) -> Iterator[events.Event]:
        """The events of the reply to a question; both are stored. The saved cache is restored and saved.

        Args:
            stop: Ends the conversion of the saved cache; ``send`` has its own.
            send: Generates the reply to a transcript.
        """
        conversation = self.conversation
        message = self._database.add_message(conversation.id, "user", question)
        reply = Reply(conversation.id, conversation.head_id, question, session.model.info.label)
        writer = ReplyWriter(self._database, _Report(), time.monotonic)
        written = False
        try:
            transcript = for_engine([*self.before, message], system_prompt)
            scheme = session.scheme
            session.restore(self._vault, conversation.id, transcript)
            yield from session.prepare_scheme(scheme, stop, conversation.id)
            for event in send(transcript, self._vault, conversation.id):
                match event:
                    case events.TextDelta():
                        reply.grow(event)
                        writer.grew(reply)
                    case events.Done():
                        reply.replace(event)
                        if not reply.is_empty:
                            writer.write_finished(reply, event)
                            written = True
                    case events.Failed() if event.text or event.reasoning:
                        reply.replace(event)
                    case _:
                        pass
                yield event
                if written and isinstance(event, events.Done):
                    self._save(session, event)  # after the reply's last line: it may have something to say
        finally:
            if reply.is_empty:
                self._database.delete_message(message.id)
            elif not written:
                writer.write_unfinished(reply)

    def _save(self, session: Session, done: events.Done) -> None:
        if done.stop_reason == "stopped":
            return  # the process is ending
        try:
            session.save(self._vault, self.conversation.id)
        except TqchatError as error:
            _Report().say(str(error))


class _Report:
    """Prints what the reply's writer says."""

    def say(self, text: str, severity: Severity = "information") -> None:
        print(f"tqchat: {text}", file=sys.stderr)


@contextmanager
def open_turn(paths: Paths, conversation_id: str | None, cache_budget: float | None) -> Iterator[StoredTurn]:
    """A turn of a conversation, the one that was used last if there is no id.

    Raises:
        UnknownConversation: if the id matches none or several.
        NothingToContinue: if there is no conversation.
        ConversationInUse: if it is open in another process.
    """
    if not paths.database.exists():
        raise _unknown(conversation_id)
    with Database(paths.database) as database:
        if conversation_id is None:
            conversation = next(iter(database.conversations(1)), None)
            if conversation is None:
                raise _unknown(None)
        else:
            conversation = database.conversation(conversation_id)
        with database.leases.acquire(conversation.id):
            conversation = database.conversation(conversation.id)
            yield StoredTurn(database, conversation, Vault(paths.caches, cache_budget))


def _unknown(conversation_id: str | None) -> TqchatError:
    if conversation_id is not None:
        return UnknownConversation(conversation_id)
    return NothingToContinue("There is no conversation to continue yet; start one with `tqchat`.")
