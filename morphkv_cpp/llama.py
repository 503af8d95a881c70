"""llama_cpp.Llama with a KV cache of constant size."""

from __future__ import annotations

import operator
import os
import weakref
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp import LlamaState
from llama_cpp._internals import LlamaContext, LlamaModel
from llama_cpp.llama_speculative import LlamaDraftModel
from llama_cpp.llama_tokenizer import LlamaTokenizer

from . import bridge
from .cache import saved_state
from .cache.archive import Archive, Recall, archive_of
from .cache.archive_watch import ArchiveWatch
from .cache.draft import DraftUpToEviction
from .cache.evals import Evals
from .cache.live_text import LiveText
from .cache.one_thread import OneThread, Turn, guarded
from .cache.reuse import PromptReuse, prompt_reuse
from .cache.stats import CacheStats
from .chat.keep import ChatKeep, Keep
from .chat.session import Session
from .chat.session_load import load_session
from .config import MorphKV
from .rpc import answering_servers
from .text.completion import complete
from .text.utf8 import require_utf8

# Logical limit of a context with MorphKV unless another is given: positions are 32-bit integers.
N_CTX_MAX = 2**31 - 1


@guarded(
    change="_leave_text decode eval load_session load_state recall reset sample",
    use="__call__ cache_stats create_chat_completion create_chat_completion_openai_v1 create_completion "
    "create_embedding embed retained save_state set_cache set_seed",
    read="detokenize n_ctx n_embd n_vocab pooling_type token_bos token_eos token_nl tokenize tokenizer",
)
class Llama(llama_cpp.Llama):
    """A model, as llama_cpp.Llama, whose KV cache can be of constant size.

    morphkv: a MorphKV, or True for its defaults. None or False: exactly llama_cpp.Llama.
    llama_options: every keyword of llama_cpp.Llama. With MorphKV three defaults differ:
        flash_attn is True, which MorphKV needs,
        swa_full is False: sliding-window layers store a window, not as many cells as the others, and
        n_ctx limits prompt plus answer, and costs no memory: 2**31 - 1, which is no limit, unless another is given,
            0: the trained context. With logits_all or a draft_model n_ctx rows of logits are stored, and it is 0
            unless another is given. An answer without max_tokens ends where the model ends it, or at n_ctx.
        A draft_model gives the same greedy text as none: its drafts end where an eviction falls due.
    rpc_servers: "HOST:PORT", several separated by commas or in a sequence: the model lives on their devices and on the
        local GPUs, as far as n_gpu_layers says, all of it unless that is given; tensor_split has the servers' devices
        first. A server (`morphkv rpc-server`) serves one process at a time; another waits.

    archive: with MorphKV, "ram" or the path of a file: each token's K and V are kept there when they leave the window,
        and recalled when the new part of a prompt asks for them, so that old facts can be asked for. Only this grows
        with the text. `archive_type`, `archive_max_bytes`, `recall`, `recall_share`, `recall_redo`, `recall_votes` and
        `recall_distance` are the fields of Archive, which may be given in their place; those that are None have its
        defaults. An archive takes 2 GiB at most unless archive_max_bytes says otherwise. Where it can grow no more (a
        full disk), or a page of it cannot be read, a warning says so once, and all goes on.
    keep: with MorphKV, which first tokens of a chat create_chat_completion never lets be evicted. "system": all before
        the first question, and at least the settings' `keep`; where they do not fit a warning tells the capacity that
        would do. A number: so many. None: the settings' `keep`, as create_completion has it in any case.

    One object is for one thread at a time; several objects may work in as many threads. A second thread gets a
    ThreadError at once: during a call, and with MorphKV until a text that is being written is read to its end or
    closed. Only what needs no more than the vocabulary (tokenize, detokenize, n_vocab, ...) may be called by any.

    Raises TypeError for another `morphkv`; ValueError for a model that cannot be loaded, with llama.cpp's reason, or
    options that exclude MorphKV; RuntimeError for a file that cannot be the archive; UnsupportedError (also a
    ValueError) with the native reason if this model or context cannot have it; ConnectionError where no RPC server
    answers.
    """

    _morphkv: MorphKV | None = None
    _draft_model: LlamaDraftModel | None = None
    _rpc_servers: str | None = None
    _n_ctx_given = 0  # with MorphKV
    _text: weakref.ref[LiveText] | None = None  # the session's that the cache belongs to

    # With MorphKV: how much of generate's last prompt was in the cache already; None before the first.
    last_prompt: PromptReuse | None = None

    # With an archive: what the last prompt recalled, one entry a recall.
    last_recalls: Sequence[Recall] = ()

    _archive: Archive | None = None
    _archive_watch: ArchiveWatch | None = None
    _chat_keep: ChatKeep | None = None
    _evals: Evals | None = None  # with MorphKV

    def __new__(cls, *_arguments: Any, **_options: Any) -> Llama:
        llm = super().__new__(cls)
        llm._one_thread = OneThread()  # close() needs it, however far __init__ came
        return llm

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        morphkv: MorphKV | bool | None = None,
        archive: Archive | str | os.PathLike[str] | None = None,
        archive_type: str | None = None,
        archive_max_bytes: int | None = None,
        recall: str | int | None = None,
        recall_share: float | None = None,
        recall_redo: int | None = None,
        recall_votes: int | None = None,
        recall_distance: int | None = None,
        keep: Keep = "system",
        rpc_servers: str | Sequence[str] | None = None,
        **llama_options: Any,
    ):
        self._morphkv = _config(morphkv)
        if archive is not None and self._morphkv is None:
            raise ValueError(f"an archive needs MorphKV: Llama(..., morphkv=True), got archive={archive!r}")
        self._archive = archive_of(
            archive,
            type=archive_type,
            max_bytes=archive_max_bytes,
            recall=recall,
            share=recall_share,
            redo=recall_redo,
            votes=recall_votes,
            distance=recall_distance,
        )
        if self._morphkv is not None:
            self._chat_keep, self._evals = ChatKeep(keep, self._morphkv), Evals()
        elif keep != "system":
            raise ValueError(f"keep needs MorphKV: Llama(..., morphkv=True), got keep={keep!r}")
        if rpc_servers is not None:
            self._rpc_servers = answering_servers(rpc_servers)
            llama_options.setdefault("n_gpu_layers", -1)
        model_path = os.fsdecode(model_path)
        try:
            if self._morphkv is None:
                self._open(model_path, llama_options)
            else:
                options = _options_with_morphkv(llama_options)
                self._n_ctx_given = options["n_ctx"]
                if not options["logits_all"]:
                    # Buffers begin with room for all cells and grow with the text; with logits_all they are as stock's.
                    options["n_ctx"] = min(options["n_ctx"], max(_n_cells(self._morphkv), options.get("n_batch", 512)))
                with bridge.next_context_has(asdict(self._morphkv)):
                    self._open(model_path, options)
                bridge.require_morphkv(self.ctx)
                self.context_params.n_ctx = super().n_ctx()
                if self._archive is not None:
                    self._archive.start(self.ctx)
                    self._archive_watch = ArchiveWatch()
        except BaseException:
            self.close()
            raise

    def _open(self, model_path: str, options: dict[str, Any]) -> None:
        with bridge.heard_errors() as errors:
            try:
                super().__init__(model_path, **options)
            except ValueError as error:
                if reason := bridge.as_reason(errors):
                    raise ValueError(f"{error}: {reason}") from error
                raise

    @property
    def model_params(self) -> llama_cpp.llama_model_params:
        return self._params_of_model

    @model_params.setter
    def model_params(self, params: llama_cpp.llama_model_params) -> None:
        self._params_of_model = params
        if self._rpc_servers is not None:
            self._devices = bridge.use_rpc_servers(params, self._rpc_servers)

    @property
    def _model(self) -> LlamaModel:
        return self._loaded_model

    @_model.setter
    def _model(self, model: LlamaModel) -> None:
        self._loaded_model = model
        # llama.cpp chooses by the context's size how some models rotate, and warns of one beyond the trained context.
        # MorphKV counts its cells itself. One that is too small for them stays so, to be refused.
        if self._morphkv is not None and self.context_params.n_ctx >= _n_cells(self._morphkv):
            self.context_params.n_ctx = max(self.context_params.n_ctx, model.n_ctx_train())

    @property
    def _ctx(self) -> LlamaContext:
        return self._context

    @_ctx.setter
    def _ctx(self, context: LlamaContext) -> None:
        self._context = context
        # Next, llama_cpp makes a batch with room for context_params.n_ctx sequence ids per token, where it uses one:
        # 256 MiB at the default sizes, resident where transparent huge pages are always on.
        if self._morphkv is not None:
            self.context_params.n_ctx = 1

    @property
    def input_ids(self) -> np.ndarray:
        """Ids of the first n_tokens tokens, int32; with MorphKV there is always room for a batch more behind them."""
        n_needed = self.n_tokens + self.n_batch
        if self._morphkv is not None and n_needed > len(self._token_ids):
            grown = np.empty(max(n_needed, 2 * len(self._token_ids)), dtype=np.intc)
            grown[: len(self._token_ids)] = self._token_ids
            self._token_ids = grown
        return self._token_ids

    @input_ids.setter
    def input_ids(self, token_ids: np.ndarray) -> None:
        self._token_ids = token_ids

    @property
    def draft_model(self) -> LlamaDraftModel | None:
        """As given; with MorphKV its drafts end where an eviction falls due."""
        if self._morphkv is None or self._draft_model is None:
            return self._draft_model
        return DraftUpToEviction(self, self._draft_model)

    @draft_model.setter
    def draft_model(self, draft_model: LlamaDraftModel | None) -> None:
        self._draft_model = draft_model

    @property
    def morphkv(self) -> MorphKV | None:
        """The cache's settings; None without MorphKV."""
        return self._morphkv

    @property
    def archive(self) -> Archive | None:
        """The archive's settings; None without one. What concerns recalls can be changed."""
        return self._archive

    @archive.setter
    def archive(self, archive: Archive) -> None:
        if self._archive is None or not archive.is_same_place(self._archive):
            raise ValueError(f"of an archive that is there only recalls can be changed: {self._archive} to {archive}")
        self._archive = archive

    def recall(self) -> Recall:
        """Bring archived tokens that the newest queries attend to back into distant slots, whole pages of 16 tokens.

        The newest queries are those of the tokens decoded last. On failure the cache is as before.
        Raises ValueError without an archive, NativeError with the reason for a recall that failed.
        """
        if self._archive is None:
            raise ValueError("a recall needs an archive: open the model with Llama(..., morphkv=True, archive='ram')")
        self._leave_text()
        return self._recall()

    def _recall(self) -> Recall:
        return self._recalled(bridge.recall(self.ctx, 0, **self._archive.recall_settings()))

    def _recalled(self, fields: dict[str, Any]) -> Recall:
        self._archive_watch.look_closely(self.ctx)
        return Recall(**fields)

    def n_ctx(self) -> int:
        """Most tokens of prompt plus answer; 2**31 - 1 is no limit."""
        if self._morphkv is None:
            return super().n_ctx()
        return self._n_ctx_given or self._model.n_ctx_train()

    def cache_stats(self, seq_id: int = 0) -> CacheStats:
        """State of a sequence's cache and the memory of all.

        Raises NoMorphKVError without MorphKV, ValueError for a sequence that the context does not have.
        """
        return CacheStats(**bridge.stats(self._ctx.ctx, seq_id))

    def retained(self, layer: int, seq_id: int = 0) -> np.ndarray:
        """Logical positions of the tokens in a layer's distant slots, int32 (n_head_kv, n_distant), -1 where empty.

        All are empty until the first eviction. Each KV head has tokens of its own, in no order.
        Raises NoMorphKVError without MorphKV, ValueError for a layer that has no KV or a sliding window, or an unknown
        sequence.
        """
        return bridge.retained(self._ctx.ctx, seq_id, layer)

    def session(
        self, system: str | None = None, *, keep: Keep = "system", messages: Sequence[dict[str, Any]] | None = None
    ) -> Session:
        """A chat without end on this cache: see Session."""
        return Session(self, system, keep=keep, messages=messages)

    def load_session(self, path: str | os.PathLike[str]) -> Session:
        """Go on with the chat that Session.save wrote: see load_session."""
        return load_session(self, path)

    def _leave_text(self) -> LlamaState | None:
        """To be called before the cache changes: the session that it belongs to, if any, saves its state.

        Gives this state. Raises RuntimeError, and the cache stays the session's, where it cannot be saved.
        """
        text = self._text and self._text()
        return None if text is None else text.leave()

    def generate(self, tokens: Sequence[int], *arguments: Any, **options: Any) -> Generator:
        """As llama_cpp's. With MorphKV, `last_prompt` then tells how much of the prompt was in the cache already, and
        until it ends no other thread may change the text.
        """
        steps = self._generate(tokens, *arguments, **options)
        return self._one_thread.steps(steps, None if self._morphkv is None else Turn())

    def _generate(self, tokens: Sequence[int], *arguments: Any, **options: Any) -> Generator:
        self._leave_text()
        tokens = list(tokens)
        if self._morphkv is not None and options.get("reset", True):
            self.last_prompt = prompt_reuse(self, tokens)
            if self._chat_keep.apply(self, tokens):
                options["reset"] = False  # it has been, and would forget what is to be kept
        self.last_recalls = ()
        if self._evals is not None:
            self._evals.prompt_comes = True
        try:
            # not a loop: callers may send() tokens
            yield from super().generate(tokens, *arguments, **options)
        finally:
            if self._evals is not None:
                self._evals.prompt_comes = False
            self._look_at_archive()

    def sample(self, *arguments: Any, idx: int | None = None, **options: Any) -> int:
        """As llama_cpp's."""
        token = super().sample(*arguments, idx=idx, **options)
        if self._evals is not None:
            self._evals.drew(self.n_tokens if idx is None else idx + 1, token)
        return token

    def eval(self, tokens: Sequence[int]) -> None:
        """Decode tokens behind the first n_tokens, as llama_cpp does.

        With an archive, the first tokens of a generate() are a prompt, for which is recalled what they ask for.

        Raises ValueError, and changes nothing, for more tokens than n_ctx.
        Raises RuntimeError, and changes nothing, when n_tokens was set back too far: evictions cannot be taken back.
        Raises RuntimeError when decoding fails, with the reason if it was an eviction's; n_tokens then says how much
        of the text the cache still holds: all before `tokens` and perhaps some of them, or nothing.
        """
        if self._evals is None:
            super().eval(tokens)
        else:
            self._evals.eval(self, tokens)

    def decode(self, tokens: Sequence[int]) -> None:
        """As eval(), but nothing is recalled."""
        if self.n_tokens + len(tokens) > self._n_ctx:
            raise ValueError(f"Requested tokens ({self.n_tokens + len(tokens)}) exceed context window of {self._n_ctx}")
        self._leave_text()
        if not self._ctx.kv_cache_seq_rm(-1, self.n_tokens, -1):
            raise RuntimeError(
                f"n_tokens must be above {self.cache_stats().complete_pos}, where the cache is complete since its last "
                f"eviction, got {self.n_tokens}: reset() and evaluate the whole text again"
            )
        n_before = self.n_tokens
        try:
            super().eval(tokens)
        except RuntimeError as error:
            reason = bridge.last_error()
            self._follow_cache(n_before, tokens)
            raise RuntimeError(f"{error}: {reason}" if reason else str(error)) from error
        except BaseException:
            # Ctrl-C, seen after tokens were decoded and before they are counted
            self._follow_cache(n_before, tokens)
            raise
        self._look_at_archive()

    def _look_at_archive(self) -> None:
        """What is appended beside the model may fail behind the last decode: so the end of a text looks as well."""
        if self._archive_watch is not None and self.ctx is not None:
            self._archive_watch.look(self.ctx)

    def _follow_cache(self, n_before: int, tokens: Sequence[int]) -> None:
        """Set n_tokens to what the cache holds, after tokens were to be decoded behind the first n_before."""
        self.n_tokens = self.cache_stats().logical_pos + 1
        if self.n_tokens > n_before:
            self.input_ids[n_before : self.n_tokens] = tokens[: self.n_tokens - n_before]
        self._requires_eval = True

    def create_chat_completion(self, messages: Sequence[dict[str, Any]], *arguments: Any, **options: Any) -> Any:
        """As llama_cpp's. With MorphKV the system prompt, or what `keep` says, is never evicted."""
        if self._chat_keep is None:
            return super().create_chat_completion(messages, *arguments, **options)
        with self._chat_keep.asked(self, messages, options):
            return super().create_chat_completion(messages, *arguments, **options)

    def _create_completion(self, *args: Any, **options: Any) -> Iterator[dict[str, Any]]:
        if self._morphkv is None:
            return self._one_thread.steps(super()._create_completion(*args, **options))
        # The text that another tokenizer gives a token may depend on all tokens before it, so llama_cpp sees to that.
        is_own = type(self.tokenizer_) is LlamaTokenizer
        chunks = complete(self, *args, **options) if is_own else super()._create_completion(*args, **options)
        return self._one_thread.steps(self._chat_keep.take_along(chunks))

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """As llama_cpp's, which ends the process for bytes that the vocabulary cannot take.

        Raises ValueError for such, and with MorphKV for all that is no UTF-8, of which vocabularies make less than
        it was. A tokenizer that was given to Llama() is asked itself.
        """
        if type(self.tokenizer_) is not LlamaTokenizer:
            return super().tokenize(text, add_bos, special)
        if self._morphkv is not None:
            require_utf8(text)
        return bridge.tokenize(self._model.vocab, text, add_special=add_bos, parse_special=special)

    def _piece(self, token: int) -> bytes:
        return bridge.token_piece(self._model.vocab, token)

    def save_state(self) -> LlamaState:
        """The cache and the text in it, to go on from with `load_state`, here or in another process with the same model
        and settings; it can be pickled. Its size is constant but for the text's token ids (4 bytes each) and, with
        logits_all, the logits.
        """
        if self._morphkv is None:
            return super().save_state()
        data = bridge.state(self.ctx)
        if self._archive_watch is not None:
            self._archive_watch.look_closely(self.ctx)
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

        Raises RuntimeError for a state that is damaged, or of another model or other settings, TypeError for what is
        none. Then nothing changes.
        """
        if self._morphkv is None:
            super().load_state(state)
            return
        saved_state.check(self, state)
        before = self._leave_text()
        saved_state.load(
            self, state.llama_state, lambda n_cache: state.n_tokens <= n_cache, before and before.llama_state
        )
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

    def __getstate__(self) -> dict[str, Any]:
        state = {**super().__getstate__(), "draft_model": self._draft_model, "morphkv": self._morphkv}
        if self._archive is not None:
            state["archive"] = self._archive
        if self._chat_keep is not None:
            state["keep"] = self._chat_keep.keep
        if self._rpc_servers is not None:
            state["rpc_servers"] = self._rpc_servers
        return state if self._morphkv is None else {**state, "n_ctx": self._n_ctx}

    def close(self) -> None:
        """Free the model and its context. Raises ThreadError while another thread uses them."""
        self._one_thread.close(self._close)

    def _close(self) -> None:
        # Python also finalizes an object whose __init__ never got as far as llama_cpp's.
        if "_stack" not in self.__dict__:
            return
        if "_context" in self.__dict__:
            self._look_at_archive()
        super().close()


def _config(morphkv: MorphKV | bool | None) -> MorphKV | None:
    if morphkv is None or morphkv is False:
        return None
    if morphkv is True:
        return MorphKV()
    if not isinstance(morphkv, MorphKV):
        raise TypeError(f"morphkv must be a MorphKV, a bool or None, got {morphkv!r}")
    return morphkv


def _options_with_morphkv(options: dict[str, Any]) -> dict[str, Any]:
    """Options of llama_cpp.Llama with the defaults of MorphKV; refuses those that exclude it."""
    if not options.get("flash_attn", True):
        raise ValueError(f"flash_attn must be True with MorphKV, got {options['flash_attn']!r}")
    if options.get("embedding", False):
        raise ValueError(f"embedding must be False with MorphKV, got {options['embedding']!r}")
    # llama_cpp turns logits_all on for a draft model, but makes room for n_ctx rows only if it was asked for.
    logits_all = bool(options.get("logits_all")) or options.get("draft_model") is not None
    n_ctx = operator.index(options.get("n_ctx", 0 if logits_all else N_CTX_MAX))
    if not 0 <= n_ctx <= N_CTX_MAX:
        raise ValueError(f"n_ctx must be in 0..{N_CTX_MAX}, got {n_ctx}")
    swa_full = bool(options.get("swa_full"))
    return {**options, "n_ctx": n_ctx, "flash_attn": True, "swa_full": swa_full, "logits_all": logits_all}


def _n_cells(morphkv: MorphKV) -> int:
    """Most cells that a sequence uses."""
    return morphkv.capacity + max(morphkv.interval, morphkv.prompt_room)
