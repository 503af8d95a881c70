"""Models of the Hugging Face hub, by name: hf:OWNER/REPO:FILE, where FILE may be a pattern such as *q4_k_m*."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path
from typing import Any, NamedTuple

NAME = re.compile(r"hf:(?P<repo>[^/:]+/[^/:]+)(?::(?P<file>.+))?")
NEEDED = "models of the hub need huggingface_hub: pip install 'morphkv_cpp[hub]'"


class Cached(NamedTuple):
    name: str  # hf:OWNER/REPO:FILE
    path: Path
    n_bytes: int


def is_hub_name(text: str) -> bool:
    return text.startswith("hf:")


def hub_model_path(name: str) -> Path:
    """Path of the model's file in the hub's own cache, fetched where it is missing; the first of several parts.

    Raises ValueError for a name of another form, and where not just one file is meant; OSError where the hub cannot be
    reached; ModuleNotFoundError without huggingface_hub.
    """
    match = NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"a model of the hub must be hf:OWNER/REPO:FILE, got {name!r}")
    hub = _hub()
    repo, pattern = match["repo"], match["file"] or "*.gguf"
    if not any(sign in pattern for sign in "*?["):
        return Path(hub.hf_hub_download(repo, pattern))
    files = [file for file in hub.list_repo_files(repo) if file.endswith(".gguf")]
    return Path(hub.hf_hub_download(repo, chosen(repo, pattern, files)))


def chosen(repo: str, pattern: str, files: list[str]) -> str:
    """The one of the files that the pattern means. Raises ValueError where there are none or several."""
    found = [file for file in files if fnmatch.fnmatch(file.lower(), pattern.lower())]
    first_parts = [file for file in found if "-of-" not in file or "-00001-of-" in file]
    if len(first_parts) == 1:
        return first_parts[0]
    what = "none" if not first_parts else ", ".join(first_parts)
    raise ValueError(f"hf:{repo}:{pattern} must mean one of {', '.join(files) or 'no GGUF files'}; it means {what}")


def cached_models() -> list[Cached]:
    """GGUF files of the hub's cache, by name. Without huggingface_hub there are none."""
    try:
        hub = _hub()
        repos = hub.scan_cache_dir().repos
    except (ModuleNotFoundError, hub_error()):
        return []
    files = {
        (repo.repo_id, file.file_name): file
        for repo in repos
        for revision in repo.revisions
        for file in revision.files
        if file.file_name.endswith(".gguf")
    }
    return [
        Cached(f"hf:{repo}:{name}", Path(file.file_path), file.size_on_disk)
        for (repo, name), file in sorted(files.items())
    ]


def hub_error() -> type[Exception]:
    """What the hub's library raises where it has no cache yet."""
    try:
        from huggingface_hub.errors import CacheNotFound
    except ModuleNotFoundError:
        return ModuleNotFoundError
    return CacheNotFound  # type: ignore[no-any-return]


def _hub() -> Any:
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(NEEDED, name="huggingface_hub") from error
    return huggingface_hub
