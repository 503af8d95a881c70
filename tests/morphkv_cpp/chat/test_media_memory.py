"""What is seen and heard does not depend on what was in memory before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from morphkv_cpp import Llama, MorphKV
from support import TESTS, preload
from support.chats import talk
from support.projectors import TEMPLATE
from support.tiny import QUIET, last_logits
from support.vision import KINDS, MORE_KINDS, MORE_SOUNDS, SOUNDS, kinds, shown

# isort: split
# after morphkv_cpp, which says what libllama is loaded
from llama_cpp.llama_chat_format import MTMDChatHandler

# As floats of 2 and of 4 bytes this is NaN. ggml's buffers for the CPU come from here.
FILLED = r"""
#include <dlfcn.h>
#include <string.h>
#include <stddef.h>

int posix_memalign(void ** memory, size_t alignment, size_t size) {
    int (*next)(void **, size_t, size_t) = dlsym(RTLD_NEXT, "posix_memalign");
    const int result = next(memory, alignment, size);
    if (result == 0) {
        memset(*memory, 0xff, size);
    }
    return result;
}
"""


class Handler(MTMDChatHandler):
    CHAT_FORMAT = TEMPLATE

    def _get_chat_template(self, llama_model):
        return TEMPLATE


def print_logits(kind: str, model: str, projector: str) -> None:
    handler = Handler(clip_model_path=projector, verbose=False)
    morphkv = MorphKV(capacity=1024, prompt_room=256)
    with Llama(model, morphkv=morphkv, chat_handler=handler, n_ctx=4096, **QUIET) as llm, llm.session() as chat:
        talk(chat, shown(kind, "what is it", 1), 4)
        print(json.dumps(last_logits(llm).tolist()))


def logits_elsewhere(kind: str, files: tuple[Path, Path], **env: str) -> str:
    # an empty path is the folder that this runs in
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, __file__, kind, *map(str, files)]
    done = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", kinds(KINDS, MORE_KINDS, SOUNDS, MORE_SOUNDS, of=("pixtral",)))
def test_an_answer_does_not_depend_on_what_was_in_memory(tiny_vision, tmp_path, kind):
    library = preload.build(tmp_path, "filled", FILLED)
    files = tiny_vision(kind)
    logits = logits_elsewhere(kind, files)
    assert "NaN" not in logits
    assert logits_elsewhere(kind, files, LD_PRELOAD=str(library)) == logits


if __name__ == "__main__":
    print_logits(*sys.argv[1:])
