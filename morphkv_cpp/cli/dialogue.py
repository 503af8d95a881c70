"""What a chat in a terminal does with each line: a question, or a command."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import llama_cpp

from .. import Llama, Session
from .chat_view import pictures, printable, shown, stats_rows, status_line
from .interrupts import noted_interrupts
from .show import remark

Show = Callable[[str], str]


class Dialogue:
    """A session, the commands that change or show it, and where it is saved."""

    def __init__(self, llm: Llama, session: Session, options: dict[str, Any], path: Path | None):
        self.is_open = True
        self.n_errors = 0
        self._llm = llm
        self._options = options  # of Session.say
        self._path = path
        self._forks: list[Session] = []
        self._n_answers = 0
        self._session = session

    def status(self) -> str:
        said = self._session.n_tokens > 0
        return status_line(self._session.cache_stats() if said else None, self._session.last)

    def take(self, line: str, show: Show) -> bool:
        """Obey a command, or answer a question in pieces that are printed as `show` gives them; whether it answered."""
        is_question = bool(line.strip()) and (not line.startswith("/") or line.startswith("//"))
        n_answers = self._n_answers
        try:
            if is_question:
                self._answer(self._session.say(line[1:] if line.startswith("//") else line, **self._options), show)
            elif line.strip():
                self._obey(line, show)
        except KeyboardInterrupt:
            remark("(stopped)")
        except BrokenPipeError:
            raise  # nobody reads on
        except (OSError, RuntimeError, ValueError) as error:
            self.n_errors += 1
            remark(f"error: {error}")
        return is_question or self._n_answers > n_answers

    def _answer(self, pieces: Iterable[str], show: Show) -> None:
        self._n_answers += 1
        try:
            with noted_interrupts() as check_interrupt:
                for piece in pieces:
                    print(show(piece), end="", flush=True)
                    check_interrupt()
        finally:
            print(flush=True)
        last, limit = self._session.last, self._options.get("max_tokens")
        if last is not None and last.finish_reason == "length" and last.completion_tokens == limit:
            remark(f"(the answer ends at {limit:,} tokens: -n N sets how many)")
        self._save_to_path()

    def _save_to_path(self) -> None:
        if self._path is not None and self._session.n_tokens > 0:
            self._session.save(self._path)

    def _obey(self, line: str, show: Show) -> None:
        name, _, argument = line[1:].partition(" ")
        if name in self.ANSWERS:
            self.ANSWERS[name][0](self, argument.strip(), show)
            return
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
        for name, (command, argument) in {**self.ANSWERS, **self.COMMANDS}.items():
            print(f"  {f'/{name} {argument}':20} {command.__doc__}")

    def _regenerate(self, _: str, show: Show) -> None:
        """another answer to the last question"""
        self._answer(self._session.regenerate(**self._options), show)

    def _edit(self, argument: str, show: Show) -> None:
        """ask TEXT in place of question N (/history numbers them), of the last one without N"""
        number, _, text = argument.partition(" ")
        turn, text = (int(number) - 1, text.strip()) if number.isdecimal() and text.strip() else (-1, argument)
        if not text:
            raise ValueError("/edit must say what to ask instead")
        if turn < 0 and number == "0":
            raise ValueError("/edit numbers questions from 1, got 0")
        self._answer(self._session.edit(turn, text, **self._options), show)

    def _undo(self, _: str) -> None:
        """take back the last question and its answer"""
        self._session.undo()
        remark(self._where("undone"))
        self._save_to_path()

    def _history(self, _: str) -> None:
        """what was said so far"""
        n_questions = 0
        for message in self._session.history():
            n_questions += message["role"] == "user"
            number = f" {n_questions}" if message["role"] == "user" else ""
            print(f"{message['role']}{number}: {printable(shown(message))}")

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
        """turns, cells, evictions, recalls, memory, time"""
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

    # commands that end in an answer
    ANSWERS: ClassVar[dict[str, tuple[Callable[[Any, str, Show], None], str]]] = {
        "regenerate": (_regenerate, ""),
        "edit": (_edit, "[N] TEXT"),
    }
    COMMANDS: ClassVar[dict[str, tuple[Callable[[Any, str], None], str]]] = {
        "undo": (_undo, ""),
        "history": (_history, ""),
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
