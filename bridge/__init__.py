"""The door to the native library: the only package that knows cffi, ctypes and where libraries lie.

Importing it loads the library and refuses, with a LibraryError, whatever does not fit together.
"""

from .attached import attach, attachment_tokens, attachments, brought, write_archive
from .backends import cpu_variants, cuda_module
from .calls import (
    abi_version,
    check_params,
    default_params,
    devices,
    kv_bytes,
    last_error,
    loaded_libraries,
    next_context_has,
    recalled,
    require_morphkv,
    retained,
    selftest,
    set_keep,
    set_mark,
    start_archive,
    stats,
    tokenize,
    upstream_version,
    version,
    why_archive_stopped,
)
from .errors import InvalidError, LibraryError, MorphKVError, NativeError, NoMorphKVError, UnsupportedError
from .fit import fit_gpu_layers
from .library import LIB_DIR, PACKAGE_DIR
from .recall import WRITE_STEP, Prompt, recall, write_next
from .restore import Passage, plan_change, restore

# isort: split
# after library, which says what libllama is loaded
from .llama import LoadProgress, checkpoint, set_checkpoint, set_state, state, token_piece, use_rpc_servers
from .log import as_reason, heard_errors
from .media import CheckedMtmd, MediaPiece, media_marker, media_pieces

__all__ = [
    "LIB_DIR",
    "PACKAGE_DIR",
    "WRITE_STEP",
    "CheckedMtmd",
    "InvalidError",
    "LibraryError",
    "LoadProgress",
    "MediaPiece",
    "MorphKVError",
    "NativeError",
    "NoMorphKVError",
    "Passage",
    "Prompt",
    "UnsupportedError",
    "abi_version",
    "as_reason",
    "attach",
    "attachment_tokens",
    "attachments",
    "brought",
    "check_params",
    "checkpoint",
    "cpu_variants",
    "cuda_module",
    "default_params",
    "devices",
    "fit_gpu_layers",
    "heard_errors",
    "kv_bytes",
    "last_error",
    "loaded_libraries",
    "media_marker",
    "media_pieces",
    "next_context_has",
    "plan_change",
    "recall",
    "recalled",
    "require_morphkv",
    "restore",
    "retained",
    "selftest",
    "set_checkpoint",
    "set_keep",
    "set_mark",
    "set_state",
    "start_archive",
    "state",
    "stats",
    "token_piece",
    "tokenize",
    "upstream_version",
    "use_rpc_servers",
    "version",
    "why_archive_stopped",
    "write_archive",
    "write_next",
]
