"""What turning text into tokens, and tokens into text, needs of a Llama beyond its cache."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Protocol

from llama_cpp import LlamaState
from llama_cpp._internals import LlamaModel

from ..cache.evals import Evals
from ..cache.live import Live, Logits
from ..cache.reuse import PromptReuse
from .account import Account


class TextModel(Live, Protocol):
    """As cache.live.Live: what begins with an underscore is not for users."""

    model_path: str
    verbose: bool
    spm_infill: bool
    last_prompt: PromptReuse | None
    _evals: Evals | None  # with MorphKV
    _account: Account | None  # of the answer that has just been written

    @property
    def metadata(self) -> Mapping[str, str]: ...

    @property
    def cache(self) -> Any:
        """Of prompts, a llama_cpp.llama_cache.BaseLlamaCache or a LlamaDiskCache; None without."""

    @property
    def _model(self) -> LlamaModel: ...

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]: ...

    def _piece(self, token: int) -> bytes:
        """Text of a token."""

    def token_bos(self) -> int: ...

    def token_eos(self) -> int: ...

    def set_seed(self, seed: int) -> None: ...

    def load_state(self, state: LlamaState) -> None: ...

    def logits_to_logprobs(self, logits: Logits) -> Logits: ...

    @property
    def generate(self) -> Callable[..., Generator[int, Sequence[int] | None, None]]: ...
