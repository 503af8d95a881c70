"""`morphkv chat`: a chat without end in a terminal; without one, questions are lines of standard input."""

import random
import sys
from pathlib import Path
from typing import Annotated, Any

import llama_cpp
import typer

from .. import Archive, MorphKV
from .chat_open import begin
from .chat_view import printable
from .dialogue import Dialogue
from .gpu_layers import fitted
from .options import MODEL_PANEL, Model, llama_options, morphkv_options, sampling_options, with_options
from .options_archive import archive_options, archived
from .show import PromptProgress, find_model, remark
from .typed import TypedAhead

PROMPT = "> "
N_PREDICT = 4096  # a model that repeats itself would never end
HINT = "/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves"


@with_options(
    morphkv=morphkv_options,
    archive=archived(archive_options),
    llama=fitted(llama_options),
    sampling=sampling_options,
)
def chat(
    context: typer.Context,
    model: Model,
    morphkv: MorphKV,
    archive: Archive | None,
    llama: dict[str, Any],
    sampling: dict[str, Any],
    system: Annotated[
        str | None,
        typer.Option(
            "--system",
            "-sys",
            "--system-prompt",
            metavar="TEXT",
            help="system prompt; it is never evicted, and raises the capacity where that is not given",
            show_default=False,
        ),
    ] = None,
    session: Annotated[
        Path | None,
        typer.Option(
            "--session",
            metavar="FILE",
            help="continue the chat in FILE, if it exists, and save it there after every answer",
            show_default=False,
        ),
    ] = None,
    predict: Annotated[
        int,
        typer.Option(
            "--predict", "-n", "--n-predict", metavar="N", help="limit of an answer in tokens (-1 = no limit)"
        ),
    ] = N_PREDICT,
    ctx_size: Annotated[
        int | None,
        typer.Option(
            "--ctx-size",
            "-c",
            metavar="N",
            help="limit of the chat in tokens (0 = loaded from model; default: no limit); costs no KV memory",
            show_default=False,
            rich_help_panel=MODEL_PANEL,
        ),
    ] = None,
) -> None:
    """Chat with MODEL for as long as you like, in a cache of constant size."""
    if predict == 0 or predict < -1:
        raise ValueError(f"--predict must be -1 or at least 1, got {predict}")
    if session is not None and not session.absolute().parent.is_dir():
        raise FileNotFoundError(f"--session must be in a folder that is there, got {str(session)!r}")
    if ctx_size is not None:
        llama["n_ctx"] = ctx_size
    # one seed for all; each answer has the next of its series
    seed = sampling.pop("seed")
    sampling["temperature"] = sampling.pop("temp")
    source = context.get_parameter_source("capacity")
    may_raise = source is None or source.name != "COMMANDLINE"
    llm, chat = begin(find_model(model), morphkv, archive, may_raise, system, session, **llama)
    try:
        llm.progress = PromptProgress()
        llm.set_seed(random.randrange(2**32) if seed == llama_cpp.LLAMA_DEFAULT_SEED else seed)
        dialogue = Dialogue(llm, chat, {"max_tokens": None if predict < 0 else predict, **sampling}, session)
        is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        (talk_in_terminal if is_terminal else talk_in_lines)(dialogue)
    finally:
        llm.close()


def talk_in_terminal(dialogue: Dialogue) -> None:
    # takes a while to import, and other commands do without
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    lines: PromptSession[str] = PromptSession(bottom_toolbar=dialogue.status, key_bindings=keys)
    typed = TypedAhead()
    remark(f"{HINT}, Alt-Enter begins a new line")
    while dialogue.is_open:
        try:
            line = lines.prompt(PROMPT, default=typed.take())
        except KeyboardInterrupt:
            remark(f"({HINT})")
        except EOFError:
            return
        else:
            try:
                with typed.kept():
                    dialogue.take(line, printable)
            except KeyboardInterrupt:
                remark("(stopped)")


def talk_in_lines(dialogue: Dialogue) -> None:
    for line in sys.stdin:
        if dialogue.take(line.rstrip("\n"), str):
            remark(dialogue.status())
        if not dialogue.is_open:
            break
    if dialogue.n_errors:
        raise typer.Exit(1)
