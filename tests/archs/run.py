"""Runs probe.py for random-weight models: of every architecture that test-llama-archs or more_models.py writes.

    python tests/archs/run.py      write morphkv_cpp/architectures.tsv anew (make archs)

MORPHKV_TEST_PROGRAMS names the folder with test-llama-archs and morphkv-model-rows.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from gguf import GGUFReader

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from archs import facts, more_models, more_positions, variants
from archs.rows import Rows

ROOT = Path(__file__).resolve().parents[2]
LIST = ROOT / "morphkv_cpp" / "architectures.tsv"
PROBE = Path(__file__).with_name("probe.py")
HEADER = (
    "architecture",
    "variant",
    "support",
    "why",
    "goes_back",
    "is_rebased",
    "is_archived",
    "images",
    "mtp",
)


def programs() -> Path | None:
    folder = Path(os.environ.get("MORPHKV_TEST_PROGRAMS", ""))
    names = ("test-llama-archs", "morphkv-model-rows")
    return folder if all((folder / name).is_file() for name in names) else None


def write_models(folder: Path) -> list[Path]:
    """A GGUF of each architecture, of some more: dense and MoE, and variants."""
    subprocess.run(
        [str(programs() / "test-llama-archs"), "--seed", "1", "--out", str(folder)], check=True, capture_output=True
    )
    for name in ("lfm2-dense", "lfm2moe-moe"):
        # Written with a sliding window, as all are; published models have none.
        reader = GGUFReader(folder / f"{name}.gguf", "r+")
        field = reader.fields[f"{name.split('-')[0]}.attention.sliding_window"]
        field.parts[field.data[0]][0] = 0
        reader.data.flush()
    for name in ("gpt2-dense", "starcoder-dense"):
        more_positions.extend_positions(folder / f"{name}.gguf", 1024)
    variants.write_variants(folder)
    for architecture, variant in more_models.MODELS:
        more_models.write_model(variants.path_of(folder, architecture, variant), architecture, variant)
    return sorted(folder.glob("*.gguf"))


def probe(models: list[Path], quick: bool) -> list[dict]:
    command = [sys.executable, str(PROBE), *(["--quick"] if quick else []), *map(str, models)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise AssertionError(f"{models[len(done.stdout.splitlines())].name}:\n{done.stderr[-3000:]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def row(answer: dict) -> dict[str, str]:
    """A line of the list. "" of what is not served or was not run."""
    yes_no = {True: "yes", False: "no", None: ""}
    architecture, variant = variants.names_of(Path(answer["model"]))
    is_served = answer["support"] in ("all", "part")
    return {
        "architecture": architecture,
        "variant": variant,
        "support": answer["support"],
        "why": answer["why"].replace(f"MorphKV cannot serve architecture '{architecture}': ", ""),
        "goes_back": answer.get("goes_back", ""),
        "is_rebased": yes_no[answer.get("is_rebased")],
        "is_archived": yes_no[answer.get("is_archived")],
        "images": facts.images_of(architecture, answer["has_mrope"]) if is_served else "",
        "mtp": facts.mtp_of(architecture, upstream_source(), answer["has_mrope"]) if is_served else "",
    }


def checked(model: Path) -> dict[str, str]:
    """Its line, by probe.py with all checks, and by those of its rows."""
    (answer,) = probe([model], quick=False)
    rows = Rows(programs())
    # where more than a plain rotation is between a key and its row
    is_other = answer.get("has_mrope") or variants.has_compressed_keys(model) or variants.has_norm_behind(model)
    for kind in ["f16", "q8_0"] if is_other else ["f16"]:
        if answer.get("is_rebased"):
            rows.check_rebases(model, kind)
        if answer.get("is_archived"):
            rows.check_recall(model, kind)
    return row(answer)


def upstream_source() -> Path:
    return programs().parents[1] / "upstream" / "src"


def all_names() -> list[str]:
    """Every architecture that this upstream version has a name for."""
    source = (upstream_source() / "llama-arch.cpp").read_text()
    table = source[source.index("LLM_ARCH_NAMES") :]
    names = re.findall(r'\{ LLM_ARCH_\w+,\s*"([^"]+)"', table[: table.index("};")])
    return [name for name in names if name != "(unknown)"]


def not_run(names: set[str]) -> list[dict[str, str]]:
    why = "no random-weight model of it"
    empty = dict.fromkeys(HEADER, "")
    return [empty | {"architecture": name, "support": "not run", "why": why} for name in names]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows: dict[tuple[str, str], dict[str, str]] = {}
        for model in write_models(Path(folder)):
            new = checked(model)
            old = rows.setdefault((new["architecture"], new["variant"]), new)
            if old != new:
                raise AssertionError(f"two models of one variant differ: {new} and {old}")
            print(" ".join(new.values()), flush=True)
    everything = [*rows.values(), *not_run(set(all_names()) - {name for name, _ in rows})]
    everything.sort(key=lambda each: (each["architecture"], each["variant"]))
    LIST.write_text("".join("\t".join(line) + "\n" for line in [HEADER, *(list(each.values()) for each in everything)]))


if __name__ == "__main__":
    main()
