"""Options of an archive and its recalls, for the commands that have one."""

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Annotated, Any

from ..cache.archive import AUTO, CACHE_TYPES, KEYWORDS, RAM, Archive
from .options import morphkv_flag


def archive_options(
    archive: Annotated[
        str | None,
        morphkv_flag(
            "store what leaves the window in memory, or in a file, and recall what a prompt asks for; auto is in "
            "memory as q8_0",
            "--archive",
            metavar="auto|ram|PATH",
            show_default=False,
        ),
    ] = None,
    attach: Annotated[
        list[str] | None,
        morphkv_flag(
            "a text that `morphkv read` has written to FILE: recalls bring from it, too; may be repeated",
            "--attach",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    archive_type: Annotated[
        str | None,
        morphkv_flag(
            f"data type of archived K and V: {', '.join(CACHE_TYPES)} (default: as in the cache)",
            "--archive-type",
            metavar="TYPE",
            show_default=False,
        ),
    ] = None,
    archive_max: Annotated[
        int | None,
        morphkv_flag(
            "limit of the archive in MiB; the oldest tokens are dropped "
            f"(default: {Archive.max_bytes // 2**20}, 0 = no limit)",
            "--archive-max",
            metavar="N",
            show_default=False,
        ),
    ] = None,
    archive_max_bytes: Annotated[
        int | None, morphkv_flag("the same in bytes, as it was", "--archive-max-bytes", metavar="N", hidden=True)
    ] = None,
    recall: Annotated[
        str | None,
        morphkv_flag(
            "when to recall: at prompts and while writing as the text needs it (auto), at prompts alone, never, or N: "
            f"at prompts and every N intervals of evictions (default: {Archive.recall})",
            "--recall",
            metavar="{auto,prompt,off,N}",
            show_default=False,
        ),
    ] = None,
    recall_share: Annotated[
        float | None,
        morphkv_flag(
            f"the largest part of the older cells that a recall fills, in (0, 1] (default: {Archive.share})",
            "--recall-share",
            metavar="X",
            show_default=False,
        ),
    ] = None,
    recall_redo: Annotated[
        int | None,
        morphkv_flag(
            f"how many tokens of a prompt's end are decoded again after a recall, at most (default: {Archive.redo})",
            "--recall-redo",
            metavar="N",
            show_default=False,
        ),
    ] = None,
    recall_votes: Annotated[
        int | None,
        morphkv_flag(
            "how many of the newest queries search (default: 0 = 16, or --votes if fewer)",
            "--recall-votes",
            metavar="N",
            show_default=False,
        ),
    ] = None,
    recall_distance: Annotated[
        int | None,
        morphkv_flag(
            f"the archive is searched as if it lay N positions back (default: {Archive.distance})",
            "--recall-distance",
            metavar="N",
            show_default=False,
        ),
    ] = None,
) -> Archive | None:
    if archive_max_bytes is not None:
        warnings.warn("--archive-max-bytes is now --archive-max, in MiB", DeprecationWarning, stacklevel=2)
        if archive_max is not None:
            raise ValueError(
                f"--archive-max replaces --archive-max-bytes, got both, the latter with {archive_max_bytes}"
            )
    elif archive_max is not None:
        archive_max_bytes = archive_max * 2**20
    settings = {
        "type": archive_type,
        "max_bytes": archive_max_bytes,
        "recall": int(recall) if recall is not None and recall.isdecimal() else recall,
        "share": recall_share,
        "redo": recall_redo,
        "votes": recall_votes,
        "distance": recall_distance,
        "attach": attach or None,
    }
    given: dict[str, Any] = {field: value for field, value in settings.items() if value is not None}
    if archive is None and attach:
        archive = AUTO
    if archive == "off":
        raise ValueError(
            f"--archive must be {AUTO}, {RAM} or a path, got off: leave it out, or say --no-archive; a file is ./off"
        )
    if archive is not None:
        return Archive(archive, **given)
    if given:
        options = ", ".join(f"--{KEYWORDS[field].replace('_', '-')}" for field in given)
        raise ValueError(f"{options}: needs an archive, --archive {RAM} or a path")
    return None


def archived(group: Callable[..., Archive | None]) -> Callable[..., Archive | None]:
    """The group archive_options, but with an archive unless --no-archive is given."""

    @functools.wraps(group)
    def options(*, no_archive: bool, **given: Any) -> Archive | None:
        if no_archive:
            # with an archive, or settings of one, it would be both
            if group(**given) is not None:
                name = "attach" if given["attach"] else "archive"
                raise ValueError(f"--no-archive excludes --{name}, got {given[name]!r}")
            return None
        return group(**{**given, "archive": given["archive"] or AUTO})

    without = inspect.Parameter(
        "no_archive",
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=False,
        annotation=Annotated[bool, morphkv_flag("evicted tokens are gone (default: --archive auto)", "--no-archive")],
    )
    parameters = list(inspect.signature(group).parameters.values())
    options.__signature__ = inspect.Signature([*parameters[:1], without, *parameters[1:]])  # type: ignore[attr-defined]
    return options
