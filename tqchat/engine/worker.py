"""The engine thread: owns MLX, takes commands from a queue, answers with events."""

from __future__ import annotations

import gc
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tqchat import kv
from tqchat.engine.commands import (
    ChatMessage,
    Command,
    Compose,
    EstimateModel,
    ForgetConversation,
    ForgetMessages,
    Limits,
    LoadModel,
    OpenConversation,
    Send,
    SetScheme,
    WarmUp,
    drafting_of,
    model_ref,
)
from tqchat.engine.events import (
    Composed,
    ConversionProgress,
    Done,
    Event,
    Failed,
    MemoryUpdate,
    ModelEstimate,
    ModelFailed,
    ModelInfo,
    ModelProgress,
    ModelReady,
    Notice,
    Opened,
    Saved,
    SaveFailed,
)
from tqchat.engine.failures import DraftMismatch, NoModel, user_message
from tqchat.engine.hub.remote.download_thread import DownloadThread, DownloadUpdate
from tqchat.engine.logs import log_to
from tqchat.engine.requests.options import RequestOptions
from tqchat.engine.requests.queue import RequestQueue
from tqchat.engine.requests.request import Request, Ticket
from tqchat.errors import TqchatError
from tqchat.kv.scheme import parse_scheme
from tqchat.store.vault import Vault

if TYPE_CHECKING:
    from tqchat.engine.memory.quality_profile import Profile
    from tqchat.engine.models import LoadedModel
    from tqchat.engine.models.current import CurrentModel
    from tqchat.engine.models.warm_up import KernelWatch
    from tqchat.engine.session import Session

MAX_REQUEST_BRANCHES = 32
"""Histories that began alike, of which saved caches are kept."""

_log = logging.getLogger(__name__)


class Locations(Protocol):
    """The folders that the engine uses, from ``tqchat.paths.Paths``."""

    @property
    def caches(self) -> Path: ...
    @property
    def requests(self) -> Path: ...
    @property
    def log_dir(self) -> Path: ...


@dataclass(frozen=True, eq=False)
class _Task:
    """A queued command and its stop event: ``Engine.stop`` sets those of the commands submitted so far."""

    command: Command
    stop: threading.Event = field(default_factory=threading.Event)


class _WakeUp:
    """Queued to make the thread look for requests."""


_WAKE_UP = _WakeUp()


@dataclass
class _Current:
    """The conversation whose cache is live; without an id, it was withdrawn."""

    conversation_id: str | None
    messages: tuple[ChatMessage, ...]
    session: Session
    adapter: str | None


class Engine:
    """Runs commands in order on its own thread, the only one that uses MLX.

    Caches are saved while the queue is empty, when another conversation is opened, and on shutdown.
    """

    def __init__(
        self,
        on_event: Callable[[Event], None],
        *,
        paths: Locations,
        cache_budget: float | None = None,
        limits: Callable[[], Limits] = Limits,
        draft: str | None = None,
        adapter: str | None = None,
        find_profile: Callable[[ModelInfo], Profile | None] = lambda info: None,
        requests: RequestOptions | None = None,
    ) -> None:
        """
        Args:
            on_event: Called with each event, on the engine thread but for notices of compiled kernels.
            cache_budget: GB of all caches on disk; ``None`` for the vault's default.
            limits: Called before each reply for the memory limits of its cache.
            draft: What proposes tokens, see ``drafting_of``; a draft model is used if it is on this machine.
            adapter: Folder of a LoRA adapter for the first model that is loaded, and for no other;
                conversations can choose another, or none.
            find_profile: Finds a model's quality profile, by which bits are given to its layers.
            requests: How requests of other programs are answered.
        """
        self._on_event = on_event
        self._paths = paths
        self._vault = Vault(paths.caches, cache_budget)
        self._limits = limits
        self._drafting = drafting_of(draft)
        self._default_adapter = adapter
        self._models: CurrentModel  # made on the engine thread, where its imports do not delay the screen
        self._find_profile = find_profile
        self._draft: LoadedModel | None = None
        self._queue: queue.SimpleQueue[_Task | DownloadUpdate | _WakeUp | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._unfinished: list[_Task] = []
        self._running: _Task | None = None
        self._download: DownloadThread | None = None
        self._awaiting_model: deque[_Task] = deque()
        self._closing = threading.Event()
        self._finished = threading.Event()
        self._current: _Current | None = None
        self._kernels: KernelWatch | None = None
        self._unsavable: str | None = None
        """Fingerprint of the model whose caches cannot be saved, once that was said."""
        self._requests = RequestQueue(
            self._emit,
            # Other requests wait until they are written: not for the disk.
            self._vault.with_lesser(paths.requests, MAX_REQUEST_BRANCHES, durable=False),
            limits,
            requests or RequestOptions(),
            self._drafting.lookup,
            self._conversation_bytes,
        )
        self._thread = threading.Thread(target=self._run, name="tqchat-engine", daemon=True)

    # Called from any thread.

    def start(self) -> None:
        """Start the thread. MLX is imported there, not here."""
        self._thread.start()

    def submit(self, command: Command) -> None:
        """Queue a command; its results arrive as events."""
        task = _Task(command)
        with self._lock:
            self._unfinished.append(task)
        self._queue.put(task)

    def ask(self, request: Request, receive: Callable[[Event], None]) -> Ticket:
        """Hand in another program's request; it is answered beside the conversation.

        Args:
            receive: Called on the engine thread with each event of the reply.
        """
        ticket = Ticket(request, receive)
        self._requests.submit(ticket)
        self._queue.put(_WAKE_UP)
        return ticket

    def stop(self) -> None:
        """Stop all commands submitted so far: the running one within one token or prefill chunk."""
        with self._lock:
            for task in self._unfinished:
                task.stop.set()

    def cancel_download(self) -> None:
        """Cancel the download. The received part stays on disk and the next download resumes it."""
        if (download := self._download) is not None:
            download.cancel()

    def shutdown(self, timeout: float = 10.0) -> None:
        """Stop, save and release the model; waits at most ``timeout`` seconds."""
        self._closing.set()
        self.stop()
        self.cancel_download()
        self._queue.put(None)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._finished.wait(timeout)

    # Everything below runs on the engine thread.

    @property
    def _model(self) -> LoadedModel | None:
        return self._models.loaded

    def _run(self) -> None:
        from tqchat.engine.models.current import CurrentModel

        self._models = CurrentModel(self._default_adapter, self._find_profile)
        with log_to(self._paths.log_dir):
            self._prune()
            while (item := self._next()) is not None:
                self._handle(item)
            self._save()
            self._requests.end("tqchat is closing.")
            self._models.loaded = self._current = None
            gc.collect()
        self._finished.set()
        # MLX's thread-local destructors need the interpreter and abort the process during its shutdown. So
        # this daemon thread never returns.
        threading.Event().wait()

    def _next(self) -> _Task | DownloadUpdate | _WakeUp | None:
        if self._model is not None and self._awaiting_model:
            return self._awaiting_model.popleft()
        while True:
            try:
                return self._queue.get_nowait()
            except queue.Empty:
                self._save(interrupted=self._has_commands)
                self._requests.save(self._has_commands)
                if not self._requests.has_work or (self._model is None and self._download is not None):
                    return self._queue.get()
                self._answer_requests()

    def _answer_requests(self) -> None:
        """Do a slice of work for other programs."""
        if self._requests.has_work and not self._closing.is_set():
            try:
                self._requests.step(self._model)
            except Exception:
                _log.exception("A step of another program's request failed")

    def _serve_requests(self) -> None:
        """Do a slice of work for other programs beside a command, and pack and save one of their caches."""
        self._answer_requests()
        self._requests.save(self._has_commands, only_one=True)

    def _has_commands(self) -> bool:
        """Whether a command waits."""
        with self._lock:
            begun = len(self._awaiting_model) + (self._running is not None)
            return len(self._unfinished) > begun or self._closing.is_set()

    def _handle(self, item: _Task | DownloadUpdate | _WakeUp) -> None:
        if self._closing.is_set() or isinstance(item, _WakeUp):
            return
        try:
            if isinstance(item, DownloadUpdate):
                self._on_download_update(item)
            elif self._needs_pending_model(item):
                self._awaiting_model.append(item)
                return
            else:
                self._running = item
                self._execute(item)
        except Exception as error:  # the thread must survive any error
            self._report_failure(item, error)
        if isinstance(item, _Task):
            with self._lock:
                self._unfinished.remove(item)
                self._running = None

    def _execute(self, task: _Task) -> None:
        match task.command:
            case LoadModel() as command:
                self._load(command)
            case EstimateModel() as command:
                self._estimate(command)
            case OpenConversation() as command:
                self._open(command, command.scheme)
            case Send() as command:
                self._send(command, task.stop)
            case SetScheme() as command:
                self._set_scheme(command, task.stop)
            case Compose() as command:
                self._compose(command, task.stop)
            case ForgetConversation() as command:
                self._forget(command)
            case WarmUp() as command:
                self._warm_up(command, task.stop)
            case ForgetMessages() as command:
                self._forget_messages(command)

    def _needs_pending_model(self, task: _Task) -> bool:
        """Whether a command needs the model that is being downloaded."""
        needs_model = isinstance(task.command, OpenConversation | Send | SetScheme | Compose | WarmUp)
        return needs_model and self._model is None and self._download is not None

    def _emit(self, event: Event) -> None:
        try:
            self._on_event(event)
        except Exception:
            _log.exception("The receiver of %s failed", type(event).__name__)

    def _report_failure(self, item: _Task | DownloadUpdate, error: Exception) -> None:
        message = user_message(error)
        command = item.command if isinstance(item, _Task) else LoadModel(item.ref)
        if isinstance(command, LoadModel):
            self._emit(ModelFailed(model_ref(command.ref), message))
        elif not isinstance(command, EstimateModel | WarmUp):
            self._emit(Failed(command.conversation_id, message))

    # Models.

    def _load(self, command: LoadModel) -> None:
        from tqchat.engine import backend
        from tqchat.engine.hub.resolve import local_folder

        ref = model_ref(command.ref)
        self._emit(ModelProgress(ref, "loading"))
        self._models.ask_for(command.ref)
        backend.prepare()
        self._watch_kernels()
        folder = local_folder(command.ref)
        self._cancel_replaced_download()
        if folder is not None:
            self._use_model(command.ref, folder)
            return
        self._download = DownloadThread(ref, self._queue.put)
        self._download.start()

    def _estimate(self, command: EstimateModel) -> None:
        from tqchat.engine.memory.estimate import estimate

        try:
            self._emit(estimate(command.folder, command.ref))
        except Exception as error:
            self._emit(ModelEstimate(command.ref, problem=user_message(error)))

    def _cancel_replaced_download(self) -> None:
        """Cancel the download of a model that the user no longer waits for."""
        if self._download is not None:
            self._download.cancel()
            reason = f"The download of {self._download.ref} was cancelled: another model was chosen."
            self._emit(ModelFailed(self._download.ref, reason))
            self._download = None

    def _on_download_update(self, update: DownloadUpdate) -> None:
        download = self._download
        if download is None or update.download is not download:
            return  # from a cancelled download
        if update.progress is not None:
            done, total = download.progress
            self._emit(ModelProgress(update.ref, "downloading", done, total))
            return
        self._download = None
        try:
            if update.error is not None:
                raise update.error
            assert update.folder is not None
            self._emit(ModelProgress(update.ref, "loading"))
            self._use_model(update.ref, update.folder)
        finally:
            if self._model is None:
                # The waiting commands fail, each with its own error.
                for task in list(self._awaiting_model):
                    self._queue.put(task)
                self._awaiting_model.clear()

    def _use_model(self, ref: str | None, folder: Path) -> None:
        """Load a model and make it current; the previous one stays if that fails."""
        began = time.perf_counter()
        model = self._models.load(ref, folder)
        self._save()
        current, self._current = self._current, None
        self._requests.use(model)
        self._draft = self._draft_for(model)
        self._emit(ModelReady(model.info, time.perf_counter() - began))
        if model.info.warning is not None:
            self._emit(Notice(None, model.info.warning, "warning"))
        self._notice_undraftable(model)
        if current is not None:
            self._reopen(current)

    def _reopen(self, current: _Current) -> None:
        """Open the conversation that was open with the previous model."""
        session = current.session
        if current.conversation_id is None:
            return
        command = OpenConversation(
            current.conversation_id,
            current.messages,
            session.scheme,
            session.began,
            session.thinking,
            current.adapter,
        )
        try:
            self._open(command, session.scheme)
        except TqchatError as error:
            self._emit(Failed(current.conversation_id, str(error)))

    def _draft_for(self, model: LoadedModel) -> LoadedModel | None:
        """The draft model if configured. If it cannot be used, a notice says why and ``None`` is returned."""
        from tqchat.engine import backend, decoding, models
        from tqchat.engine.hub.resolve import local_folder

        ref = self._drafting.model
        if ref is None:
            return None
        try:
            folder = local_folder(ref)
            if folder is None:
                raise DraftMismatch(
                    f"The draft model {ref} is not on this machine; load it once to download it."
                )
            draft = self._draft or models.load_folder(folder, ref, backend.prepare())
            decoding.check_draft(model, draft)
        except TqchatError as error:
            self._emit(Notice(None, f"Replies are written without a draft model. {error}", "warning"))
            return None
        return draft

    def _notice_undraftable(self, model: LoadedModel) -> None:
        """Say so if the user asked for drafts that this model's cache cannot take back."""
        from tqchat.engine.decoding import no_draft_reason

        if self._drafting.is_asked_for and (reason := no_draft_reason(model)) is not None:
            self._emit(Notice(None, reason, "warning"))

    # Conversations.

    def _open(self, command: OpenConversation | Send | SetScheme, scheme: str) -> _Current:
        from tqchat.engine.session import Session

        if self._model is None:
            raise NoModel()
        if (taken := self._take_over(command, scheme)) is not None:
            return taken
        self._save()
        started = time.perf_counter()
        self._current = None
        self._models.use_adapter(command.adapter)
        self._requests.use(self._model)
        conversation_id, messages = command.conversation_id, command.messages
        lookup = self._drafting.lookup
        session = Session(self._model, scheme, self._limits(), self._draft, command.began, lookup)
        session.thinking = command.thinking
        restored, reason = session.restore(self._vault, conversation_id, messages)
        self._current = _Current(conversation_id, messages, session, command.adapter)
        seconds = time.perf_counter() - started
        saved_under = session.scheme if restored else ""
        self._emit(Opened(conversation_id, restored, seconds, reason, session.transcript_tokens, saved_under))
        self._emit(MemoryUpdate(conversation_id, session.memory()))
        return self._current

    def _session(self, command: Send | SetScheme, scheme: str) -> _Current:
        current = self._current
        if (
            current is None
            or current.conversation_id != command.conversation_id
            or not self._models.has_adapter(command.adapter)
        ):
            current = self._open(command, scheme)
        current.session.thinking = command.thinking
        if command.messages:
            current.messages = command.messages
        return current

    def _take_over(self, command: OpenConversation | Send | SetScheme, scheme: str) -> _Current | None:
        """Let a new conversation go on with the cache of a withdrawn one, under the same scheme."""
        current, conversation_id = self._current, command.conversation_id
        if current is None or current.conversation_id is not None:
            return None
        if any(message.role == "assistant" for message in command.messages):
            return None
        if not self._models.has_adapter(command.adapter) or self._vault.scheme(conversation_id) is not None:
            return None
        session = current.session
        if parse_scheme(scheme).name != session.scheme:
            return None
        current.conversation_id, current.messages = conversation_id, command.messages
        session.thinking = command.thinking
        if command.began is not None:
            session.began = command.began
        self._emit(Opened(conversation_id, 0, 0.0))
        self._emit(MemoryUpdate(conversation_id, session.memory()))
        return current

    def _send(self, command: Send, stop: threading.Event) -> None:
        current = self._session(command, command.scheme)
        session = current.session
        session.limits = self._limits()
        for event in session.prepare_scheme(command.scheme, stop, command.conversation_id):
            self._emit(event)
        self._make_room_for(session)
        history, beginning = command.messages, ChatMessage("assistant", "")
        if command.continues and history and history[-1].role == "assistant":
            history, beginning = history[:-1], history[-1]
        for event in session.send(
            command.messages, command.sampling, stop, command.conversation_id, command.continues, self._vault
        ):
            self._emit(event)
            self._serve_requests()
            if isinstance(event, Done):
                thought, answer = beginning.reasoning, beginning.content
                if event.takes_answer:
                    thought, answer = thought + answer, ""
                reply = ChatMessage("assistant", answer + event.text, thought + event.reasoning)
                current.messages = (*history, reply)

    def _set_scheme(self, command: SetScheme, stop: threading.Event) -> None:
        current = self._session(command, command.scheme)
        conversation_id = command.conversation_id
        for event in current.session.set_scheme(
            command.scheme,
            command.reread,
            command.messages,
            stop,
            conversation_id,
            lambda done, total: self._emit(ConversionProgress(conversation_id, done, total)),
        ):
            self._emit(event)
            self._serve_requests()

    def _compose(self, command: Compose, stop: threading.Event) -> None:
        from tqchat.engine.composing import PreemptibleStop, compose

        if self._model is None:
            raise NoModel()
        if command.purpose == "title":
            stop = PreemptibleStop(stop, self._has_commands)
        if not self._models.has_adapter(command.adapter):
            if command.purpose == "title":
                self._emit(Composed(command.conversation_id, "title", ""))
                return
            self._save()
            self._current = None
            self._models.use_adapter(command.adapter)
            self._requests.use(self._model)
        scheme = self._current.session.scheme if self._current is not None else "fp16"
        for event in compose(self._model, scheme, command, stop):
            if event is not None:
                self._emit(event)
            self._serve_requests()

    def _forget(self, command: ForgetConversation) -> None:
        current = self._current
        if current is not None and current.conversation_id == command.conversation_id:
            if command.withdrawn:
                current.conversation_id = None
            else:
                self._current = None
        self._remove_saved(command.conversation_id)

    def _forget_messages(self, command: ForgetMessages) -> None:
        current = self._current
        if current is not None and current.conversation_id == command.conversation_id:
            current.messages = command.messages
            current.session.forget_all_but(command.messages)
        self._remove_saved(command.conversation_id)  # what is left is saved again

    def _remove_saved(self, conversation_id: str) -> None:
        try:
            self._vault.remove(conversation_id)
        except TqchatError as error:
            self._emit(Notice(conversation_id, str(error), "warning"))

    def _warm_up(self, command: WarmUp, stop: threading.Event) -> None:
        from tqchat.engine.models import warm_up

        if self._model is not None and warm_up.is_needed(self._model, command.scheme):
            warm_up.warm_up(self._model, command.scheme, stop)

    def _watch_kernels(self) -> None:
        """Say how far the compilation of CUDA kernels is, as long as the engine runs."""
        from tqchat.engine.models import warm_up

        folder = warm_up.kernel_folder()
        if folder is not None and self._kernels is None:
            self._kernels = warm_up.KernelWatch(folder, lambda text: self._emit(Notice(None, text)))

    def _make_room_for(self, session: Session) -> None:
        """Release idle caches of requests where the conversation's could not grow to twice its size."""
        if (budget := session.memory_budget) is not None:
            self._requests.shrink(max(0, budget - 2 * self._conversation_bytes()))

    def _conversation_bytes(self) -> int:
        """Bytes of the live conversation's cache."""
        return 0 if self._current is None else self._current.session.cache.allocated_bytes

    def _prune(self) -> None:
        try:
            if self._paths.requests.exists():
                self._requests.prune()
            for entry in self._vault.prune():
                _log.info("Deleted the least recently used cache, of %s", entry.conversation)
        except Exception:
            _log.exception("Pruning the caches on disk failed")

    def _save(self, interrupted: Callable[[], bool] = lambda: False) -> None:
        """Save the live cache if it has changed. A failure is reported once, until it changes again."""
        current = self._current
        if current is None or current.conversation_id is None:
            return
        if not current.session.changed or not current.session.tokens:
            return
        began = time.perf_counter()
        try:
            size = current.session.save(self._vault, current.conversation_id, interrupted)
        except Exception as error:
            current.session.changed = False
            if isinstance(error, kv.CacheFileError):  # this model's caches have no form on disk
                model = current.session.model.info.fingerprint
                if model == self._unsavable:
                    return
                self._unsavable = model
            self._emit(SaveFailed(current.conversation_id, user_message(error)))
        else:
            if not size:
                return  # interrupted by a command; saved after it
            self._requests.prune()
            seconds = time.perf_counter() - began
            tokens = len(current.session.tokens)
            self._emit(Saved(current.conversation_id, tokens, size, seconds))
