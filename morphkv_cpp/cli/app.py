"""The command line, `morphkv`: commands live in modules beside this one."""

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .. import MorphKVError, __version__, portable
from .archs import archs
from .bench import bench
from .chat import chat
from .demo import demo
from .eval import evaluate
from .eval.old import perplexity, recall, remember
from .generate import generate
from .info import show_info
from .loading import shown_loads
from .profile import profile
from .pull import pull
from .read import read
from .retention import show
from .selftest import selftest
from .serve import CONTEXT_SETTINGS, RPC_CONTEXT_SETTINGS, rpc_server, serve
from .texts import texts


class MorphkvGroup(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        """130 after Ctrl-C, with every version of typer."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


# A traceback in a box helps nobody who only mistyped a path; main() prints the sentence.
app = typer.Typer(
    cls=MorphkvGroup,
    help="MorphKV in llama.cpp: a KV cache of constant size for chats and answers of any length.",
    epilog="Next: `morphkv chat demo` talks to a small model, `morphkv serve demo` serves it, `morphkv pull` "
    "lists the models that were fetched. In place of `demo` name a GGUF file, or hf:OWNER/REPO:FILE.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)


def show_version(asked: bool) -> None:
    if asked:
        print(f"morphkv {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


app.command("info")(show_info)
for command in (demo, generate, chat, read, pull):
    app.command()(command)
app.command(context_settings=CONTEXT_SETTINGS)(serve)
app.command("rpc-server", context_settings=RPC_CONTEXT_SETTINGS)(rpc_server)
app.add_typer(bench, name="bench")
app.add_typer(evaluate, name="eval")
for command in (texts, archs, selftest, profile, show):
    app.command()(command)
for name, command in {"recall": recall, "remember": remember, "perplexity": perplexity}.items():
    app.command(name, hidden=True)(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0, 1 with a sentence on standard error, 2 for a wrong option, 130 after Ctrl-C."""
    portable.use_utf8()
    warnings.filterwarnings("default", category=DeprecationWarning, module="morphkv_cpp")  # options of old
    try:
        with shown_loads():
            app(arguments)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # e.g. `morphkv generate ... | head`; Python would complain again when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (MorphKVError, ImportError, OSError, RuntimeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
