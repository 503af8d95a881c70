"""What create_chat_completion never evicts: the system prompt of each chat."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Literal, TypeVar

import jinja2

from .. import bridge
from ..cache.reuse import PromptReuse, common_prefix
from ..config import MorphKV
from .media import check_images, media_handler, sounds_as_images
from .model import ChatModel
from .template import ChatTemplate, Message

T = TypeVar("T")
Keep = Literal["system"] | int | None

# Keywords of create_chat_completion that templates put before the first question.
SHOWN = ("functions", "function_call", "tools", "tool_choice")


class ChatKeep:
    """Finds the tokens before a chat's first question, and has the cache keep them before the prompt is decoded.

    Streams are read later than they are asked for, so each takes its tokens along.
    """

    def __init__(self, keep: Keep, config: MorphKV):
        if isinstance(keep, int) and not isinstance(keep, bool):
            if not 0 <= keep < config.capacity - config.n_recent:
                raise ValueError(
                    f"keep must be in 0..capacity - window - 1, got {keep} with {config.capacity} - {config.n_recent}"
                )
        elif keep not in ("system", None):
            raise ValueError(f'keep must be "system", a number of tokens or None, got {keep!r}')
        self.keep = keep
        self._config = config
        self._start: Sequence[int] | None = None  # of the chat that is being asked
        self._due: Sequence[int] | None = None  # of the completion whose prompt comes next
        self._reads_media = False  # the chat that is being asked: by its handler
        self._told: set[str] = set()

    @contextlib.contextmanager
    def asked(self, llm: ChatModel, messages: Sequence[Message], options: dict[str, Any]) -> Iterator[Any]:
        """Completions that are begun in here are answers in this chat. Gives the messages as its handler takes them."""
        outer = self._start, self._reads_media
        self._start = [] if self.keep is None else self._first_tokens(llm, messages, options)
        self._reads_media = media_handler(llm) is not None
        check_images(llm)
        if self.keep is None and not self._reads_media:
            self._start = None
        try:
            yield sounds_as_images(messages) if self._reads_media else messages
        finally:
            self._start, self._reads_media = outer

    def before_eval(self, llm: ChatModel, tokens: Sequence[int]) -> bool:
        """Whether these tokens are a prompt's that a chat handler which reads images evaluates, before it completes.

        Before the first, the cache is told what is to be kept.
        """
        if not self._reads_media or self._start is None:
            return False
        config = llm.morphkv or self._config  # a session may have raised the capacity
        if llm.n_tokens == 0:
            n_keep = max(config.keep, common_prefix(self._start, tokens)) if self.keep == "system" else self.keep
            if n_keep is not None and n_keep < config.capacity - config.n_recent:
                bridge.set_keep(llm.ctx, 0, n_keep)
            elif n_keep is not None:
                self._tell_no_room(n_keep, config)
        return True

    def take_along(self, chunks: Generator[T, None, None]) -> Generator[T, None, None]:
        self._reads_media = False  # it has read all
        return chunks if self._start is None else self._read(self._start, chunks)

    def _read(self, start: Sequence[int], chunks: Generator[T, None, None]) -> Generator[T, None, None]:
        self._due = start
        try:
            yield from chunks
        finally:
            if self._due is start:
                self._due = None

    def apply(self, llm: ChatModel, prompt: Sequence[int], reuse: PromptReuse) -> bool:
        """Before a prompt is decoded, of which the cache holds what `reuse` says; whether it was emptied for that."""
        start, self._due = self._due, None
        if start is None or self.keep is None or min(prompt, default=0) < 0:
            return False  # a prompt with images has been evaluated
        config = llm.morphkv or self._config
        n_keep = max(config.keep, common_prefix(start, prompt)) if self.keep == "system" else self.keep
        if n_keep >= config.capacity - config.n_recent:
            self._tell_no_room(n_keep, config)
            return False
        stats = llm.cache_stats()
        # what is to be kept may be gone
        emptied = reuse.n_cached == 0 or (stats.n_evictions > 0 and n_keep > stats.keep)
        if emptied:
            llm.reset()
            llm._ctx.kv_cache_seq_rm(-1, 0, -1)
            llm.last_prompt = PromptReuse(reuse.n_prompt, reuse.n_common, 0)
        if emptied or n_keep != stats.keep:
            bridge.set_keep(llm.ctx, 0, n_keep)
        return emptied

    def _first_tokens(self, llm: ChatModel, messages: Sequence[Message], options: dict[str, Any]) -> list[int]:
        if self.keep != "system":
            return []
        n_system = next((i for i, message in enumerate(messages) if message.get("role") != "system"), len(messages))
        shown = {name: options[name] for name in SHOWN if options.get(name) is not None}
        try:
            rendered = ChatTemplate.of(llm).before_first(messages[:n_system], **shown)
        except (ValueError, TypeError, LookupError, jinja2.TemplateError) as error:
            self._tell(
                "handler",
                f"how much of this chat is its system prompt cannot be told, and only keep={self._config.keep} first "
                f"tokens stay: {error}",
            )
            return []
        return llm.tokenize(rendered.text.encode(), add_bos=rendered.add_bos, special=True)

    def _tell_no_room(self, n_keep: int, config: MorphKV) -> None:
        self._tell(
            "room",
            f"the system prompt has {n_keep} tokens, which must be less than capacity - window to be kept, got "
            f"{config.capacity} - {config.n_recent}: only keep={config.keep} first tokens stay. "
            f"MorphKV(capacity={config.capacity + n_keep - config.keep}) would keep it all",
        )

    def _tell(self, what: str, sentence: str) -> None:
        if what not in self._told:
            self._told.add(what)
            warnings.warn(sentence, RuntimeWarning, stacklevel=5)
