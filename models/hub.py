"""Models of the Hugging Face hub by name: hf:OWNER/REPO:FILE.

FILE is a file's name, a pattern such as *q4_k_m*, or a part of a name such as Q8_0. Without it the one GGUF file of the
repository is meant, or of several that of Q4_K_M, as in llama.cpp.
"""

from __future__ import annotations

import contextlib
import fnmatch
import importlib
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

NAME = re.compile(r"hf:(?P<repo>[^/:]+/[^/:]+)(?::(?P<file>.+))?")
FIRST_PART = re.compile(r"(?P<stem>.*)-00001-of-(?P<n>\d{5})\.gguf")
DEFAULT_TYPE = "q4_k_m"
NEEDED = "models of the hub need huggingface_hub: pip install 'morphkv_cpp[hub]'"

logger = logging.getLogger("morphkv_cpp.models")


class Cached(NamedTuple):
    name: str  # hf:OWNER/REPO:FILE
    path: Path
    n_bytes: int  # of all parts


def is_hub_name(text: str) -> bool:
    return text.startswith("hf:")


def hub_model_path(name: str) -> Path:
    """Path of the model's file in the hub's own cache, fetched where it is missing; of several parts the first.

    A terminal shows progress bars. Raises ValueError for a name of another form, or one that does not mean just one
    file; FileNotFoundError where the hub has no such repository or file; ConnectionError where it cannot be reached;
    ModuleNotFoundError without huggingface_hub.
    """
    match = NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"a model of the hub must be hf:OWNER/REPO:FILE, got {name!r}")
    hub, errors = _hub(), importlib.import_module("huggingface_hub.errors")
    repo, wanted = match["repo"], match["file"]
    is_exact = wanted is not None and wanted.endswith(".gguf") and not _is_pattern(wanted)
    try:
        file = wanted if is_exact else chosen(repo, wanted, _files(hub, repo))
        with _bars_on_terminals():
            paths = [Path(hub.hf_hub_download(repo, part)) for part in parts(file)]
        return paths[0]
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"hf:{repo} must be a repository that you may read, got none; a private or gated one needs HF_TOKEN"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise ConnectionError(f"the hub cannot be reached, and {name} is not cached") from error
    except errors.EntryNotFoundError as error:
        there = ", ".join(_models_of(_files(hub, repo))) or "no GGUF files"
        raise FileNotFoundError(f"the file of hf:{repo} must be one of {there}; got {wanted}") from error


def chosen(repo: str, wanted: str | None, files: list[str]) -> str:
    """The one of the files that is meant. Raises ValueError where there are none or several."""
    pattern = (wanted or "*").lower()
    if not _is_pattern(pattern):
        pattern = f"*{pattern}*"
    models = files if "mmproj" in pattern else _models_of(files)
    found = [file for file in models if fnmatch.fnmatch(file.lower(), pattern) and file.endswith(".gguf")]
    if wanted is None and len(found) > 1:
        found = [file for file in found if DEFAULT_TYPE in file.lower()] or found
    if len(found) == 1:
        return found[0]
    means = ", ".join(found) or "none"
    raise ValueError(
        f"{wanted or 'FILE'} of hf:{repo} must mean one of {', '.join(models) or 'no GGUF files'}; it means {means}"
    )


def parts(file: str) -> list[str]:
    """The file, or all parts of a model that is split over several, by the name of the first."""
    match = FIRST_PART.fullmatch(file)
    if match is None:
        return [file]
    return [f"{match['stem']}-{i:05}-of-{match['n']}.gguf" for i in range(1, int(match["n"]) + 1)]


def cached_models() -> list[Cached]:
    """Models in the hub's cache, by name. Without huggingface_hub there are none."""
    try:
        hub = _hub()
    except ModuleNotFoundError:
        return []
    try:
        repos = hub.scan_cache_dir().repos
    except importlib.import_module("huggingface_hub.errors").CacheNotFound:
        return []
    found = []
    for repo in repos:
        files = {
            Path(file.file_path).relative_to(revision.snapshot_path).as_posix(): file
            for revision in repo.revisions
            for file in revision.files
        }
        for name in _models_of(list(files)):
            n_bytes = sum(files[part].size_on_disk for part in parts(name) if part in files)
            found.append(Cached(f"hf:{repo.repo_id}:{name}", Path(files[name].file_path), n_bytes))
    return sorted(found)


def _is_pattern(text: str) -> bool:
    return any(sign in text for sign in "*?[")


def _models_of(files: list[str]) -> list[str]:
    """GGUF files that a model can be opened by: no later parts, no projectors of images."""
    return sorted(
        file
        for file in files
        if file.endswith(".gguf")
        and "mmproj" not in file.lower()
        and ("-of-" not in file or FIRST_PART.fullmatch(file) is not None)
    )


def _files(hub: Any, repo: str) -> list[str]:
    """Those of the repository; where the hub cannot be reached, with a warning those in its cache."""
    errors = importlib.import_module("huggingface_hub.errors")
    try:
        return list(hub.list_repo_files(repo))
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise
    except Exception as error:  # of the HTTP library, which differs from version to version
        prefix = f"hf:{repo}:"
        cached = [model.name.removeprefix(prefix) for model in cached_models() if model.name.startswith(prefix)]
        if not cached:
            what = type(error).__name__
            raise ConnectionError(f"the hub cannot be reached ({what}), and no model of hf:{repo} is cached") from error
        logger.warning("the hub cannot be reached: of hf:%s only what is cached is known", repo)
        return cached


@contextlib.contextmanager
def _bars_on_terminals() -> Iterator[None]:
    utils = importlib.import_module("huggingface_hub.utils")
    hide = not sys.stderr.isatty() and not utils.are_progress_bars_disabled()
    if hide:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            utils.enable_progress_bars()


def _hub() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(NEEDED, name="huggingface_hub") from error
