"""Models in memory: loaded on demand, verified at every load, kept while somebody uses them.

A refusal is remembered until the package or the keys change. Where memory is short for one more, the models that nobody
uses now make room, the one that was asked for longest ago first; those that the configuration preloads stay.
"""

import asyncio
import collections
import contextlib
import dataclasses
import datetime
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from appliance.decoding.breaker import Words
from appliance.decoding.grammar import Constraint, Grammar, Vocabulary, compile_grammar
from appliance.engine.memory import has_room
from appliance.engine.session import SLOTS, Session
from appliance.errors import (
    InvalidRequest,
    ModelNotFound,
    OutOfMemory,
    SkerryError,
    VerificationFailed,
    error_class,
)
from appliance.files import snapshot
from appliance.models.package import TEMPLATE_FILE, TOKENIZER_FILE, VerifiedModel, open_verified
from appliance.models.store import Store
from appliance.models.template import ChatTemplate
from appliance.models.tokenizer import Tokenizer
from appliance.trust.keys import KeySet

log = logging.getLogger("skerry.inferenced")

KEPT_GRAMMARS = 32
"""Grammars of each model that stay compiled."""
MOST_OF_PACKAGE = 2
"""A model in memory takes at most so many times what its package and its kept beginnings take: SmolLM2 1.2 times."""


@dataclass(eq=False)
class Loaded:
    """A model in memory. `retain` before each job, `release` after it."""

    name: str
    session: Session
    tokenizer: Tokenizer
    template: ChatTemplate | None
    words: Words
    vocabulary: Vocabulary
    loaded_at: datetime.datetime
    load_s: float
    requests: int = 0
    pinned: bool = False
    used_at: float = field(default_factory=time.monotonic)
    _users: int = 1  # the host is one
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _grammars: collections.OrderedDict[Constraint, Grammar] = field(default_factory=collections.OrderedDict)

    def grammar(self, constraint: Constraint) -> Grammar:
        """Compile a grammar, or take the one that was compiled for an earlier request.

        Raises:
            InvalidRequest: it is not one, or it is too large.
        """
        with self._lock:
            if constraint in self._grammars:
                self._grammars.move_to_end(constraint)
                return self._grammars[constraint]
        grammar = compile_grammar(constraint, self.vocabulary)
        with self._lock:
            self._grammars[constraint] = grammar
            if len(self._grammars) > KEPT_GRAMMARS:
                self._grammars.popitem(last=False)
        return grammar

    @property
    def idle(self) -> bool:
        """Whether no job uses it."""
        return self._users == 1

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep it while a request is prepared, before there is a job."""
        self.retain()
        try:
            yield
        finally:
            self.release()

    def retain(self) -> None:
        """Keep the session open for a job."""
        with self._lock:
            if self._users == 0:
                raise ModelNotFound(f"cannot use {self.name}: it was unloaded just now", hint="send the request again")
            self._users += 1
            self.used_at = time.monotonic()

    def release(self) -> None:
        """Give it back; the last one closes the session."""
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last:
            self.session.close()


@dataclass(frozen=True)
class _Problem:
    """Why a model was refused; the exception itself would keep its frames alive."""

    kind: str
    message: str
    hint: str | None


class ModelHost:
    """All models of one daemon, by name."""

    def __init__(
        self,
        models_dir: Path,
        keys_dir: Path,
        threads: int | None,
        *,
        slots: int = SLOTS,
        prefix_bytes: int = 0,
        draft_tokens: int = 0,
    ) -> None:
        """Look at nothing yet.

        Args:
            models_dir: installed packages.
            keys_dir: trusted keys; read anew at every load, so that a revoked key is refused from then on.
            threads: of each session.
            slots: how many answers of each may be computed at once.
            prefix_bytes: what each may keep of prompts, see `engine.prefixes`.
            draft_tokens: how many tokens each may guess at once, see `engine.drafts`.
        """
        self.store = Store(models_dir)
        self._keys_dir = keys_dir
        self._open = partial(
            Session, threads=threads, slots=slots, prefix_bytes=prefix_bytes, draft_tokens=draft_tokens
        )
        self._loaded: dict[str, Loaded] = {}
        self._loading = asyncio.Lock()  # one at a time: two would count the same memory as theirs
        self._problems: dict[str, _Problem] = {}
        self._refused: dict[str, tuple[object, _Problem]] = {}
        self.on_load: Callable[[Loaded], None] = lambda loaded: None
        """Is told of each model that was loaded on demand, in the event loop."""

    @property
    def loaded(self) -> dict[str, Loaded]:
        """Models in memory."""
        return dict(self._loaded)

    def preload(self, name: str) -> Loaded:
        """Load a model before the event loop runs; it stays until an operator unloads it.

        Raises:
            as `get`.
        """
        started = time.monotonic()
        self._loaded[name] = self._load(name, self._verify(name), started)
        self._loaded[name].pinned = True
        return self._loaded[name]

    async def get(self, name: str | None, *, chat: bool = False) -> Loaded:
        """Find a model, loading it if need be.

        Args:
            name: None stands for the only one there is.
            chat: with None, look only at models that can chat.
        Raises:
            ModelNotFound: it is not installed.
            InvalidRequest: None, and there are several.
            VerificationFailed, OutOfMemory: it may not, or cannot, be loaded.
        """
        name = name or self._only(chat=chat)
        if name in self._loaded:
            return self._loaded[name]
        self.store.path(name)  # before a lock is made for a name that is none
        async with self._loading:
            if name not in self._loaded:
                seen = self._seen(name)  # before the work: a change during it is a change
                self._refuse_again(name, seen)
                try:
                    self._loaded[name] = await self._load_in_room(name)
                except SkerryError as e:
                    self._problems[name] = _Problem(e.kind, e.message, e.hint)
                    if isinstance(e, VerificationFailed):
                        self._refused[name] = (seen, self._problems[name])
                    raise
                self._problems.pop(name, None)
                self.on_load(self._loaded[name])
            return self._loaded[name]

    async def _load_in_room(self, name: str) -> Loaded:
        """Verify a model and load it; where memory is short, in the room of models that nobody uses now.

        Raises:
            OutOfMemory: all that are left are in use, or stay.
        """
        started = time.monotonic()
        while True:
            model = await asyncio.to_thread(self._verify, name)
            hope = self._make_room(name, model.size_bytes)
            try:
                return await asyncio.to_thread(self._load, name, model, started)
            except OutOfMemory:  # others may have taken what was there a moment ago
                idle = self._idle()
                if not hope or not idle:
                    raise
                self._forget(idle[0], name)

    def _make_room(self, name: str, needed: int) -> bool:
        """Unload idle models until another one fits; none, if all of them could not be enough: then say so."""
        idle = self._idle()
        if not has_room(needed - MOST_OF_PACKAGE * sum(map(_held_bytes, idle))):
            return False
        while idle and not has_room(needed):
            self._forget(idle.pop(0), name)
        return True

    def _forget(self, idle: Loaded, name: str) -> None:
        # Not `unload`: a model that was removed from the disk may be in memory still.
        log.info("unloading %s, to make room for %s", idle.name, name)
        self._loaded.pop(idle.name).release()

    def _idle(self) -> list[Loaded]:
        """Models that may make room, the one that was asked for longest ago first."""
        idle = [one for one in self._loaded.values() if one.idle and not one.pinned]
        return sorted(idle, key=lambda one: one.used_at)

    def _refuse_again(self, name: str, seen: object) -> None:
        """A package that was refused stays so until it or the keys change: no caller can have it hashed over and over.

        An operator's `verify` does the work every time.
        """
        before, problem = self._refused.pop(name, (None, None))
        if problem is not None and seen is not None and seen == before:
            self._refused[name] = (before, problem)
            raise error_class(problem.kind)(problem.message, hint=problem.hint)

    def _seen(self, name: str) -> object:
        """What a refusal depends on; none if that cannot be told."""
        try:
            return (snapshot(self.store.path(name)), snapshot(self._keys_dir))
        except OSError:
            return None

    def _only(self, *, chat: bool) -> str:
        # The template's presence is a hint for choosing, nothing more; the card decides after it is verified.
        names = [n for n in self.store.names() if not chat or (self.store.root / n / TEMPLATE_FILE).exists()]
        if not names:
            raise ModelNotFound(
                f"cannot answer: no model {'that can chat ' if chat else ''}is installed",
                hint="install one, see `skerry model --help`",
                param="model",
            )
        if len(names) > 1:
            raise InvalidRequest(
                f"cannot choose a model: expected one of {', '.join(names)}", hint="name one in `model`", param="model"
            )
        return names[0]

    def _verify(self, name: str) -> VerifiedModel:
        return open_verified(self.store.path(name), KeySet.from_directory(self._keys_dir))

    def _load(self, name: str, model: VerifiedModel, started: float) -> Loaded:
        """Make a verified model ready; it is closed if that fails."""
        try:
            card = model.card
            tokenizer = Tokenizer(
                bytes(model.files[TOKENIZER_FILE]), bos=card.tokens.bos if card.tokens.add_bos else None
            )
            tokenizer.cover(card.vocabulary_size)
            template = None
            if TEMPLATE_FILE in model.files:
                words = {i: text for text, i in tokenizer.control.items()}
                template = ChatTemplate(
                    bytes(model.files[TEMPLATE_FILE]).decode("utf-8", "replace"),
                    tokenizer,
                    bos=words.get(card.tokens.bos, "") if card.tokens.bos is not None else "",
                    eos=words.get(card.tokens.stop[0], "") if card.tokens.stop else "",
                )
            names = {text: i for i, text in tokenizer.names.items()}
            watched = Words.of(tokenizer.token_bytes, names, tokenizer.encode("\n", bos=False))
            vocabulary = Vocabulary(
                tokenizer.token_bytes, tokenizer.control, card.tokens.stop, partial(tokenizer.encode, bos=False)
            )
            session = self._open(model)
        except BaseException:
            model.close()
            raise
        now = datetime.datetime.now(datetime.UTC)
        return Loaded(name, session, tokenizer, template, watched, vocabulary, now, time.monotonic() - started)

    async def verify(self, name: str) -> dict[str, Any]:
        """Verify an installed package as a load would, and describe it.

        Raises:
            ModelNotFound, VerificationFailed: as `get`.
        """
        self.store.path(name)
        try:
            with await asyncio.to_thread(self._verify, name) as model:
                described = {**self.describe(name), **_describe_package(model), "verified": True}
        except SkerryError as e:
            self._problems[name] = _Problem(e.kind, e.message, e.hint)
            raise
        self._problems.pop(name, None)
        return {**described, "state": "loaded" if name in self._loaded else "installed", "problem": None}

    def unload(self, name: str) -> dict[str, Any]:
        """Forget a model; its memory comes back when its last answer is complete.

        Raises:
            ModelNotFound: it is not installed.
        """
        self.store.path(name)
        loaded = self._loaded.pop(name, None)
        if loaded is not None:
            loaded.release()
        return self.describe(name)

    def close(self) -> None:
        """Forget all models."""
        for name in list(self._loaded):
            self._loaded.pop(name).release()

    def describe(self, name: str) -> dict[str, Any]:
        """Describe an installed model by what is proven; what is not stays null.

        Raises:
            ModelNotFound: it is not installed.
        """
        self.store.path(name)
        loaded, problem = self._loaded.get(name), self._problems.get(name)
        described: dict[str, Any] = {
            "name": name,
            "state": "loaded" if loaded else "refused" if problem else "installed",
            "problem": problem and dataclasses.asdict(problem),
            **dict.fromkeys(_PACKAGE_FIELDS),
            "loaded_at": None,
            "load_s": None,
            "requests": 0,
        }
        if loaded:
            described |= _describe_package(loaded.session.model)
            described |= {
                "loaded_at": loaded.loaded_at.isoformat(timespec="seconds").replace("+00:00", "Z"),
                "load_s": round(loaded.load_s, 3),
                "requests": loaded.requests,
            }
        return described


def _held_bytes(loaded: Loaded) -> int:
    """Bytes of a model's package, and of what it keeps of prompts."""
    return loaded.session.model.size_bytes + loaded.session.prefixes.held.size_bytes


_PACKAGE_FIELDS = (
    "version",
    "architecture",
    "summary",
    "quantization",
    "context_length",
    "chat",
    "size_bytes",
    "parameters",
    "licence",
    "key_id",
    "root_digest",
)


def _describe_package(model: VerifiedModel) -> dict[str, Any]:
    card = model.card
    return {
        "version": card.version,
        "architecture": card.architecture,
        "summary": card.summary,
        "quantization": card.quantization.scheme,
        "context_length": card.context_length,
        "chat": card.chat,
        "size_bytes": model.size_bytes,
        "parameters": {
            "total": card.parameters.total,
            "embedding": card.parameters.embedding,
            "effective": card.parameters.effective,
        },
        "licence": card.licence.id,
        "key_id": model.key_id,
        "root_digest": model.root_digest,
    }
