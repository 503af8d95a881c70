"""Options that several commands share, each written once; help texts are llama.cpp's where it has the option.

A group is a function: its parameters are options of the command line, its result is what the command gets.
"""

import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, cast

import llama_cpp
import typer

from .. import MorphKV
from ..cache.archive import CACHE_TYPES
from ..config import POLICIES, Fusion, Policy
from ..models.demo import demo_model_path
from ..models.hub import hub_model_path, is_hub_name
from ..profile import layers_of
from .gpu_layers import gpu_layers as gpu_layers_of
from .layers import LayersName

DEFAULTS = MorphKV()
MORPHKV_PANEL = "MorphKV"
MODEL_PANEL = "Model and context"
SAMPLING_PANEL = "Sampling"

DEMO = "demo"


Command = Callable[..., None]


def with_options(defaults: dict[str, Any] | None = None, **groups: Callable[..., Any]) -> Callable[[Command], Command]:
    """Decorator: each parameter that `groups` names is replaced by the group's options, and gets the group's result.

    `defaults` are defaults of options that differ in this command. Annotations must be objects, not strings.
    """
    options = {name: list(inspect.signature(group).parameters.values()) for name, group in groups.items()}

    def decorate(command: Command) -> Command:
        flat: list[inspect.Parameter] = []
        for parameter in inspect.signature(command).parameters.values():
            flat += options.get(parameter.name, [parameter])
        changed = defaults or {}
        flat = [p.replace(default=changed.get(p.name, p.default), kind=inspect.Parameter.KEYWORD_ONLY) for p in flat]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            made = {name: group(**{p.name: given.pop(p.name) for p in options[name]}) for name, group in groups.items()}
            command(**given, **made)

        run.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in flat}
        return run

    return decorate


def without(group: Callable[..., Any], *names: str) -> Callable[..., Any]:
    """A group less the options that a command would not heed."""

    @functools.wraps(group)
    def rest(**given: Any) -> Any:
        return group(**given)

    parameters = inspect.signature(group).parameters
    if unknown := set(names) - set(parameters):
        raise ValueError(f"{group.__name__} must have the options that are left out, got {sorted(unknown)}")
    rest.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [p for p in parameters.values() if p.name not in names]
    )
    return rest


def given_options(context: typer.Context, *groups: Callable[..., Any]) -> list[str]:
    """Options of these groups that stand on the command line, as --names."""
    names = [name for group in groups for name in inspect.signature(group).parameters]
    sources = {name: context.get_parameter_source(name) for name in names}
    return [
        f"--{name.replace('_', '-')}" for name, source in sources.items() if source and source.name == "COMMANDLINE"
    ]


def model_path(text: str) -> Path:
    """The GGUF that a MODEL argument names; the demo model and those of the hub are fetched where they are missing."""
    if text == DEMO:
        return demo_model_path()
    if is_hub_name(text):
        return hub_model_path(text)
    if not Path(text).is_file():
        raise FileNotFoundError(f"MODEL must be a GGUF file, '{DEMO}' or hf:OWNER/REPO:FILE, got {text!r}")
    return Path(text)


MODEL_HELP = f"model path to load (GGUF), '{DEMO}': the demo model, or hf:OWNER/REPO:FILE"
Model = Annotated[str, typer.Argument(help=MODEL_HELP)]


def _flag(panel: str, text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


def morphkv_flag(text: str, *names: str, **more: Any) -> Any:
    return _flag(MORPHKV_PANEL, text, *names, **more)


def morphkv_options(
    capacity: Annotated[
        int, morphkv_flag("tokens kept per KV head after an eviction, everything included", "--capacity", metavar="N")
    ] = DEFAULTS.capacity,
    window: Annotated[
        int, morphkv_flag("newest tokens, never evicted; their queries vote", "--window", metavar="N")
    ] = DEFAULTS.window,
    interval: Annotated[
        int, morphkv_flag("evict when the recent tokens exceed the window by N", "--interval", metavar="N")
    ] = DEFAULTS.interval,
    keep: Annotated[
        int, morphkv_flag("number of tokens to keep from the initial prompt, never evicted", "--keep", metavar="N")
    ] = DEFAULTS.keep,
    prompt_room: Annotated[
        int,
        morphkv_flag(
            "cells beyond the capacity that a prompt may fill before tokens are evicted; they cost memory",
            "--prompt-room",
            metavar="N",
        ),
    ] = DEFAULTS.prompt_room,
    votes: Annotated[
        int, morphkv_flag("how many of the newest queries vote (0 = the window)", "--votes", metavar="N")
    ] = DEFAULTS.votes,
    fusion: Annotated[
        str, morphkv_flag("how the votes are combined: sum or max", "--fusion", metavar="NAME")
    ] = DEFAULTS.fusion,
    policy: Annotated[
        str, morphkv_flag("what ranks older tokens: " + ", ".join(POLICIES), "--policy", metavar="NAME")
    ] = DEFAULTS.policy,
    decay: Annotated[
        float, morphkv_flag("weight of a token's last sum of votes, in [0, 1)", "--decay", metavar="X")
    ] = DEFAULTS.decay,
    policy_seed: Annotated[
        int, morphkv_flag("RNG seed of --policy random", "--policy-seed", metavar="SEED")
    ] = DEFAULTS.seed,
    rope_limit: Annotated[
        int,
        morphkv_flag(
            "RoPE's positions stay below N, while the text's go on (-1 = the trained context, 0 = no limit)",
            "--rope-limit",
            metavar="N",
        ),
    ] = DEFAULTS.rope_limit,
    protect: Annotated[
        int,
        morphkv_flag("tokens before the window that stay, too (-1 = as the policy has it)", "--protect", metavar="N"),
    ] = DEFAULTS.protect,
    layers: LayersName = "auto",
) -> MorphKV:
    return MorphKV(
        capacity=capacity,
        window=window,
        interval=interval,
        keep=keep,
        prompt_room=prompt_room,
        votes=votes,
        fusion=cast(Fusion, fusion),
        policy=cast(Policy, policy),
        decay=decay,
        seed=policy_seed,
        rope_limit=rope_limit,
        protect=protect,
        layers=layers_of(layers),
    )


def _model(text: str, *names: str, **more: Any) -> Any:
    return _flag(MODEL_PANEL, text, *names, **more)


def _cache_type(option: str, name: str) -> int:
    if name not in CACHE_TYPES:
        raise ValueError(f"{option} must be one of {', '.join(CACHE_TYPES)}, got {name!r}")
    return CACHE_TYPES[name]


def _proportions(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--tensor-split must be numbers separated by commas, got {text!r}") from None


def llama_options(
    threads: Annotated[
        int | None,
        _model(
            "number of CPU threads to use during generation (default: half of the cores, 2 at least)",
            "--threads",
            "-t",
            metavar="N",
            show_default=False,
        ),
    ] = None,
    gpu_layers: Annotated[
        str | None,
        _model(
            "max. number of layers to store in VRAM, either an exact number, 'auto' (as many as fit), or 'all' "
            "(default: auto in chat and generate, else and with --rpc all)",
            "--gpu-layers",
            "-ngl",
            "--n-gpu-layers",
            metavar="N",
            show_default=False,
        ),
    ] = None,
    rpc: Annotated[
        str | None,
        _model("comma-separated list of RPC servers (host:port)", "--rpc", metavar="SERVERS", show_default=False),
    ] = None,
    tensor_split: Annotated[
        str | None,
        _model(
            "fraction of the model to offload to each GPU, comma-separated list of proportions, e.g. 3,1",
            "--tensor-split",
            "-ts",
            metavar="N0,N1,N2,...",
            show_default=False,
        ),
    ] = None,
    kv_offload: Annotated[
        bool, _model("whether to enable KV cache offloading", "--kv-offload/--no-kv-offload", "-kvo/-nkvo")
    ] = True,
    cache_type_k: Annotated[
        str, _model(f"KV cache data type for K: {', '.join(CACHE_TYPES)}", "--cache-type-k", "-ctk", metavar="TYPE")
    ] = "f16",
    cache_type_v: Annotated[
        str, _model(f"KV cache data type for V: {', '.join(CACHE_TYPES)}", "--cache-type-v", "-ctv", metavar="TYPE")
    ] = "f16",
    verbose: Annotated[bool, _model("show llama.cpp's own log", "--verbose", "-v")] = False,
) -> dict[str, Any]:
    """Keywords of Llama(). Flash attention is on, as MorphKV needs it, so that stock runs compare."""
    options: dict[str, Any] = {
        "n_gpu_layers": gpu_layers_of(gpu_layers, rpc),
        "offload_kqv": kv_offload,
        "type_k": _cache_type("--cache-type-k", cache_type_k),
        "type_v": _cache_type("--cache-type-v", cache_type_v),
        "flash_attn": True,
        "verbose": verbose,
    }
    if rpc is not None:
        options["rpc_servers"] = rpc
    if tensor_split is not None:
        options["tensor_split"] = _proportions(tensor_split)
    if threads is None:
        n_cores = os.cpu_count() or 1
        threads = min(n_cores, max(2, n_cores // 2))
    if threads < 1:
        raise ValueError(f"--threads must be at least 1, got {threads}")
    return {**options, "n_threads": threads, "n_threads_batch": threads}


def _sampling(text: str, *names: str, **more: Any) -> Any:
    return _flag(SAMPLING_PANEL, text, *names, **more)


def sampling_options(
    seed: Annotated[int, _sampling("RNG seed (-1 = random)", "--seed", "-s", metavar="SEED")] = -1,
    temp: Annotated[float, _sampling("temperature", "--temp", "--temperature", metavar="N")] = 0.8,
    top_k: Annotated[int, _sampling("top-k sampling (0 = disabled)", "--top-k", metavar="N")] = 40,
    top_p: Annotated[float, _sampling("top-p sampling (1.0 = disabled)", "--top-p", metavar="N")] = 0.95,
    min_p: Annotated[float, _sampling("min-p sampling (0.0 = disabled)", "--min-p", metavar="N")] = 0.05,
    typical: Annotated[
        float,
        _sampling("locally typical sampling, parameter p (1.0 = disabled)", "--typical", "--typical-p", metavar="N"),
    ] = 1.0,
    repeat_penalty: Annotated[
        float, _sampling("penalize repeat sequence of tokens (1.0 = disabled)", "--repeat-penalty", metavar="N")
    ] = 1.0,
    presence_penalty: Annotated[
        float, _sampling("repeat alpha presence penalty (0.0 = disabled)", "--presence-penalty", metavar="N")
    ] = 0.0,
    frequency_penalty: Annotated[
        float, _sampling("repeat alpha frequency penalty (0.0 = disabled)", "--frequency-penalty", metavar="N")
    ] = 0.0,
) -> dict[str, Any]:
    """Keywords of stream.write(), and the seed."""
    return {
        "seed": llama_cpp.LLAMA_DEFAULT_SEED if seed < 0 else seed,
        "temp": temp,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "typical_p": typical,
        "repeat_penalty": repeat_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
    }
