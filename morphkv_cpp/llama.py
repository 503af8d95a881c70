"""llama_cpp.Llama with a KV cache of constant size."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from typing import Any, cast

from llama_cpp import LogitsProcessorList, StoppingCriteriaList
from llama_cpp.llama_grammar import LlamaGrammar
from llama_cpp.llama_tokenizer import LlamaTokenizer

from . import bridge
from .cache.archive import ArchiveOption, archive_of
from .cache.checkpoints import N_DEFAULT as N_CHECKPOINTS
from .cache.checkpoints import Checkpoints
from .cache.evals import Evals
from .cache.one_text import OneTextLlama
from .cache.one_thread import OneThread, Turn, guarded
from .cache.reuse import PromptReuse
from .cache.worker import Worker, awaited
from .chat.keep import ChatKeep, Keep
from .chat.opening import SessionKeep
from .chat.session import Session
from .chat.session_load import load_session
from .config import MorphKV
from .text.account import Account, accounted
from .text.completion import complete
from .text.tokens import require_utf8

Chunks = Generator[Any, None, None]


@guarded(
    change="_leave_text decode eval load_session load_state load_state_file recall reset",
    sample="sample",
    use="__call__ cache_stats create_chat_completion create_chat_completion_openai_v1 create_completion "
    "attached create_embedding embed read retained retention save_state save_state_file "
    "set_cache set_seed",
    read="detokenize n_ctx n_embd n_vocab pooling_type token_bos token_eos token_nl tokenize tokenizer",
)
class Llama(OneTextLlama):
    """A model, as llama_cpp.Llama, whose KV cache can be of constant size.

    morphkv: a MorphKV, or True for its defaults. None or False: exactly llama_cpp.Llama.
    llama_options: every keyword of llama_cpp.Llama, and load_progress: a function that is told the share of the model
        that is loaded, 0 to 1. With MorphKV four defaults differ:
        flash_attn is True, which MorphKV needs.
        swa_full is False: sliding-window layers store only their window.
        n_ctx limits prompt plus answer, and costs no memory. The default, 2**31 - 1, is no limit; 0 is the trained
            context. With logits_all or a draft_model, n_ctx rows of logits are stored, and the default is 0. An answer
            without max_tokens ends where the model ends it, or at n_ctx.
        n_gpu_layers is "auto" where there is a GPU.
        A draft_model does not change the greedy text: drafts end where an eviction is due.
    n_gpu_layers: a number, "all" or -1, or "auto": as many as fit, so that 1 GiB of each device stays free, which is
        measured before the model is loaded. `gpu_fit` has the result, logged to morphkv_cpp. Without a GPU, auto is 0.
    rpc_servers: "HOST:PORT", several of them separated by commas or in a sequence. The model is offloaded to their
        devices and the local GPUs: n_gpu_layers layers, by default all. In tensor_split the servers come first. A
        server (`morphkv rpc-server`) serves one process at a time; others wait.

    archive: with MorphKV, "ram", "auto" (in memory as q8_0), the path of a file, or an Archive with more settings. K
        and V of each token are stored there when it leaves the window, and recalled when the new part of a prompt asks
        for them. Only the archive grows with the text, up to 2 GiB unless an Archive sets another limit. If it cannot
        grow (a full disk), or a page cannot be read, there is one warning, and the text continues. A list of files that
        read() wrote attaches these beside an archive in memory.
    keep: with MorphKV, which first tokens of a chat create_chat_completion never evicts. "system": everything before
        the first question, and at least the settings' `keep`; if that does not fit, a warning names the capacity that
        it needs. A number: this many. None: the settings' `keep`, which create_completion always uses.
    ctx_checkpoints: with MorphKV, how many checkpoints a text has at most, in up to 1 GiB of the host's memory: states
        before and behind the new part of a prompt. A prompt that leaves the text (an answer asked for again, an edited
        message) is evaluated from the last one before. Each is as large as the cells in use. 0: none.

    Use one object from one thread at a time; several objects may work in as many threads. A second thread gets a
    ThreadError at once: during a call, and with MorphKV until a text that is being written is read to its end or
    closed. What needs only the vocabulary (tokenize, detokenize, n_vocab, ...) may be called from any thread. As a
    context manager it is closed at the end.

    Raises TypeError for another `morphkv`; ValueError, with llama.cpp's reason, for a model that cannot be loaded, and
    for options that are incompatible with MorphKV; ArchiveError for a file that cannot be the archive;
    UnsupportedError, with the native reason, if MorphKV does not work with this model or context; ConnectionError if an
    RPC server does not answer.
    """

    _chat_keep: ChatKeep | None = None
    _evals: Evals | None = None  # with MorphKV
    _account: Account | None = None  # with MorphKV, of the answer that has just been written

    # With MorphKV: how much of generate's last prompt was in the cache already; None before the first.
    last_prompt: PromptReuse | None = None

    def __new__(cls, *_arguments: Any, **_options: Any) -> Llama:
        llm = super().__new__(cls)
        # close() needs them, however far __init__ came
        llm._one_thread = OneThread()
        llm._worker = Worker(llm._one_thread)
        return llm

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        morphkv: MorphKV | bool | None = None,
        archive: ArchiveOption = None,
        keep: Keep = "system",
        ctx_checkpoints: int = N_CHECKPOINTS,
        rpc_servers: str | Sequence[str] | None = None,
        **llama_options: Any,
    ):
        config = _config(morphkv)
        archive = archive_of(archive, llama_options)
        if config is not None:
            self._chat_keep, self._evals = ChatKeep(keep, config), Evals(Checkpoints(ctx_checkpoints))
        elif keep != "system":
            raise ValueError(f"keep needs MorphKV: Llama(..., morphkv=True), got keep={keep!r}")
        try:
            super().__init__(model_path, config, archive, rpc_servers, llama_options)
            if self.least_morphkv is not None:
                self._chat_keep = ChatKeep(keep, self.least_morphkv)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Llama:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def session(
        self,
        system: str | None = None,
        *,
        keep: SessionKeep = "system",
        messages: Sequence[dict[str, Any]] | None = None,
        tools: Sequence[dict[str, Any]] | None = None,
    ) -> Session:
        """A chat without end on this cache: see Session."""
        return Session(self, system, keep=keep, messages=messages, tools=tools)

    def load_session(self, path: str | os.PathLike[str]) -> Session:
        """Continue the chat that Session.save wrote."""
        return load_session(self, path)

    def generate(
        self,
        tokens: Sequence[int],
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        reset: bool = True,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        penalize_nl: bool = True,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        grammar: LlamaGrammar | None = None,
    ) -> Generator[int, Sequence[int] | None, None]:
        """As llama_cpp's. With MorphKV, `last_prompt` then says how much of the prompt was in the cache. No other
        thread may change the text until the generator ends.
        """
        sampling = {name: value for name, value in locals().items() if name not in ("self", "tokens", "reset")}
        steps = self._generate(tokens, reset, sampling)
        return self._one_thread.steps(steps, None if self._morphkv is None else Turn())

    def _generate(
        self, tokens: Sequence[int], reset: bool, sampling: dict[str, Any]
    ) -> Generator[int, Sequence[int] | None, None]:
        self._leave_text()
        tokens, is_whole = list(tokens), reset  # the text from its beginning
        if self._chat_keep is not None and self._evals is not None and reset:
            self.last_prompt = self._evals.checkpoints.begin(self, tokens)
            if self._chat_keep.apply(self, tokens, self.last_prompt):
                reset = False  # it has been, and would forget what is to be kept
        self.last_recalls = ()
        if self._evals is not None:
            self._evals.expect_prompt(is_whole)
        try:
            # not a loop: callers may send() tokens
            yield from super().generate(tokens, reset=reset, **sampling)
        finally:
            if self._evals is not None:
                self._evals.prompt_comes = False
            self._look_at_archive()

    def sample(self, *arguments: Any, **options: Any) -> int:
        """As llama_cpp's."""
        token: int = super().sample(*arguments, **options)
        idx = options.get("idx")
        if self._evals is not None:
            self._evals.drew(self.n_tokens if idx is None else idx + 1, token)
        return token

    def eval(self, tokens: Sequence[int]) -> None:
        """Decode tokens after the first n_tokens, as llama_cpp does.

        With an archive, the first tokens of a generate() are a prompt: what they ask for is recalled.

        Raises ContextFullError, and changes nothing, for more tokens than n_ctx.
        Raises EvictedError, and changes nothing, when n_tokens was set back too far: evictions cannot be undone.
        Raises DecodeError when decoding fails, with the reason if it was an eviction's; n_tokens then says how much
        of the text the cache still holds: all before `tokens` and perhaps some of them, or nothing.
        """
        if self._evals is None:
            super().eval(tokens)
            return
        if self._chat_keep is not None and self._chat_keep.before_eval(self, tokens) and self._archive is not None:
            self._evals.expect_prompt(is_whole=False)
        self._evals.eval(self, tokens)

    def reset(self) -> None:
        """As llama_cpp's. With MorphKV and a chat handler, which may put images in its place, the text is forgotten."""
        super().reset()  # type: ignore[no-untyped-call]
        if self._morphkv is not None and self.chat_handler is not None:
            self.input_ids[:] = -1

    def create_chat_completion(self, messages: Any, *arguments: Any, **options: Any) -> Any:
        """As llama_cpp's. With MorphKV the system prompt, or what `keep` says, is never evicted. An answer, or the last
        chunk of a stream, has `usage` and llama-server's `timings` (text.account.Timings).
        """
        if self._chat_keep is None:
            return super().create_chat_completion(messages, *arguments, **options)
        self._account = None
        with self._chat_keep.asked(self, messages, options) as messages:
            answer = super().create_chat_completion(messages, *arguments, **options)
        return accounted(answer, lambda: self._account)

    def _create_completion(self, *args: Any, **options: Any) -> Any:
        if self._chat_keep is None:
            return self._one_thread.steps(cast(Chunks, super()._create_completion(*args, **options)))
        # The text that another tokenizer gives a token may depend on all tokens before it, so llama_cpp sees to that.
        is_own = type(self.tokenizer_) is LlamaTokenizer
        chunks = complete(self, *args, **options) if is_own else super()._create_completion(*args, **options)
        return self._one_thread.steps(self._chat_keep.take_along(cast(Chunks, chunks)))

    async def acreate_completion(self, *arguments: Any, **options: Any) -> Any:
        """As create_completion, in this Llama's own thread: a dict, or an async generator of chunks with stream=True.

        One call runs at a time, the others wait. A task that is cancelled ends its answer at the next token.
        """
        return await awaited(self._worker, self.create_completion, *arguments, **options)

    async def acreate_chat_completion(self, *arguments: Any, **options: Any) -> Any:
        """As create_chat_completion, likewise."""
        return await awaited(self._worker, self.create_chat_completion, *arguments, **options)

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """As llama_cpp's, but bytes that the vocabulary cannot encode raise ValueError; llama_cpp ends the process.

        With MorphKV, so does everything that is not UTF-8, because vocabularies drop some of it. A tokenizer that was
        given to Llama() is used as it is.
        """
        if type(self.tokenizer_) is not LlamaTokenizer:
            return super().tokenize(text, add_bos, special)
        if self._morphkv is not None:
            require_utf8(text)
        return bridge.tokenize(self._model.vocab, text, add_special=add_bos, parse_special=special)

    def _piece(self, token: int) -> bytes:
        return bridge.token_piece(self._model.vocab, token)

    def __getstate__(self) -> dict[str, Any]:
        stock = super().__getstate__()  # type: ignore[no-untyped-call]
        state = {**stock, "draft_model": self._draft_model, "morphkv": self._morphkv}
        if self._archive is not None:
            state["archive"] = self._archive
        if self._chat_keep is not None:
            state["keep"] = self._chat_keep.keep
        if self._evals is not None:
            state["ctx_checkpoints"] = self._evals.checkpoints.n_max
        if self._rpc_servers is not None:
            state["rpc_servers"] = self._rpc_servers
        return state if self._morphkv is None else {**state, "n_ctx": self._n_ctx}

    def close(self) -> None:
        """Free the model and its context. Raises ThreadError while another thread uses them."""
        self._one_thread.close(self._close)
        self._worker.close()

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
    if morphkv is not True and not isinstance(morphkv, MorphKV):
        raise TypeError(f"morphkv must be a MorphKV, a bool or None, got {morphkv!r}")
    return MorphKV() if morphkv is True else morphkv
