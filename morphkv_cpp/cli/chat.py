"""`morphkv chat`: a chat without end in a terminal; without one, questions are lines of standard input."""

import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar

import llama_cpp
import typer

from .. import Archive, Llama, MorphKV, Session
from .chat_view import pictures, printable, stats_rows, status_line
from .gpu_layers import fitted
from .interrupts import noted_interrupts
from .options import MODEL_PANEL, Model, llama_options, morphkv_options, sampling_options, with_options
from .options_archive import archive_options
from .show import find_model, remark, remark_gpu_layers

PROMPT = "> "
HINT = "/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves"


@with_options(morphkv=morphkv_options, archive=archive_options, llama=fitted(llama_options), sampling=sampling_options)
def chat(
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
            help="system prompt; it is never evicted",
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
    ] = -1,
    ctx_size: Annotated[
        int | None,
        typer.Option(
            "--ctx-size",
            "-c",
            metavar="N",
            help="limit of the chat in tokens; costs no KV memory",
            show_default=False,
            rich_help_panel=MODEL_PANEL,
        ),
    ] = None,
) -> None:
    """Chat with MODEL for as long as you like, in a cache of constant size."""
    if predict == 0 or predict < -1:
        raise ValueError(f"--predict must be -1 or at least 1, got {predict}")
    context: dict[str, Any] = {} if ctx_size is None else {"n_ctx": ctx_size}
    llm = Llama(find_model(model), morphkv=morphkv, archive=archive, **context, **llama)
    remark_gpu_layers(llm)
    try:
        # one seed for all; each answer has the next of its series
        seed = sampling.pop("seed")
        llm.set_seed(random.randrange(2**32) if seed == llama_cpp.LLAMA_DEFAULT_SEED else seed)
        sampling["temperature"] = sampling.pop("temp")
        dialogue = Dialogue(llm, {"max_tokens": None if predict < 0 else predict, **sampling}, session)
        dialogue.open(system)
        is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        (talk_in_terminal if is_terminal else talk_in_lines)(dialogue)
    finally:
        llm.close()


def talk_in_terminal(dialogue: "Dialogue") -> None:
    # takes a while to import, and other commands do without
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    lines: PromptSession[str] = PromptSession(bottom_toolbar=dialogue.status, key_bindings=keys)
    remark(f"{HINT}, Alt-Enter begins a new line")
    while dialogue.is_open:
        try:
            line = lines.prompt(PROMPT)
        except KeyboardInterrupt:
            remark(f"({HINT})")
        except EOFError:
            return
        else:
            dialogue.take(line, printable)


def talk_in_lines(dialogue: "Dialogue") -> None:
    for line in sys.stdin:
        if dialogue.take(line.rstrip("\n"), str):
            remark(dialogue.status())
        if not dialogue.is_open:
            break
    if dialogue.n_errors:
        raise typer.Exit(1)


class Dialogue:
    """A session, the commands that change or show it, and where it is saved."""

    def __init__(self, llm: Llama, options: dict[str, Any], path: Path | None):
        self.is_open = True
        self.n_errors = 0
        self._llm = llm
        self._options = options  # of Session.say
        self._path = path
        self._forks: list[Session] = []
        self._session: Session

    def open(self, system: str | None) -> None:
        """Begin, with the session in the file if there is one."""
        if self._path is None or not self._path.exists():
            self._session = self._llm.session(system)
            return
        self._session = self._llm.load_session(self._path)
        if system is not None and system != self._session.system:
            raise ValueError(f"--system must be that of {self._path}, {self._session.system!r}, got {system!r}")
        remark(self._where(f"continuing {self._path}"))

    def status(self) -> str:
        said = self._session.n_tokens > 0
        return status_line(self._session.cache_stats() if said else None, self._session.last)

    def take(self, line: str, show: Callable[[str], str]) -> bool:
        """Obey a command, or answer a question in pieces that are printed as `show` gives them; whether it was one."""
        is_question = bool(line.strip()) and (not line.startswith("/") or line.startswith("//"))
        try:
            if is_question:
                self._answer(line[1:] if line.startswith("//") else line, show)
            elif line.strip():
                self._obey(line)
        except KeyboardInterrupt:
            remark("(stopped)")
        except BrokenPipeError:
            raise  # nobody reads on
        except (OSError, RuntimeError, ValueError) as error:
            self.n_errors += 1
            remark(f"error: {error}")
        return is_question

    def _answer(self, question: str, show: Callable[[str], str]) -> None:
        try:
            with noted_interrupts() as check_interrupt:
                for piece in self._session.say(question, **self._options):
                    print(show(piece), end="", flush=True)
                    check_interrupt()
        finally:
            print(flush=True)
        if self._path is not None:
            self._session.save(self._path)

    def _obey(self, line: str) -> None:
        name, _, argument = line[1:].partition(" ")
        if name not in self.COMMANDS:
            raise ValueError(f"unknown command /{name}: /help lists the commands; a text that begins with / needs //")
        self.COMMANDS[name][0](self, argument.strip())

    def _where(self, what: str) -> str:
        return f"{what}: turn {self._session.n_turns:,}, {self._session.n_tokens:,} tokens"

    def _replace(self, session: Session) -> None:
        self._session.close()
        self._session = session

    def _help(self, _: str) -> None:
        """the commands"""
        for name, (command, argument) in self.COMMANDS.items():
            print(f"  {f'/{name} {argument}':20} {command.__doc__}")

    def _save(self, argument: str) -> None:
        """write the chat to FILE, else to that of --session"""
        path = Path(argument).expanduser() if argument else self._path
        if path is None:
            raise ValueError("/save must name a file where there is no --session")
        self._session.save(path)
        remark(f"{self._where(f'saved {path}')}, {os.path.getsize(path) / 2**20:.1f} MiB")

    def _load(self, argument: str) -> None:
        """go on with the chat in FILE"""
        if not argument:
            raise ValueError("/load must name a file")
        path = Path(argument).expanduser()
        self._replace(self._llm.load_session(path))
        remark(self._where(f"continuing {path}"))

    def _stats(self, _: str) -> None:
        """turns, cells, evictions, memory, time"""
        for name, value in stats_rows(self._session):
            print(f"  {name:28} {value}")

    def _retained(self, argument: str) -> None:
        """where the old tokens are that a layer still has"""
        n_layer = llama_cpp.llama_model_n_layer(self._llm.model)
        if argument and not argument.isdecimal():
            raise ValueError(f"/retained takes the number of a layer, got {argument!r}")
        layer = int(argument) if argument else n_layer // 2
        stats = self._session.cache_stats()
        if stats.n_evictions == 0:
            print(f"nothing was evicted yet: all of {self._session.n_tokens:,} tokens are there")
            return
        positions, n_tokens = self._session.retained(layer), stats.logical_pos + 1
        print(
            f"layer {layer} of {n_layer}, {n_tokens:,} tokens; the newest {n_tokens - stats.complete_pos} are all there"
        )
        for i, (n_kept, picture) in enumerate(zip((positions >= 0).sum(axis=1), pictures(positions, n_tokens))):
            print(f"  head {i:<3} {n_kept:>5} older ones |{picture}|")

    def _fork(self, _: str) -> None:
        """remember this place of the chat"""
        self._forks.append(self._session.fork())
        remark(self._where("/back returns here"))

    def _back(self, _: str) -> None:
        """forget what was said since the last /fork"""
        if not self._forks:
            raise ValueError("/back needs a /fork before")
        self._replace(self._forks.pop())
        remark(self._where("back"))

    def _system(self, argument: str) -> None:
        """begin anew with another system prompt; without TEXT show it"""
        if argument:
            self._replace(self._llm.session(argument))
        else:
            print("none was given" if self._session.system is None else self._session.system)

    def _clear(self, _: str) -> None:
        """begin anew with the same system prompt"""
        self._replace(self._llm.session(self._session.system))

    def _exit(self, _: str) -> None:
        """leave"""
        self.is_open = False

    COMMANDS: ClassVar[dict[str, tuple[Callable[[Any, str], None], str]]] = {
        "help": (_help, ""),
        "save": (_save, "[FILE]"),
        "load": (_load, "FILE"),
        "stats": (_stats, ""),
        "retained": (_retained, "[LAYER]"),
        "fork": (_fork, ""),
        "back": (_back, ""),
        "system": (_system, "[TEXT]"),
        "clear": (_clear, ""),
        "exit": (_exit, ""),
    }
