from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engine.listener import SECONDS, Listener
from tests.engine.talk import TALE, assistant, greedy, user
from tests.models import STARTER_FOLDER
from tqchat.cli import main
from tqchat.engine.cache.prompt_cache import PromptCache
from tqchat.engine.commands import ChatMessage, Limits, LoadModel, Send, ToolCall
from tqchat.engine.events import Done, Failed, ModelReady, PrefillProgress, RequestsUpdate, TextDelta
from tqchat.engine.requests.options import RequestOptions
from tqchat.engine.requests.queue import MAX_ACTIVE
from tqchat.engine.requests.request import Request, Ticket, ToolChoice
from tqchat.engine.requests.text import StopTexts
from tqchat.engine.worker import Engine
from tqchat.paths import Paths
from tqchat.store.vault import Vault
from tqchat.store.vault.manifest import MANIFEST

HELLO = (user("Hello! My name is Ada."),)
STORY = (user(TALE + "Tell me a story about a dog."),)

Start = Callable[..., Engine]


@pytest.fixture
def heard() -> Listener:
    return Listener()


@pytest.fixture
def start(heard: Listener, paths: Paths) -> Iterator[Start]:
    """Starts engines with a model."""
    engines: list[Engine] = []

    def started(model: Path = STARTER_FOLDER, **options: object) -> Engine:
        engine = Engine(heard, paths=paths, **options)  # type: ignore[arg-type]
        engines.append(engine)
        engine.start()
        engine.submit(LoadModel(str(model)))
        heard.next(ModelReady)
        return engine

    yield started
    for engine in engines:
        engine.shutdown(SECONDS)


class Reply(Listener):
    """One request and its events."""

    def __init__(self, engine: Engine, request: Request) -> None:
        super().__init__()
        self.ticket: Ticket = engine.ask(request, self)

    def done(self) -> Done:
        return self.next(Done)


def chat(*messages: ChatMessage, tokens: int = 12, scheme: str | None = "turbo4") -> Request:
    return Request(messages, scheme=scheme, sampling=greedy(tokens))


def test_a_growing_history_is_read_once_also_after_a_restart(start: Start, paths: Paths) -> None:
    engine = start()
    messages = STORY
    first = Reply(engine, chat(*messages)).done()
    assert (first.counts.reused, first.counts.restored) == (0, 0)
    assert first.counts.prefilled == first.counts.prompt
    messages = (*messages, assistant(first.text), user("And what did the dog find?"))
    second = Reply(engine, chat(*messages)).done()
    assert second.counts.reused >= first.counts.prompt
    assert second.counts.prefilled <= 64
    # Not shut down, as after a kill: a cache is saved as soon as its request is answered.
    Reply(engine, chat(*HELLO, tokens=1)).done()
    messages = (*messages, assistant(second.text), user("And then?"))
    third = Reply(start(), chat(*messages)).done()
    assert third.counts.restored >= second.counts.prompt
    assert third.counts.prefilled <= 64
    assert not Vault(paths.caches).entries()


def test_a_prompt_that_cannot_fit_is_refused_by_its_length(start: Start) -> None:
    engine = start()
    words = "a " * 300_000
    tool = {"type": "function", "function": {"name": "look", "description": words}}
    call = ToolCall("call_1", "look", f'{{"text": "{words}"}}')
    for request in (
        Request((user("Hello!"),), tools=(tool,), tool_choice=ToolChoice(required=True)),
        Request((user("Hello!"), ChatMessage("assistant", "", tool_calls=(call,)), user("And?"))),
        Request((user(words),)),
        Request(prompt=words),
    ):
        failed = Reply(engine, request).next(Failed)
        assert failed.context_full
        assert "4,687 tokens" in failed.message or "4,688 tokens" in failed.message  # not split into tokens


def test_histories_that_begin_alike_keep_their_caches(start: Start, paths: Paths) -> None:
    engine = start()
    one = (*STORY, assistant("A dog went to the sea. " * 20), user("Which sea?"))
    other = (*STORY, assistant("There was no dog at all. " * 20), user("Why?"))
    first = Reply(engine, chat(*one)).done()
    branched = Reply(engine, chat(*other)).done()
    assert branched.counts.reused > 64
    again = Reply(engine, chat(*one, assistant(first.text), user("Go on."))).done()
    assert again.counts.reused >= first.counts.prompt
    engine.shutdown(SECONDS)
    (entry,) = Vault(paths.requests).entries()
    both = Reply(start(), chat(*other, assistant(branched.text), user("Go on."))).done()
    assert both.counts.restored >= branched.counts.prompt
    assert Vault(paths.requests).entries()[0].conversation == entry.conversation


def test_a_copied_cache_answers_as_one_that_was_read(start: Start) -> None:
    engine = start()
    one, other = ((*STORY, assistant(text * 20), user("Why?")) for text in ("A dog. ", "No dog at all. "))
    Reply(engine, chat(*one)).done()
    copied = Reply(engine, chat(*other, tokens=24)).done()
    assert copied.counts.reused > 64
    alone = Reply(start(requests=RequestOptions(store=False)), chat(*other, tokens=24)).done()
    assert alone.counts.reused == alone.counts.restored == 0
    # What is new is raw in the copy until the reply has ended.
    assert copied.report.fp16_bytes == alone.report.fp16_bytes
    assert copied.report.bytes == pytest.approx(alone.report.bytes, rel=0.2)
    assert copied.text[:12] == alone.text[:12]


def test_nothing_is_kept_on_disk_if_so_chosen(start: Start, paths: Paths) -> None:
    engine = start(requests=RequestOptions(store=False))
    first = Reply(engine, chat(*STORY)).done()
    second = Reply(engine, chat(*STORY, assistant(first.text), user("And then?"))).done()
    assert second.counts.reused >= first.counts.prompt
    engine.shutdown(SECONDS)
    assert not paths.requests.exists()


def test_a_short_request_does_not_wait_for_a_long_one(start: Start) -> None:
    engine = start()
    long = Reply(engine, chat(*STORY, tokens=200))
    long.next(TextDelta)
    short = Reply(engine, chat(*HELLO, tokens=4))
    assert short.done().counts.generated <= 4
    assert not long.all(Done)
    assert long.done().stop_reason in ("length", "stop", "context")


def test_a_conversation_goes_on_beside_requests(start: Start, heard: Listener) -> None:
    engine = start()
    engine.submit(Send("mine", STORY, "turbo4", greedy(120)))
    heard.next(TextDelta)
    replies = [Reply(engine, chat(*HELLO, tokens=6, scheme=scheme)) for scheme in ("fp16", "turbo3")]
    assert [reply.done().scheme for reply in replies] == ["fp16", "turbo3"]
    assert not [done for done in heard.all(Done) if done.conversation_id == "mine"]
    assert heard.next(Done).conversation_id == "mine"
    assert max(one.active for one in heard.all(RequestsUpdate)) >= 1
    assert heard.all(RequestsUpdate)[-1].caches == 2
    assert heard.all(RequestsUpdate)[-1].bytes > 0


def test_a_dropped_request_ends_and_those_that_wait_are_not_begun(start: Start) -> None:
    engine = start()
    replies = [Reply(engine, chat(*STORY, tokens=300)) for _ in range(MAX_ACTIVE + 1)]
    replies[0].next(PrefillProgress)
    for reply in replies:
        reply.ticket.stop()
    ends = [reply.next((Done, Failed)) for reply in replies]
    assert all(isinstance(end, Failed) or end.stop_reason == "stopped" for end in ends)
    assert Reply(engine, chat(*HELLO)).done().counts.generated


def test_text_is_continued_as_it_is_up_to_a_stop_text(start: Start) -> None:
    engine = start()
    whole = Reply(engine, Request(prompt="Once upon a time", sampling=greedy(30))).done()
    assert len(whole.text) > 20
    stop = whole.text[8:14]
    reply = Reply(engine, Request(prompt="Once upon a time", sampling=greedy(30), stops=("§§", stop)))
    done = reply.done()
    assert done.text == whole.text[: whole.text.index(stop)]
    assert "".join(delta.text for delta in reply.all(TextDelta)) == done.text
    assert done.stop_reason == "stop"


def test_bad_requests_fail_with_a_sentence_and_harm_no_other(start: Start) -> None:
    engine = start()
    running = Reply(engine, chat(*STORY, tokens=60))
    limit = 2_000 * "word " * 40
    failed = Reply(engine, chat(user(limit))).next(Failed)
    assert failed.context_full
    assert "scheme" in Reply(engine, chat(*HELLO, scheme="turbo99")).next(Failed).message
    assert running.done().counts.generated


def test_another_model_ends_the_requests_of_the_first(
    start: Start, heard: Listener, llama_folder: Path
) -> None:
    engine = start()
    reply = Reply(engine, chat(*STORY, tokens=3_000))
    reply.next(TextDelta)
    engine.submit(LoadModel(str(llama_folder)))
    assert "Another model" in reply.next(Failed).message
    heard.next(ModelReady)
    assert Reply(engine, chat(*HELLO, tokens=3)).done().counts.reused == 0


def test_saved_caches_of_requests_are_listed_expire_and_are_wiped(
    start: Start, heard: Listener, paths: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = start()
    engine.submit(Send("mine", STORY, "turbo4", greedy(4)))
    Reply(engine, chat(*STORY)).done()
    engine.shutdown(SECONDS)
    (old,) = Vault(paths.requests).entries()
    assert main(["cache"]) == 0
    assert "another program's request" in capsys.readouterr().out
    os.utime(old.folder / MANIFEST, (0, 0))
    engine = start()
    Reply(engine, chat(*HELLO)).done()
    engine.shutdown(SECONDS)
    assert old.conversation not in {one.conversation for one in Vault(paths.requests).entries()}
    assert Vault(paths.requests).entries() and Vault(paths.caches).entries()
    assert main(["cache", "wipe", "--yes"]) == 0
    assert not Vault(paths.requests).entries() and not Vault(paths.caches).entries()


def test_only_one_process_saves_caches_of_requests(start: Start, paths: Paths) -> None:
    engine = start()
    Reply(engine, chat(*STORY)).done()
    Reply(engine, chat(*HELLO, tokens=1)).done()  # the first one's cache is saved before this one is read
    saved = Vault(paths.requests).entries()

    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in saved[0].folder.glob("*.safetensors")}

    before = files()
    assert before
    # The first engine still runs: once it ends, another may save.
    other = start()
    reply = Reply(other, chat(*STORY, assistant("Once."), user("Go on."))).done()
    assert reply.counts.restored > 64
    Reply(other, chat(*HELLO, tokens=1)).done()  # what it would save of the first reply is saved by now
    assert files() == before


@pytest.mark.parametrize("stops", [("b",), ("bc", "b"), ("cd", "x"), ("aab",), ("",), ("abcde",)])
def test_stop_texts_hold_nothing_back_that_cannot_begin_one(stops: tuple[str, ...]) -> None:
    text = "aabcabcd"
    cuts = [text.index(stop) for stop in stops if stop and stop in text]
    wanted = text[: min(cuts)] if cuts else text
    for size in range(1, len(text) + 1):
        matcher = StopTexts(stops)
        given = "".join(matcher.feed(text[at : at + size]) for at in range(0, len(text), size))
        assert given + matcher.finish() == wanted
        assert matcher.found == bool(cuts)


def test_requests_can_be_handed_in_from_many_threads(start: Start, llama_folder: Path) -> None:
    engine = start(llama_folder)
    replies: list[Reply] = []
    lock = threading.Lock()

    def ask(number: int) -> None:
        reply = Reply(engine, chat(user(f"Number {number}"), tokens=3, scheme="turbo4"))
        with lock:
            replies.append(reply)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {reply.done().counts.generated for reply in replies} <= {1, 2, 3}


TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather at a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}


def test_a_chat_with_tools_is_answered(start: Start, llama_folder: Path) -> None:
    engine = start(llama_folder)
    first = user("What is the weather in Paris?")
    call = ToolCall("call_1", "get_weather", '{"place": "Paris"}')
    result = ChatMessage("tool", "Rain.", tool_call_id="call_1", name="get_weather")
    for messages in ((first,), (first, ChatMessage("assistant", "", tool_calls=(call,)), result)):
        reply = Reply(engine, Request(messages, tools=(TOOL,), scheme="turbo4", sampling=greedy(8)))
        done = reply.done()
        assert "".join(delta.text for delta in reply.all(TextDelta)) == done.text
        assert done.counts.generated


def test_requests_that_are_answered_in_turns_get_the_answers_of_requests_alone(start: Start) -> None:
    engine = start(requests=RequestOptions(store=False))
    asked = [chat(*HELLO, tokens=24), chat(*STORY, tokens=24), chat(*HELLO, tokens=24, scheme="turbo3")]
    alone = [Reply(engine, one).done().text for one in asked]
    again = start(requests=RequestOptions(store=False))
    assert [reply.done().text for reply in [Reply(again, one) for one in asked]] == alone


def test_a_copied_cache_may_grow_as_far_as_any_other(start: Start, heard: Listener) -> None:
    budget = 1 << 21
    engine = start(limits=lambda: Limits(budget=budget), requests=RequestOptions(store=False))
    one = (*HELLO, assistant("Once there was a dog by the sea. " * 8), user("Which sea?"))
    Reply(engine, chat(*one, tokens=2)).done()
    budget = 1 << 30
    longer = (*one[:2], user("Something else. " + TALE))
    assert Reply(engine, chat(*longer, tokens=2)).done().counts.reused > 64


def test_a_disk_that_fails_ends_neither_requests_nor_the_engine(
    start: Start, heard: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start()

    def fail(folder: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("shutil.disk_usage", fail)
    assert Reply(engine, chat(*HELLO, tokens=2)).done().counts.generated
    engine.submit(Send("mine", HELLO, "turbo4", greedy(2)))
    assert heard.next(Done).conversation_id == "mine"


def test_a_long_text_beyond_the_context_is_refused_before_it_is_read(
    start: Start, llama_folder: Path
) -> None:
    engine = start(llama_folder)
    failed = Reply(engine, chat(user("".join(f" {n:x}" for n in range(40_000))))).next(Failed)
    assert failed.context_full and failed.refused


@pytest.mark.parametrize("saving", [False, True], ids=["packed", "saved"])
def test_a_cache_that_cannot_be_packed_or_saved_ends_neither_requests_nor_the_engine(
    start: Start, monkeypatch: pytest.MonkeyPatch, saving: bool
) -> None:
    engine = start()
    first = Reply(engine, chat(*STORY, tokens=2)).done()
    Reply(engine, chat(*HELLO, tokens=1)).done()  # the first one's cache is saved before this one is read
    failed = threading.Event()

    def fail(*given: object, **named: object) -> None:
        failed.set()
        raise MemoryError

    settle = PromptCache.settle

    def settled(cache: PromptCache, certain: bool) -> None:
        with monkeypatch.context() as inside:
            inside.setattr("tqchat.engine.cache.prompt_cache.pack_together", fail)
            settle(cache, certain)

    with monkeypatch.context() as broken:
        broken.setattr(*((Vault, "save", fail) if saving else (PromptCache, "settle", settled)))
        Reply(engine, chat(user("Who are you?"), tokens=2)).done()
        assert failed.wait(SECONDS)
    again = Reply(engine, chat(*STORY, tokens=2)).done()
    assert again.text == first.text and again.counts.reused == first.counts.prompt - 1
    engine.shutdown(SECONDS)
    assert engine._finished.is_set()


def test_caches_of_requests_are_packed_and_saved_while_the_conversation_is_answered(
    start: Start, heard: Listener, paths: Paths
) -> None:
    engine = start()
    engine.submit(Send("mine", STORY, "turbo4", greedy(400)))
    heard.next(TextDelta)
    for number in range(2):
        Reply(engine, chat(*HELLO, user(f"{number}? {TALE}"), tokens=2)).done()
    told = len(heard.all(TextDelta))
    while len(heard.all(TextDelta)) < told + 12:
        heard.next(TextDelta)
    assert len(Vault(paths.requests).entries()) == 2
    assert not [done for done in heard.all(Done) if done.conversation_id == "mine"]
