"""The text in a Llama's cache: decoded, recalled for, saved and loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp import LlamaState
from llama_cpp.llama_cache import BaseLlamaCache
from llama_cpp.llama_tokenizer import LlamaTokenizer

from .. import bridge
from ..config import MorphKV
from ..errors import ArchiveError, ContextFullError, DecodeError, EvictedError, NoMorphKVError
from . import saved_state, state_file
from .archive import CacheType, Recall
from .attached import SourceWatch
from .context import ContextLlama
from .disk_cache import LlamaDiskCache
from .fingerprint import model_fingerprint
from .live import CacheHolder
from .one_thread import OneThread
from .reading import Progress, ReadText, read_path
from .retention import Retention, retention_of
from .worker import Worker


class OneTextLlama(ContextLlama):
    """llama_cpp.Llama's eval and states for a cache that evicts, and that sessions take turns with."""

    _one_thread: OneThread
    _worker: Worker
    _holder: Callable[[], CacheHolder | None] | None = None  # the session that the cache belongs to

    _source_watch: SourceWatch | None = None
    # Called while a prompt is read, after each batch, with the tokens read and all that are to be read.
    progress: Callable[[int, int], None] | None = None

    # With an archive: what the last prompt recalled, one entry a recall.
    last_recalls: Sequence[Recall] = ()

    def _is_end(self, token: int) -> bool:
        return bool(llama_cpp.llama_vocab_is_eog(self._model.vocab, token))

    def _clear(self) -> None:
        self._ctx.kv_cache_clear()  # type: ignore[no-untyped-call]

    def _leave_text(self) -> LlamaState | None:
        """To be called before the cache changes: the session that it belongs to, if any, saves its state.

        Gives this state. Raises NativeError, and the cache stays the session's, where it cannot be saved.
        """
        text = self._holder and self._holder()
        return None if text is None else text.leave()

    def decode(self, tokens: Sequence[int]) -> None:
        """As eval(), but nothing is recalled."""
        n_all = self.n_tokens + len(tokens)
        if n_all > self._n_ctx:
            raise ContextFullError(f"Requested tokens ({n_all}) exceed context window of {self._n_ctx}")
        self._leave_text()
        if not self._ctx.kv_cache_seq_rm(-1, self.n_tokens, -1):
            stats = self.cache_stats()
            mark = f", or {stats.mark_pos}, where it has a mark" if stats.mark_pos > 0 else ""
            raise EvictedError(
                f"n_tokens must be above {stats.complete_pos}, where the cache is complete since its last "
                f"eviction{mark}, got {self.n_tokens}: reset() and evaluate the whole text again"
            )
        n_before = self.n_tokens
        try:
            super().eval(tokens)
        except RuntimeError as error:
            reason = bridge.last_error()
            self._follow_cache(n_before, tokens)
            raise DecodeError(f"{error}: {reason}" if reason else str(error)) from error
        except BaseException:
            # Ctrl-C, seen after tokens were decoded and before they are counted
            self._follow_cache(n_before, tokens)
            raise
        self._look_at_archive()

    def _follow_cache(self, n_before: int, tokens: Sequence[int]) -> None:
        """Set n_tokens to what the cache holds, after tokens were to be decoded behind the first n_before."""
        self.n_tokens = self.cache_stats().logical_pos + 1
        if self.n_tokens > n_before:
            self.input_ids[n_before : self.n_tokens] = tokens[: self.n_tokens - n_before]
        self._requires_eval = True

    def retention(self, seq_id: int = 0) -> Retention:
        """Which tokens of the text each KV head keeps, to look at: retention().plot(), save_html(), or in a notebook.

        Raises NoMorphKVError without MorphKV, ValueError for a sequence that the context does not have.
        """
        name = Path(os.fsdecode(self.model_path)).stem
        return retention_of(self._ctx.ctx, self._model.model, self._input_ids, name, seq_id)

    def recall(self) -> Recall:
        """Bring archived tokens that the newest queries attend to back into distant slots, whole pages of 16 tokens.

        The newest queries are those of the tokens decoded last. On failure the cache is as before.
        Raises ArchiveError without an archive, NativeError with the reason for a recall that failed.
        """
        if self._archive is None:
            raise ArchiveError("a recall needs an archive: open the model with Llama(..., morphkv=True, archive='ram')")
        self._leave_text()
        return self._recall()

    def _recall(self) -> Recall:
        settings = {} if self._archive is None else self._archive.recall_settings()
        return self._recalled(bridge.recall(self.ctx, 0, **settings))

    def _recall_while_writing(self) -> None:
        """Before a written token is decoded. A tail that cannot be taken back is left for decode() to refuse."""
        if self._archive is None or (self._has_drafts and not self._ctx.kv_cache_seq_rm(-1, self.n_tokens, -1)):
            return
        self._leave_text()
        if bridge.write_next(self.ctx, 0, **self._archive.recall_settings()) is not None:
            self._look_closely_at_archive()

    def _recalled(self, fields: dict[str, Any]) -> Recall:
        self._look_closely_at_archive()
        if self._archive is None or not self._archive.attach:
            return Recall(**fields)
        if self._source_watch is None:
            self._source_watch = SourceWatch(lambda ids: self.detokenize(ids).decode("utf-8", "replace"))
        return Recall(**fields, sources=self._source_watch.look(self.ctx))

    def read(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        into: str | os.PathLike[str],
        text: str | None = None,
        type: CacheType | None = None,
        progress: bool | Progress = True,
    ) -> ReadText:
        """Read a text once and for all, into a file: any Llama of this model attaches it (archive=[into]), and recalls
        bring what a question asks for. The text in the cache is not touched; memory does not grow with the text.

        path: of a UTF-8 file; or text: the text itself.
        type: data type of K and V in the file; None: q8_0 where heads can be of that, else as in the cache.
        progress: True: a bar, on a terminal. A function gets the number of tokens read, and of all.

        Raises NoMorphKVError without MorphKV, OSError for a file that cannot be read, ArchiveError for one that cannot
        be written, and for a text that is too short, DecodeError where decoding fails. An older file stays then.
        """
        return read_path(self, self._require_morphkv(), path, text, into, type, progress)

    def save_state(self) -> LlamaState:
        """The cache and the text in it, to go on from with `load_state`, here or in another process with the same model
        and settings. Its size is constant but for the text's token ids (4 bytes each) and, with
        logits_all, the logits.
        """
        if self._morphkv is None:
            return super().save_state()
        data = bridge.state(self.ctx)
        self._look_closely_at_archive()
        return LlamaState(
            input_ids=self._input_ids.copy(),
            # without logits_all the rows are never written
            scores=self._scores.copy() if self._logits_all else np.empty((0, self._n_vocab), dtype=np.single),
            n_tokens=self.n_tokens,
            llama_state=data,
            llama_state_size=len(data),
            seed=self._seed,
        )

    def load_state(self, state: LlamaState) -> None:
        """Go on where `save_state` was called.

        Raises StateError for a state that is damaged, or of another model or other settings, TypeError for what is
        none. Then nothing changes.
        """
        if self._morphkv is None:
            super().load_state(state)
            return
        saved_state.check(self, state)
        before = self._leave_text()
        saved_state.load(self, state.llama_state, lambda n_cache: state.n_tokens <= n_cache, before)
        self._set_text(state)
        self._one_thread.restored()

    def _set_text(self, state: LlamaState) -> None:
        """What the native part of a state does not hold."""
        self.n_tokens = int(state.n_tokens)
        self.input_ids[: state.n_tokens] = state.input_ids[: state.n_tokens]
        if self._logits_all:
            self.scores[: len(state.scores)] = state.scores
        self._seed = state.seed
        self._requires_eval = True

    def save_state_file(self, path: str | os.PathLike[str]) -> None:
        """Write what `save_state` gives to a file, but rows of logits. An older file is replaced whole or not at all.

        Nothing in it is ever executed, as a pickle's contents are. Raises NoMorphKVError without MorphKV, OSError where
        it cannot be written, ValueError for a path that is not a regular file.
        """
        state_file.save(path, self._require_morphkv(), self.model_path, self.save_state())

    def load_state_file(self, path: str | os.PathLike[str]) -> None:
        """Go on where `save_state_file` was called.

        Raises OSError for a file that cannot be read, SessionFileError for one that is no state, damaged, or of another
        model or other settings, and what load_state raises. Then nothing changes.
        """
        config = self._require_morphkv()
        self.load_state(state_file.load(path, config, self.model_path, self.n_vocab()))

    def set_cache(self, cache: BaseLlamaCache | LlamaDiskCache | None) -> None:
        """As llama_cpp's: completions go on from what it has. A LlamaDiskCache of morphkv_cpp outlives the process.

        Raises NoMorphKVError for one without MorphKV, ValueError where it is bound to another model or the Llama was
        given a tokenizer of its own, OSError for a folder that cannot be made.
        """
        if isinstance(cache, LlamaDiskCache):
            cache.bind(self._disk_identity(self._require_morphkv()))
        super().set_cache(cache)  # type: ignore[arg-type]

    def _disk_identity(self, config: MorphKV) -> dict[str, Any]:
        """Of texts on disk that this Llama can go on from, as JSON."""
        if type(self.tokenizer_) is not LlamaTokenizer:
            raise ValueError("a LlamaDiskCache needs the model's own tokenizer, got Llama(..., tokenizer=...)")
        params, lora = self.context_params, self.lora_path
        return {
            **state_file.identity(config, self.model_path),
            "cache types": list(self._cache_types),
            "archive type": None if self._archive is None else self._archive.type or self._cache_types[0],
            "rope": [params.rope_scaling_type, params.rope_freq_base, params.rope_freq_scale],
            "adapter": None if lora is None else [model_fingerprint(lora), self.lora_scale],
        }

    def _require_morphkv(self) -> MorphKV:
        if self._morphkv is None:
            raise NoMorphKVError("this needs MorphKV: open the model with Llama(..., morphkv=True)")
        return self._morphkv
