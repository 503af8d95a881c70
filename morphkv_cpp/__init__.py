"""MorphKV in llama.cpp: a KV cache of constant size for chats and answers of any length.

>>> from morphkv_cpp import Llama, MorphKV
>>> llm = Llama("model.gguf", morphkv=MorphKV(capacity=1024))

Importing this package makes llama_cpp load the libllama of this package, so it comes before `import llama_cpp`.
"""

from importlib.util import find_spec

# Beside the sources there is none; an editable install knows where it is.
if find_spec(f"{__name__}.bridge") is None:
    raise ImportError(
        f"morphkv_cpp was found in {__path__[0]}, its source folder, not where it is installed with its libraries: "
        "install it (pip install .), and if it is, start Python in another folder",
        name="morphkv_cpp",
    )

from . import (
    bridge,  # first: it says which libllama is loaded
    errors,
    moved,
)
from .cache.archive import Archive, Recall
from .cache.attached import Attached, Source
from .cache.disk_cache import LlamaDiskCache
from .cache.reading import ReadText
from .cache.reuse import PromptReuse
from .cache.stats import CacheStats
from .chat.session import Session
from .chat.turn import Turn
from .config import MorphKV
from .errors import *  # noqa: F403
from .info import Device, Info, info
from .llama import Llama
from .profile import Profile

__version__ = bridge.version()

__all__ = [
    *errors.__all__,
    "Archive",
    "Attached",
    "CacheStats",
    "Device",
    "Info",
    "Llama",
    "LlamaDiskCache",
    "MorphKV",
    "Profile",
    "PromptReuse",
    "ReadText",
    "Recall",
    "Session",
    "Source",
    "Turn",
    "__version__",
    "info",
]

moved.install()
