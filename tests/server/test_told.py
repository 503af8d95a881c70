"""What the server tells: its names, its errors, why it evaluates a text anew, and what is on."""

import re
import time

import pytest

from morphkv_cpp import Profile
from support.server_process import TIGHT, run_program
from support.server_process import some_tokens as tokens


@pytest.fixture(scope="module")
def server(start_shared, tiny_llama):
    return start_shared(tiny_llama(), *TIGHT, "-np", 1, "-c", 600)


def error(server, path: str, body: dict) -> str:
    answer = server.post(path, body)
    assert answer.status_code >= 400
    return answer.json()["error"]["message"]


class TestErrors:
    @pytest.mark.parametrize("path", ["/v1/embeddings", "/embedding"])
    def test_embeddings_are_to_be_had_without_morphkv(self, server, path):
        said = error(server, path, {"input": "x", "content": "x"})
        assert "start another llama-server, without --morphkv and with `--embeddings`" in said

    def test_so_are_ranks(self, server):
        said = error(server, "/v1/rerank", {"query": "x", "documents": ["y"]})
        assert "start another llama-server, without --morphkv and with `--reranking`" in said

    def test_a_prompt_beyond_c_is_told_to_leave_it_out(self, server):
        said = error(server, "/completion", {"prompt": tokens(700)})
        assert said == (
            "request (700 tokens) exceeds the available context size (600 tokens), "
            "which -c of the server set: leave it out for no limit"
        )

    def test_stock_says_what_it_said(self, start_server, tiny_llama):
        stock = start_server(tiny_llama(), "-c", 512, "-np", 1)
        assert error(stock, "/v1/embeddings", {"input": "x"}).endswith("Start it with `--embeddings`")
        assert error(stock, "/completion", {"prompt": tokens(700)}).endswith("try increasing it")

    def test_json_of_other_types_is_still_the_clients_fault(self, server):
        assert server.post("/completion", {"prompt": "x", "n_predict": "many"}).status_code == 400


class TestNames:
    def test_a_model_is_named_by_its_file(self, server):
        (model,) = server.get("/v1/models")["data"]
        assert re.fullmatch(r"\d+", model["id"])
        assert server.chat([{"role": "user", "content": "x"}], 2)["model"] == model["id"]

    def test_unless_it_was_given_a_name(self, start_server, tiny_llama):
        named = start_server(tiny_llama(), *TIGHT, "-np", 1, "--alias", "a/b")
        assert [model["id"] for model in named.get("/v1/models")["data"]] == ["a/b"]

    def test_options_have_their_short_names_too(self, start_server, tiny_llama):
        short = ["--morphkv", "--capacity", 96, "--window", 8, "--archive", "ram", "--no-archive", "--keep-system"]
        props = start_server(tiny_llama(), *short, "-np", 1).get("/props")["morphkv"]
        assert (props["capacity"], props["window"], props["keep_system"], "archive" in props) == (96, 8, True, False)


class TestAnew:
    def test_a_text_that_is_evaluated_anew_is_told_once_with_the_reason(self, start_server, tiny_llama):
        server = start_server(tiny_llama(), *TIGHT, "-np", 1)

        def told(n: int, **more) -> list[str]:
            """The n lines of all requests; the log is written by a thread."""
            server.complete(**{"n_tokens": 4, **more})
            end = time.monotonic() + 30
            while len(lines := re.findall(r"MorphKV: (\d+ of .*)", server.log.read_text())) < n:
                assert time.monotonic() < end, lines
                time.sleep(0.05)
            return lines

        text = tokens(1000)
        nothing = "nothing of it is in a slot, in the prompt cache (--cache-ram) or on disk (--morphkv-state-dir)"
        lines = [f"1000 of 1000 tokens are evaluated: {nothing}"]
        assert told(1, prompt=text) == lines
        assert told(1, prompt=[*text, 261]) == lines
        edited = [*text[:100], 299, *text[101:]]
        other = "the slot's text is another one from token 100 on, and no checkpoint is nearer"
        lines.append(f"1000 of 1000 tokens are evaluated: {other}")
        assert told(2, prompt=edited) == lines
        lines.append("1000 of 1000 tokens are evaluated: the request has cache_prompt false")
        assert told(3, prompt=edited, cache_prompt=False) == lines


class TestStart:
    def on(self, server) -> str:
        (line,) = re.findall(r"MorphKV: (on .*)", server.log.read_text())
        return line

    def test_one_line_says_what_is_on(self, start_server, tiny_llama, tmp_path):
        flags = ["--morphkv-archive", "auto", "--morphkv-keep-system", "--morphkv-state-dir", tmp_path / "s"]
        line = self.on(start_server(tiny_llama(), *TIGHT, "-np", 2, *flags))
        assert line.startswith("on the CPU, 2 slots of 256 cells each for texts of any length, K and V ")
        assert "; system prompts kept; archive in RAM (q8_0, 2048 MiB over all slots); up to 32 checkpoints" in line
        assert line.endswith(f"chats on disk in {tmp_path / 's'}")

    def test_layers_that_keep_more_have_more_cells(self, start_server, tiny_llama, tmp_path):
        Profile((1.0, 2.0)).save(tmp_path / "profile.json")
        flags = [*TIGHT, "--morphkv-capacity", 600, "--morphkv-layers", tmp_path / "profile.json"]
        server = start_server(tiny_llama(), *flags, "--morphkv-prompt-room", 16, "-np", 2)
        props = server.get("/props")["morphkv"]
        assert (props["min_capacity"] + 16, props["max_capacity"] + 16) == (512, 1024)
        assert self.on(server).startswith("on the CPU, 2 slots of 512 to 1024 cells each")

    def test_also_what_is_not(self, start_server, tiny_llama):
        line = self.on(start_server(tiny_llama(), *TIGHT, "-np", 1))
        assert "system prompts may be evicted; no archive" in line
        assert line.endswith("chats end with the server")

    def test_a_window_that_is_too_small_is_to_be_left_out(self, tiny_llama):
        done = run_program("llama-server", "-m", tiny_llama(), *TIGHT, "-c", 100)
        assert done.returncode == 1
        assert (
            "leave it out for no limit, or give at least capacity + max(interval, prompt_room), got 100" in done.stdout
        )

    @pytest.mark.parametrize("n_ctx", [[], ["-c", 0]], ids=["", "-c 0"])
    def test_none_and_zero_mean_no_limit(self, start_server, tiny_llama, n_ctx):
        server = start_server(tiny_llama(), *TIGHT, "-np", 1, *n_ctx)
        assert server.get("/props")["default_generation_settings"]["n_ctx"] == 2**31 - 1
