"""`morphkv eval`: a file a command; each takes the options that its run heeds."""

from typing import Any

import typer

from ..options import llama_options, morphkv_options, with_options, without
from ..options_archive import archive_options
from .copying import eval_copy
from .facts import eval_facts
from .memory import eval_memory
from .old import MEMORY_DEFAULTS, PERPLEXITY_DEFAULTS
from .perplexity import eval_perplexity
from .suite import eval_report, eval_suite

evaluate = typer.Typer(no_args_is_help=True, help="Measure what a cache still knows, against other caches.")

# an arm names its policy, and the prompt room is the prompt's length
of_arms = without(morphkv_options, "prompt_room", "policy")
groups: dict[str, Any] = {"morphkv": morphkv_options, "llama": llama_options}
evaluate.command("copy")(with_options(MEMORY_DEFAULTS, archive=archive_options, **groups)(eval_copy))
evaluate.command("facts")(with_options(morphkv=of_arms, llama=llama_options)(eval_facts))
evaluate.command("memory")(with_options(MEMORY_DEFAULTS, archive=archive_options, **groups)(eval_memory))
evaluate.command("perplexity")(with_options(PERPLEXITY_DEFAULTS, **groups)(eval_perplexity))
evaluate.command("suite")(with_options(llama=without(llama_options, "cache_type_k", "cache_type_v"))(eval_suite))
evaluate.command("report")(eval_report)
