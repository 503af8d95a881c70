"""How `morphkv chat` begins: a model with room for the system prompt, and a line that says what is on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from .. import Archive, Llama, MorphKV, Session
from ..cache import saved_file
from ..cache.archive import AUTO, CACHE_TYPES
from .show import remark

NO_TEMPLATE = (
    "{} has no chat template, as base models have none: it is asked in the format of Llama 2, which it may not know. "
    "`morphkv generate` lets it go on with a text"
)


def begin(
    path: Path,
    morphkv: MorphKV,
    archive: Archive | None,
    may_raise: bool,
    system: str | None,
    file: Path | None,
    **options: Any,
) -> tuple[Llama, Session]:
    """The model, and the chat in the file if there is one.

    may_raise: the capacity, for a system prompt that does not fit. That of the file, and its archive, count where
    nothing else is asked for.
    """
    if file is not None and file.exists():
        header = saved_file.read(file, "session").header
        if may_raise:
            morphkv = replace(morphkv, capacity=_capacity_of(header, morphkv.capacity))
        if archive is not None and archive.place == AUTO:
            kind = header.get("archive type")
            archive = replace(archive, type=kind) if kind in CACHE_TYPES else None
    llm = Llama(path, morphkv=morphkv, archive=archive, **options)
    try:
        chat = _session(llm, system, file, "auto" if may_raise else "system")
        if llm.morphkv is not None and llm.morphkv.capacity > morphkv.capacity:
            remark(f"the system prompt raises the capacity from {morphkv.capacity:,} to {llm.morphkv.capacity:,}")
        remark(opening_line(llm))
        if "tokenizer.chat_template" not in llm.metadata:
            remark(NO_TEMPLATE.format(path.name))
        if file is not None and file.exists():
            remark(f"continuing {file}: turn {chat.n_turns:,}, {chat.n_tokens:,} tokens")
    except BaseException:
        llm.close()
        raise
    return llm, chat


def _capacity_of(header: dict[str, Any], default: int) -> int:
    """That of the cache in a session's file, where it can be told."""
    settings = header.get("settings")
    capacity = settings.get("capacity") if isinstance(settings, dict) else None
    return capacity if isinstance(capacity, int) else default


def _session(llm: Llama, system: str | None, file: Path | None, keep: Literal["auto", "system"]) -> Session:
    if file is None or not file.exists():
        return llm.session(system, keep=keep)
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
    elif fit is not None:
        parts.append(str(fit))
    return " | ".join(parts)
