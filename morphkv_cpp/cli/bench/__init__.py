"""`morphkv bench`: a file a command; each takes the options that its run heeds."""

from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from ..options import DEMO, llama_options, morphkv_options, with_options, without
from .archive import bench_archive
from .decode import bench_decode
from .depths import bench_depths
from .growth import bench_growth
from .old import bench_old
from .server import bench_server
from .shape import bench_shape
from .stream import bench_stream

OLD = "old"


class BenchGroup(TyperGroup):
    """Knows the spelling of 0.1.0, `bench MODEL --constant`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [OLD, *args] if args and self._is_old(args[0]) else args)

    def _is_old(self, first: str) -> bool:
        if first in self.commands or first in ("-h", "--help"):
            return False
        return first.startswith("-") or first == DEMO or first.endswith(".gguf") or Path(first).is_file()


bench = typer.Typer(cls=BenchGroup, no_args_is_help=True, help="Measure speed and memory, as ratios within one run.")

# the prompt room is what this one varies
without_room = without(morphkv_options, "prompt_room")
bench.command("decode")(with_options(morphkv=without_room, llama=llama_options)(bench_decode))
bench.command("depths")(with_options(morphkv=morphkv_options, llama=llama_options)(bench_depths))
bench.command("growth")(with_options(morphkv=morphkv_options, llama=llama_options)(bench_growth))
bench.command("stream")(with_options(morphkv=morphkv_options, llama=llama_options)(bench_stream))
# llama-server knows one seed, and its log is shown where it does not start
served = without(morphkv_options, "policy_seed")
bench.command("server")(with_options(morphkv=served, llama=without(llama_options, "verbose"))(bench_server))
bench.command("archive")(with_options(morphkv=morphkv_options, llama=llama_options)(bench_archive))
# nor has a model of random weights a profile
bench.command("shape")(with_options(morphkv=without(without_room, "layers"), llama=llama_options)(bench_shape))
bench.command(OLD, hidden=True)(bench_old)
