"""The options of llama-server and llama-perplexity: in --help, from the environment, refused with a sentence."""

import re

import pytest

from morphkv_cpp import Profile
from support.server_process import run_program, some_tokens

OPTIONS = [
    "morphkv",
    "morphkv-capacity",
    "morphkv-window",
    "morphkv-votes",
    "morphkv-prompt-room",
    "morphkv-interval",
    "morphkv-fusion",
    "morphkv-policy",
    "morphkv-protect",
    "morphkv-decay",
    "morphkv-rope-limit",
    "morphkv-layers",
]


def refused(done, sentence: str) -> None:
    assert done.returncode == 1
    assert re.search(sentence, done.stdout), done.stdout[-2000:]


@pytest.mark.parametrize("name", ["llama-server", "llama-perplexity"])
def test_help_has_each_option_and_its_environment_variable(name):
    done = run_program(name, "--help")
    assert done.returncode == 0
    words = set(re.split(r"[\s,)]+", done.stdout))
    of_server = ["morphkv-keep-system", "morphkv-archive", "morphkv-state-dir", "morphkv-state-max"]
    options = OPTIONS + (of_server if name == "llama-server" else [])
    for option in options:
        assert f"--{option}" in words
        assert option.replace("morphkv", "-", 1) in words or option == "morphkv"  # --capacity
        assert "LLAMA_ARG_" + option.upper().replace("-", "_") in words
    assert "--no-morphkv" in words


BAD = [
    (["--morphkv-capacity", 36], "capacity must exceed keep \\+ window, got capacity=36 with keep=4 and window=32"),
    (["--morphkv-window", 0], "window must be in 1\\.\\."),
    (["--morphkv-votes", 33], "votes must be in 0\\.\\.32, got 33"),
    (["--morphkv-prompt-room", -1], "prompt_room must be in"),
    (["--morphkv-interval", 0], "interval must be in"),
    (["--morphkv-fusion", "mean"], "fusion must be sum or max, got 'mean'"),
    (["--morphkv-policy", "votes"], "policy must be morphkv, committees, h2o, recency or random, got 'votes'"),
    (["--morphkv-protect", 988], "capacity must exceed keep \\+ window \\+ protect, got capacity=1024 .* protect=988"),
    (["--morphkv-decay", "1.5"], r"decay must be in \[0, 1\), got 1.5"),
    (["--morphkv-decay", "half"], "expected a number, got 'half'"),
    (["--morphkv-rope-limit", -2], "rope_limit must be in"),
    (["--morphkv-archive", "off"], "must be auto, ram or a path, got off: --no-morphkv-archive stores nothing"),
    (["--morphkv-layers", "auto"], "layers auto is for `morphkv serve`"),
    (["--morphkv-layers", "nowhere.json"], "layers must be equal, .* or all:N:FILE, got 'nowhere.json'"),
    (["--keep", 992], "capacity must exceed keep \\+ window, got capacity=1024 with keep=992"),
    (["--flash-attn", "off"], "needs flash attention, got --flash-attn off"),
    (["--kv-unified"], "every slot cells of its own, got --kv-unified"),
    (["--kv-unified-per-slot", 4096], "every slot cells of its own, got --kv-unified-per-slot"),
    (["--embedding"], "got --embedding or --reranking"),
    (["--reranking"], "got --embedding or --reranking"),
    (["--spec-type", "draft-dflash"], "not with blocks whose tokens attend both ways, got --spec-type draft-dflash"),
    (["--spec-type", "draft-dspark"], "not with blocks whose tokens attend both ways, got --spec-type draft-dspark"),
    (["-c", 1000], "-c is the most tokens of a slot.*, got 1000 with 2048"),
    (["--cache-type-v", "q4_1"], "needs a K/V type among .*, got q4_1"),
    (["--morphkv-rope-limit", 100], "rope_limit must be .* at least capacity \\+ max.*, got 100"),
]


@pytest.mark.parametrize("flags, sentence", BAD, ids=[" ".join(map(str, flags)) for flags, _ in BAD])
def test_what_contradicts_morphkv_stops_with_a_sentence(tiny_llama, flags, sentence):
    refused(run_program("llama-server", "-m", tiny_llama(), "--port", 0, "--morphkv", *flags), sentence)


def test_a_file_that_is_no_profile_is_refused(tmp_path):
    path = tmp_path / "profile.json"
    for text, sentence in {
        "{": "the file of a profile or .*, got .*: .*parse error",
        '{"morphkv_profile": 2, "large": [1]}': "its format must be 1",
        '{"morphkv_profile": 1, "large": ["a"]}': "the file of a profile or .*, got .*must be number",
    }.items():
        path.write_text(text)
        refused(run_program("llama-server", "-m", "x.gguf", "--morphkv", "--morphkv-layers", path), sentence)
    Profile((1.0, 2.0)).save(path)
    for layers, sentence in {
        "all:1": "layers all:1 is for `morphkv serve`, which finds the profile of a model",
        f"all:0:{path}": r"layers all:N must be in 1\.\.1, fewer than are cut, got 0",
        f"all:2:{path}": r"layers all:N must be in 1\.\.1, fewer than are cut, got 2",
        "all:1:missing.json": "layers must be equal, the file of a profile or all:N:FILE, got",
    }.items():
        refused(run_program("llama-server", "-m", "x.gguf", "--morphkv", "--morphkv-layers", layers), sentence)


def test_layers_of_a_profile_keep_more(start_server, tiny_llama, tmp_path):
    path = tmp_path / "profile.json"
    Profile((1.0, 2.0)).save(path)
    sizes = ["--morphkv-capacity", 500, "--morphkv-interval", 12, "--morphkv-prompt-room", 0]
    server = start_server(tiny_llama(), "--morphkv", *sizes, "--morphkv-layers", path, "-np", 1)
    props = server.get("/props")["morphkv"]
    assert (props["capacity"], props["min_capacity"], props["max_capacity"]) == (500, 244, 756)
    done = server.complete(some_tokens(900), 20)
    assert len(done["tokens"]) == 20
    assert done["timings"]["evicted_n"] > 0


@pytest.mark.parametrize("n_ctx", [0, 600])
def test_layers_may_keep_all(start_server, tiny_llama, tmp_path, n_ctx):
    path = tmp_path / "profile.json"
    Profile((1.0, 2.0)).save(path)
    sizes = ["--morphkv-capacity", 64, "--morphkv-interval", 12, "--morphkv-prompt-room", 0, "-c", n_ctx]
    server = start_server(tiny_llama(), "--morphkv", *sizes, "--morphkv-layers", f"all:1:{path}", "-np", 2)
    props = server.get("/props")["morphkv"]
    assert props["min_capacity"] == 64
    n_trained = server.get("/v1/models")["data"][0]["meta"]["n_ctx_train"]
    assert props["max_capacity"] == (n_ctx or n_trained) - 12
    done = server.complete(some_tokens(500), 20)
    assert len(done["tokens"]) == 20
    assert done["timings"]["evicted_n"] > 0


def test_a_setting_without_morphkv_is_refused():
    refused(run_program("llama-server", "-m", "x.gguf", "--morphkv-capacity", 64), "--morphkv-capacity needs --morphkv")


def test_the_environment_counts_as_an_option():
    env = {"LLAMA_ARG_MORPHKV": "1", "LLAMA_ARG_MORPHKV_CAPACITY": "36"}
    refused(run_program("llama-server", "-m", "x.gguf", env=env), "capacity=36 with keep=4")


def test_no_morphkv_wins_over_the_environment():
    env = {"LLAMA_ARG_MORPHKV": "1", "LLAMA_ARG_MORPHKV_CAPACITY": "36"}
    done = run_program("llama-server", "-m", "missing.gguf", "--no-morphkv", env=env)
    assert done.returncode == 1
    assert "capacity" not in done.stdout
    assert "missing.gguf" in done.stdout


def test_bench_takes_the_options(tiny_llama):
    flags = ["-m", tiny_llama(), "-t", 1, "-p", 0, "-n", 300, "-r", 1, "--no-warmup", "-o", "json"]
    tight = ["--morphkv", "--morphkv-capacity", 64, "--morphkv-window", 8, "--morphkv-interval", 16]
    done = run_program("llama-bench", *flags, *tight)
    assert done.returncode == 0, done.stdout
    assert '"n_gen": 300' in done.stdout
    refused(run_program("llama-bench", *flags, *tight, "--morphkv-window", 64), "window must be in 1..63, got 64")
    assert "--morphkv" in run_program("llama-bench", "--help").stdout


def test_perplexity_takes_the_options(tiny_llama, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("a quick brown fox jumps over the lazy dog " * 40)
    flags = ["-m", tiny_llama(), "-f", text, "-c", 512, "-b", 512, "-t", 1, "--chunks", 1]
    tight = ["--morphkv-capacity", 64, "--morphkv-window", 8, "--morphkv-prompt-room", 64]

    def perplexity(*more) -> str:
        # it may end before the thread that writes its log has written the last line
        for _ in range(20):
            done = run_program("llama-perplexity", *flags, *more)
            assert done.returncode == 0, done.stdout[-2000:]
            if found := re.search(r"Final estimate: PPL = ([\d.]+)", done.stdout):
                return found[1]
        raise AssertionError(done.stdout[-2000:])

    stock = perplexity()
    roomy = perplexity("--morphkv", "--morphkv-capacity", 384, "--morphkv-prompt-room", 64)
    evicting = perplexity("--morphkv", *tight)
    assert roomy == stock
    assert evicting != stock
