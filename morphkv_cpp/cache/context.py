"""llama_cpp.Llama whose context has a cache of constant size: defaults, sizes, and what the cache says of itself."""

from __future__ import annotations

import contextlib
import logging
import operator
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import llama_cpp
import numpy as np
from llama_cpp._internals import LlamaContext, LlamaModel
from llama_cpp.llama_speculative import LlamaDraftModel

from .. import bridge
from ..config import MorphKV, native_params
from ..errors import ArchiveError, InvalidError
from ..rpc import answering_servers
from .archive import Archive
from .archive_watch import ArchiveWatch
from .attached import Attached, attached
from .draft import DraftUpToEviction
from .gpu_layers import GpuFit, fit, has_gpu, with_gpu_layers
from .layer_profiles import resolved
from .live import TokenIds
from .stats import CacheStats

logger = logging.getLogger("morphkv_cpp")

# Logical limit of a context with MorphKV unless another is given: positions are 32-bit integers.
N_CTX_MAX = 2**31 - 1


class ContextLlama(llama_cpp.Llama):
    """config: of the cache; None: exactly llama_cpp.Llama. Only here is bent what llama_cpp does around its context."""

    _morphkv: MorphKV | None = None
    _archive: Archive | None = None
    _archive_watch: ArchiveWatch | None = None
    _draft_model: LlamaDraftModel | None = None
    _rpc_servers: str | None = None
    _n_ctx_given = 0  # with MorphKV
    _token_ids: TokenIds
    _options_to_fit: dict[str, Any] | None = None  # while llama_cpp opens a model whose GPU layers are to be found

    # told the share of the model that is loaded; of all objects that are given none, e.g. by a program with a terminal
    load_progress_of_all: ClassVar[Callable[[float], object] | None] = None
    _load_progress: bridge.LoadProgress | None = None

    gpu_fit: GpuFit | None = None  # as many layers as fit; None where n_gpu_layers said how many, and without a GPU

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        config: MorphKV | None,
        archive: Archive | None,
        rpc_servers: str | Sequence[str] | None,
        llama_options: dict[str, Any],
    ):
        self._morphkv, self._archive = config, archive
        self._tell_load = llama_options.pop("load_progress", None) or type(self).load_progress_of_all
        if archive is not None and config is None:
            raise ArchiveError(f"an archive needs MorphKV: Llama(..., morphkv=True), got archive={archive!r}")
        if rpc_servers is not None:
            self._rpc_servers = answering_servers(rpc_servers)
            llama_options.setdefault("n_gpu_layers", -1)
        if config is None:
            self._open(os.fsdecode(model_path), llama_options)
            return
        options = _options_with_morphkv(llama_options)
        _refuse_small(options["n_ctx"], config)
        is_attached = archive is not None and bool(archive.attach)
        n_free = options["n_ctx"] - _n_cells(config)
        n_tokens = config.capacity + n_free if 0 < options["n_ctx"] < N_CTX_MAX else -1
        self._morphkv = config = resolved(config, model_path, is_attached, n_tokens)
        self._n_ctx_given = options["n_ctx"]
        if not options["logits_all"]:
            # Buffers begin with room for all cells and grow with the text; with logits_all they are as stock's.
            options["n_ctx"] = min(options["n_ctx"], max(_n_cells(config), options.get("n_batch", 512)))
        try:
            with bridge.next_context_has(native_params(config)):
                self._open(os.fsdecode(model_path), options)
        except InvalidError as error:
            if self._n_ctx_given > 0:
                raise
            raise InvalidError(f"{error} (n_ctx=0 is the trained context; leave n_ctx out for no limit)") from error
        bridge.require_morphkv(self.ctx)
        self.context_params.n_ctx = super().n_ctx()
        if archive is not None:
            self._archive = archive.start(self.ctx, self.model_path)
            self._archive_watch = ArchiveWatch()

    def _open(self, model_path: str, options: dict[str, Any]) -> None:
        options, is_fitted = with_gpu_layers(options, self._morphkv is not None)
        if is_fitted and (self._rpc_servers is not None or has_gpu()):
            self._options_to_fit = options
        with bridge.heard_errors() as errors:
            try:
                super().__init__(model_path, **options)
            except ValueError as error:
                if self._load_progress is not None and self._load_progress.error is not None:
                    raise self._load_progress.error from None
                if reason := bridge.as_reason(errors):
                    raise ValueError(f"{error}: {reason}") from error
                raise

    @property
    def model_path(self) -> str:
        # llama_cpp reads it to load the model: by then all parameters are there
        options, self._options_to_fit = self._options_to_fit, None
        if options is not None:
            self.gpu_fit = fit(self._path, self.model_params, self.context_params, options, self._morphkv)
            self.model_params.n_gpu_layers = self.gpu_fit.n_gpu_layers
            logger.info("%s", self.gpu_fit)
        if self._tell_load is not None and self._load_progress is None:
            self._load_progress = bridge.LoadProgress(self.model_params, self._tell_load)
        return self._path

    @model_path.setter
    def model_path(self, path: str) -> None:
        self._path = path

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
    def input_ids(self) -> TokenIds:
        """Ids of the first n_tokens tokens, int32; with MorphKV there is always room for a batch more behind them."""
        n_needed = self.n_tokens + self.n_batch
        if self._morphkv is not None and n_needed > len(self._token_ids):
            # -1 is no token's id: where a chat handler puts an image, nothing is written
            grown = np.full(max(n_needed, 2 * len(self._token_ids)), -1, dtype=np.intc)
            grown[: len(self._token_ids)] = self._token_ids
            self._token_ids = grown
        return self._token_ids

    @input_ids.setter
    def input_ids(self, token_ids: TokenIds) -> None:
        self._token_ids = token_ids

    @property
    def draft_model(self) -> LlamaDraftModel | None:
        """As given; with MorphKV its drafts end where an eviction, a rebase or a recall falls due."""
        if self._morphkv is None or self._draft_model is None:
            return self._draft_model
        return DraftUpToEviction(self.cache_stats, self._morphkv, self._archive, self._draft_model)

    @draft_model.setter
    def draft_model(self, draft_model: LlamaDraftModel | None) -> None:
        self._draft_model = draft_model

    @property
    def _has_drafts(self) -> bool:
        return self._draft_model is not None

    @property
    def morphkv(self) -> MorphKV | None:
        """The cache's settings, with the profile that layers="auto" has found; None without MorphKV."""
        return self._morphkv

    @property
    def least_morphkv(self) -> MorphKV | None:
        """The same with the capacity of the layers that keep least: what never leaves has to fit in there."""
        if self._morphkv is None or isinstance(self._morphkv.layers, str):
            return self._morphkv
        return replace(self._morphkv, capacity=self.cache_stats().min_capacity, layers="equal")

    @property
    def archive(self) -> Archive | None:
        """The archive's settings; None without one. What concerns recalls can be changed."""
        return self._archive

    @archive.setter
    def archive(self, archive: Archive) -> None:
        if self._archive is None or not archive.is_same_place(self._archive):
            raise ArchiveError(
                f"only the recall settings of an open archive can be changed, got {archive} for {self._archive}"
            )
        self._archive = archive

    def _raise_capacity(self, capacity: int) -> None:
        """Put a larger cache in place of this one, which holds nothing that is needed: its archive is in memory.

        Raises ValueError, and nothing changes, where it cannot be had.
        """
        if self._morphkv is None or self._logits_all or self._lora_adapter is not None:
            raise ValueError("a larger cache needs a context without logits_all and LoRA adapters")
        config = replace(self._morphkv, capacity=capacity)
        self.context_params.n_ctx = max(self.context_params.n_ctx, self._model.n_ctx_train(), _n_cells(config))
        with bridge.next_context_has(native_params(config)):
            context = LlamaContext(model=self._model, params=self.context_params, verbose=self.verbose)
        before, self._context = self._context, self._stack.enter_context(contextlib.closing(context))
        before.close()  # type: ignore[no-untyped-call]
        self._morphkv = config
        if self._archive is not None:
            self._archive = self._archive.start(self.ctx, self.model_path)

    @property
    def _cache_types(self) -> tuple[int, int]:
        return self.context_params.type_k, self.context_params.type_v

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

    def attached(self, seq_id: int = 0) -> tuple[Attached, ...]:
        """The files that are attached (Archive.attach), and how much of each recalls have brought into a sequence."""
        return attached(self._ctx.ctx, seq_id)

    def retained(self, layer: int, seq_id: int = 0) -> np.ndarray:
        """Logical positions of the tokens in a layer's distant slots, int32 (n_head_kv, n_distant), -1 where empty.

        All are empty until the first eviction. Each KV head has tokens of its own, in no order. Those of attached files
        stand at positions below -1.
        Raises NoMorphKVError without MorphKV, ValueError for a layer that has no KV or a sliding window, or an unknown
        sequence.
        """
        return bridge.retained(self._ctx.ctx, seq_id, layer)

    def _look_at_archive(self) -> None:
        """What is appended beside the model may fail behind the last decode: so the end of a text looks as well."""
        if self._archive_watch is not None and self.ctx is not None:
            self._archive_watch.look(self.ctx)

    def _look_closely_at_archive(self) -> None:
        if self._archive_watch is not None:
            self._archive_watch.look_closely(self.ctx)


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


def _refuse_small(n_ctx: int, config: MorphKV) -> None:
    if 0 < n_ctx < _n_cells(config):
        raise InvalidError(
            f"n_ctx must be at least capacity + max(interval, prompt_room) = {_n_cells(config)}, got {n_ctx}: leave "
            "n_ctx out, as it costs no memory; capacity and prompt_room do"
        )


def _n_cells(morphkv: MorphKV) -> int:
    """Most cells that a sequence uses."""
    return morphkv.capacity + max(morphkv.interval, morphkv.prompt_room)
