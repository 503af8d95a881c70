"""How `morphkv chat` begins: a model with room for the system prompt, and a line that says what is on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import Llama, MorphKV, Session
from ..errors import NoRoomError
from .show import remark

MOST = 4  # times the default capacity that a system prompt may make of it
NO_TEMPLATE = (
    "{} has no chat template, as base models have none: it is asked in the format of Llama 2, which it may not know. "
    "`morphkv generate` lets it go on with a text"
)


def begin(
    path: Path, morphkv: MorphKV, may_raise: bool, system: str | None, file: Path | None, **options: Any
) -> tuple[Llama, Session]:
    """The model, and the chat in the file if there is one.

    may_raise: a system prompt that does not fit gets a larger cache, at most MOST times as large, instead of an error.
    """
    llm = Llama(path, morphkv=morphkv, **options)
    try:
        try:
            chat = _session(llm, system, file)
        except NoRoomError as error:
            if not may_raise or error.capacity > MOST * morphkv.capacity:
                raise
            remark(f"the system prompt has {error.n_keep:,} tokens: capacity {error.capacity:,}")
            llm.close()
            llm = Llama(path, morphkv=replace(morphkv, capacity=error.capacity), **options)
            chat = _session(llm, system, file)
        remark(opening_line(llm))
        if "tokenizer.chat_template" not in llm.metadata:
            remark(NO_TEMPLATE.format(path.name))
        if file is not None and file.exists():
            remark(f"continuing {file}: turn {chat.n_turns:,}, {chat.n_tokens:,} tokens")
    except BaseException:
        llm.close()
        raise
    return llm, chat


def _session(llm: Llama, system: str | None, file: Path | None) -> Session:
    if file is None or not file.exists():
        return llm.session(system)
    chat = llm.load_session(file)
    if system is not None and system != chat.system:
        raise ValueError(f"--system must be that of {file}, {chat.system!r}, got {system!r}")
    return chat


def opening_line(llm: Llama) -> str:
    """What is on."""
    config, archive, fit = llm.morphkv, llm.archive, llm.gpu_fit
    parts = [Path(llm.model_path).name]
    if config is not None:
        parts.append(f"capacity {config.capacity:,}")
    if archive is None:
        parts.append("no archive")
    else:
        place = "RAM" if archive.place == "ram" else str(archive.place)
        limit = f"up to {archive.max_bytes / 2**30:.3g} GiB" if archive.max_bytes else "without limit"
        parts.append(f"archive: {', '.join(filter(None, [place, archive.type, limit]))} (--no-archive)")
    n_layers = fit.n_gpu_layers if fit is not None else llm.model_params.n_gpu_layers
    if n_layers == 0:
        parts.append("CPU")
    else:
        parts.append(str(fit) if fit is not None else f"GPU layers: {'all' if n_layers < 0 else n_layers}")
    return " | ".join(parts)
