"""The command line, `morphkv`: commands live in modules beside this one."""

import os
import sys
import warnings
from collections.abc import Sequence

import typer

from .. import MorphKVError, info
from .archs import archs
from .bench.decode import bench
from .chat import chat
from .demo import demo
from .eval.facts import recall, remember, texts
from .eval.perplexity import perplexity
from .generate import generate
from .selftest import selftest
from .serve import CONTEXT_SETTINGS, RPC_CONTEXT_SETTINGS, rpc_server, serve

# A traceback in a box helps nobody who only mistyped a path; main() prints the sentence.
app = typer.Typer(
    help="MorphKV in llama.cpp: a KV cache of constant size for chats and answers of any length.",
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    add_completion=False,
)


@app.command("info")
def show_info() -> None:
    """Show versions, the libraries that are loaded, and the devices that they found."""
    print(info())


for command in (demo, generate, chat, perplexity, recall, remember, bench, texts, archs, selftest):
    app.command()(command)
app.command(context_settings=CONTEXT_SETTINGS)(serve)
app.command("rpc-server", context_settings=RPC_CONTEXT_SETTINGS)(rpc_server)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0, 1 with a sentence on standard error, 2 for a wrong option, 130 after Ctrl-C."""
    warnings.filterwarnings("default", category=DeprecationWarning, module="morphkv_cpp")  # options of old
    try:
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
