"""The table of all actions, in the order of help and palette."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tqchat.ui.actions import (
    cache,
    context_limit,
    conversations,
    copying,
    messages,
    models,
    prompt,
    screen,
    settings,
    versions,
)
from tqchat.ui.actions.registry import Action, Registry, Slash
from tqchat.ui.parts.parts import Parts

_CONVERSATION = (
    Action(
        "new",
        "New conversation",
        "Start an empty conversation.",
        "Conversation",
        conversations.new,
        "ctrl+n",
        hint="new",
        rank=4,
        slash=Slash("new", "", "begin a conversation", 3),
    ),
    Action(
        "toggle_list",
        "Conversations",
        "Show or hide the list of conversations.",
        "Conversation",
        screen.toggle_list,
        "f2,ctrl+b",
        hint="list",
        rank=6,
    ),
    Action(
        "previous",
        "Newer conversation",
        "Open the one above in the list.",
        "Conversation",
        conversations.previous,
        "alt+up,ctrl+pageup",
    ),
    Action(
        "next",
        "Older conversation",
        "Open the one below in the list.",
        "Conversation",
        conversations.following,
        "alt+down,ctrl+pagedown",
    ),
    Action(
        "settings",
        "Conversation settings",
        "System prompt and sampling.",
        "Conversation",
        settings.conversation_settings,
        "f10",
    ),
    Action(
        "make_room",
        "Context limit",
        "Context use, and ways to shorten it.",
        "Conversation",
        context_limit.show_options,
        "alt+m",
        slash=Slash("room", "", "show how full the context is, and ways to shorten it", 4),
    ),
    Action(
        "rename",
        "Rename",
        "Give this conversation another title.",
        "Conversation",
        conversations.rename,
        "ctrl+t",
        slash=Slash("rename", "TITLE", "give this conversation another title", 5),
    ),
    Action(
        "delete", "Delete", "With its cache, after confirmation.", "Conversation", conversations.delete, "f8"
    ),
    Action(
        "undelete",
        "Undo delete",
        "Restore the last deletion.",
        "Conversation",
        conversations.undelete,
        "alt+z",
    ),
    Action(
        "search",
        "Search",
        "In titles and messages.",
        "Conversation",
        conversations.search,
        "ctrl+f",
        slash=Slash("search", "WORDS", "search titles and messages", 6),
    ),
    Action(
        "system_prompt",
        "System prompt",
        "Set what the model is told before the first message.",
        "Conversation",
        settings.system_prompt,
        slash=Slash("system", "[TEXT]", "what the model is told before the first message", 7),
        in_palette=False,
    ),
    Action(
        "sampling",
        "Sampling",
        "Set sampling values of this conversation.",
        "Conversation",
        settings.sampling,
        slash=Slash(
            "set",
            "NAME=VALUE ...",
            "sampling of this conversation, such as temperature=0.7",
            8,
            settings.sampling_values,
        ),
        in_palette=False,
    ),
    Action(
        "preset",
        "Preset",
        "Use, save or delete named sampling settings.",
        "Conversation",
        settings.preset,
        slash=Slash(
            "preset",
            "[NAME|save NAME|delete NAME]",
            "use named sampling settings, or save some",
            9,
            settings.preset_values,
        ),
        in_palette=False,
    ),
    Action(
        "thinking",
        "Thinking",
        "How much the model reasons in this conversation.",
        "Conversation",
        settings.thinking,
        "ctrl+l,alt+t",
        slash=Slash(
            "think",
            "[CHOICE|budget N]",
            "how much the model reasons in this conversation",
            9,
            settings.thinking_values,
        ),
        choices=settings.thinking_choices,
    ),
    Action(
        "export",
        "Export",
        "Write this conversation as a Markdown file.",
        "Conversation",
        copying.export,
        slash=Slash("export", "[FILE]", "write this conversation as Markdown", 11),
        in_palette=False,
    ),
)

_REPLY = (
    Action(
        "stop",
        "Stop",
        "The reply, a queued message, a download.",
        "Reply",
        screen.stop,
        "escape",
        priority=False,
    ),
    Action(
        "regenerate",
        "Regenerate",
        "Generate another version of the last reply.",
        "Reply",
        versions.regenerate,
        "ctrl+r",
        hint="again",
        rank=7,
    ),
    Action(
        "continue", "Continue", "Continue a reply that was cut off.", "Reply", versions.continue_reply, "f4"
    ),
    Action(
        "copy_reply",
        "Copy the reply",
        "The last one, as Markdown.",
        "Reply",
        copying.copy_reply,
        "f5",
        slash=Slash(
            "copy",
            "[code|chat]",
            "copy the last reply, its code, or the chat",
            10,
            lambda parts: copying.COPY_ARGUMENTS,
        ),
    ),
    Action(
        "copy_last_code",
        "Copy code",
        "The last code block of the last reply.",
        "Reply",
        copying.copy_last_code,
        "alt+c",
    ),
    Action("copy_chat", "Copy the chat", "All of it, as Markdown.", "Reply", copying.copy_chat, "alt+a"),
    Action(
        "previous_version",
        "Previous version",
        "Of the last message that has several.",
        "Reply",
        versions.previous_version,
        "alt+left",
    ),
    Action(
        "next_version",
        "Next version",
        "Of the last message that has several.",
        "Reply",
        versions.next_version,
        "alt+right",
    ),
)


def _of_message(
    name: str,
    title: str,
    help: str,
    run: Callable[[Parts, str], Awaitable[None] | None],
    keys: str,
    hint: str = "",
    in_palette: bool = True,
) -> Action:
    """An action of the message under the cursor; its keys work while the cursor is on one."""
    return Action(
        name,
        title,
        help,
        "Message",
        run,
        keys,
        scope="message",
        hint=hint,
        priority=False,
        applies=messages.is_marked,
        in_palette=in_palette,
    )


_MESSAGE = (
    Action(
        "cursor_up",
        "Cursor up",
        "Select a message; keys then act on it.",
        "Message",
        messages.cursor_up,
        "ctrl+up,f6",
    ),
    Action(
        "cursor_down",
        "Cursor down",
        "After the last one, back to the prompt.",
        "Message",
        messages.cursor_down,
        "ctrl+down,f7",
    ),
    _of_message(
        "open_message",
        "Open",
        "Edit your own message, unfold a reply's reasoning.",
        messages.open_message,
        "enter",
        "open",
    ),
    _of_message(
        "edit", "Edit and resend", "The earlier text stays as another version.", messages.edit, "e", "edit"
    ),
    _of_message(
        "answer",
        "Regenerate",
        "The reply to this message, or this reply.",
        messages.answer,
        "r",
        "again",
    ),
    _of_message(
        "branch", "Branch from here", "The next message follows this one.", messages.branch, "b", "branch"
    ),
    _of_message("go_on", "Continue", "A reply that was cut off.", versions.continue_reply, "c", "continue"),
    _of_message("copy_message", "Copy", "This message.", copying.copy_message, "y", "copy"),
    _of_message(
        "copy_code",
        "Copy code",
        "A code block in it; of several you choose one.",
        copying.copy_code,
        "o",
        "code",
    ),
    _of_message(
        "delete_message",
        "Delete",
        "Only this message; later ones stay.",
        messages.delete_message,
        "d,delete",
        "delete",
    ),
    _of_message(
        "unfold",
        "Unfold",
        "Reasoning, attached files, the rest of a long text.",
        messages.unfold,
        "space",
        "unfold",
    ),
    _of_message(
        "version_before", "Previous version", "With the messages after it.", versions.previous_version, "left"
    ),
    _of_message(
        "version_after", "Next version", "With the messages after it.", versions.next_version, "right"
    ),
    _of_message("mark_up", "Message above", "The cursor goes up.", messages.cursor_up, "k", in_palette=False),
    _of_message(
        "mark_down", "Message below", "The cursor goes down.", messages.mark_down, "j", in_palette=False
    ),
)

_CACHE = (
    Action(
        "scheme",
        "Cache scheme",
        "How this conversation's cache is stored.",
        "Cache",
        cache.scheme,
        "ctrl+k",
        hint="scheme",
        rank=2,
        slash=Slash("scheme", "NAME", "change this conversation's cache scheme", 1, cache.values),
        choices=cache.choices,
    ),
    Action(
        "undo_scheme",
        "Undo scheme",
        "Return to the previous scheme by re-reading the conversation.",
        "Cache",
        cache.undo_scheme,
        "alt+k",
    ),
    Action(
        "toggle_gauge",
        "Memory gauge",
        "Show or hide the size of the cache.",
        "Cache",
        screen.toggle_gauge,
        "f3,ctrl+g",
        hint="gauge",
        rank=8,
    ),
    Action(
        "model",
        "Models",
        "On this machine, or from Hugging Face.",
        "Cache",
        models.model,
        "ctrl+o",
        hint="model",
        rank=3,
        slash=Slash("model", "[NAME]", "load another model", 2, models.values),
    ),
)

_SCREEN = (
    Action(
        "help",
        "Help",
        "All keys.",
        "Screen",
        screen.help,
        "f1",
        hint="help",
        rank=1,
        slash=Slash("help", "", "show all keys", 14),
    ),
    Action(
        "command_palette",
        "Palette",
        "Find and run any action.",
        "Screen",
        screen.command_palette,
        "ctrl+p",
        hint="palette",
        rank=5,
        in_palette=False,
    ),
    Action(
        "preferences",
        "Settings",
        "All settings, each with a description.",
        "Screen",
        settings.preferences,
        "ctrl+s",
        hint="settings",
        rank=8,
        slash=Slash("settings", "", "show and change all settings", 13),
    ),
    Action(
        "theme",
        "Theme",
        "Choose the colour theme.",
        "Screen",
        settings.theme,
        "f9",
        slash=Slash("theme", "[NAME]", "choose the colour theme", 12, settings.theme_values),
        choices=settings.theme_choices,
    ),
    Action("page_up", "Scroll back", "One page up.", "Screen", screen.page_up, "pageup"),
    Action(
        "page_down",
        "Scroll on",
        "One page down; at the end the reply is followed again.",
        "Screen",
        screen.page_down,
        "pagedown",
    ),
    Action(
        "example",
        "Example",
        "Put an example of the welcome page into the prompt.",
        "Screen",
        prompt.example,
        in_palette=False,
    ),
    Action(
        "quit",
        "Quit",
        "Save the cache and leave.",
        "Screen",
        screen.quit,
        "ctrl+q",
        hint="quit",
        rank=9,
        over_dialogs=True,
    ),
)

ACTIONS = Registry((*_CONVERSATION, *_REPLY, *_MESSAGE, *_CACHE, *_SCREEN))
