"""`morphkv bench`: tables, requirements, JSON and exit codes, on a tiny model."""

import json
import re
import sys

import pytest

from morphkv_cpp import bench as measuring
from morphkv_cpp.cli.app import main
from morphkv_cpp.cli.bench import bench, decode
from morphkv_cpp.cli.bench.server import server_flags
from morphkv_cpp.cli.options import llama_options
from support.server_process import program

TIGHT = ["--capacity", "64", "--window", "8", "--interval", "16", "-t", "1"]
SIZES = ["--depth", "300", "--prompt", "200", "--rounds", "2"]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["bench", *arguments])
    return stop.value.code or 0


class TestDecode:
    def test_ratios_and_their_bars(self, capsys, tiny_llama):
        bars = ["--require", "same-cells>=0", "--require", "depth>=1000"]
        assert run("decode", str(tiny_llama()), *SIZES, *TIGHT, *bars) == 1
        captured = capsys.readouterr()
        row = next(line for line in captured.out.splitlines() if line.strip().startswith("after-prompt"))
        assert len([word for word in row.split() if "." in word]) == 3
        assert "missed: depth must be >= 1000" in captured.err
        assert "same-cells" not in captured.err

    def test_one_object_holds_the_figures_and_what_was_missed(self, capsys, tiny_llama):
        model = str(tiny_llama())
        assert run("decode", model, *SIZES, *TIGHT, "--json", "--require", "depth>=1000") == 1
        found = json.loads(capsys.readouterr().out)
        assert list(found["figures"]) == ["same-cells", "depth", "after-prompt"]
        assert found["figures"]["depth"] == found["ratios"]["depth"]["middle"]
        assert found["missed"] == [f"depth must be >= 1000, got {found['figures']['depth']:.3f}"]
        assert (found["model"], found["morphkv"]["capacity"]) == (model, 64)
        assert [len(cache["rates_tok_s"]) for cache in found["caches"]] == [2] * 4

    def test_a_plot_shows_several_depths(self, capsys, tiny_llama, tmp_path):
        pytest.importorskip("matplotlib", reason="plots need matplotlib")
        model, plot = tiny_llama(), tmp_path / "decode.svg"
        assert run("decode", str(model), *SIZES, *TIGHT, "--plot", str(plot), "--json") == 0
        captured = capsys.readouterr()
        found = json.loads(captured.out)["depths"]
        assert [point["n_depth"] for point in found] == [37, 37, 75, 75, 150, 150, 300, 300]
        assert all(len(point["rates_tok_s"]) == 2 and point["kv_bytes"] > 0 for point in found)
        assert f"{model.stem}: MorphKV (capacity 64) and stock llama.cpp" in plot.read_text()
        assert f"the plot is in {plot}" in captured.err

    def test_a_plot_is_a_table_too(self, capsys, tiny_llama, tmp_path):
        pytest.importorskip("matplotlib", reason="plots need matplotlib")
        assert run("decode", str(tiny_llama()), *SIZES, *TIGHT, "--plot", str(tmp_path / "decode.png")) == 0
        rows = [line.split() for line in capsys.readouterr().out.partition("At several depths")[2].splitlines()]
        assert [row[0] for row in rows if "stock" in row] == ["37", "75", "150", "300"]
        assert (tmp_path / "decode.png").read_bytes().startswith(b"\x89PNG")

    @pytest.mark.parametrize(
        "more, sentence",
        [
            (["--plot", "decode.jpg"], "must end in .svg, .png, .pdf, got 'decode.jpg'"),
            (["--plot", "decode.svg", "--depth", "31"], "the depth must be at least 32, twice the interval, got 31"),
        ],
    )
    def test_a_plot_that_cannot_be_is_refused_before_the_run(
        self, capsys, tiny_llama, tmp_path, monkeypatch, more, sentence
    ):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(decode, "run_suite", None)
        assert run("decode", str(tiny_llama()), *TIGHT, *more) == 1
        assert sentence in capsys.readouterr().err

    def test_without_matplotlib_one_sentence_says_what_to_install(self, capsys, tiny_llama, tmp_path, monkeypatch):
        for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        monkeypatch.setattr(decode, "run_suite", None)
        assert run("decode", str(tiny_llama()), *TIGHT, "--plot", str(tmp_path / "decode.svg")) == 1
        assert capsys.readouterr().err.count("pip install 'morphkv_cpp[plot]'") == 1

    def test_the_prompt_room_is_its_own(self, capsys, tiny_llama):
        assert run("decode", str(tiny_llama()), "--prompt-room", "0") == 2
        assert "--prompt-room" in capsys.readouterr().err


class TestDepths:
    ROUNDS = ("--depth", "600", "-r", "1")

    def test_a_row_for_each_cache_and_depth_and_bars(self, capsys, tiny_llama):
        bars = ["--require", "speed>=1000", "--require", "first-token>=0"]
        assert run("depths", str(tiny_llama()), *self.ROUNDS, *TIGHT, *bars) == 1
        captured = capsys.readouterr()
        rows = [line.split() for line in captured.out.splitlines() if re.match(r" *\d+ +(MorphKV|stock|context)", line)]
        assert [row[0] for row in rows] == ["37"] * 4 + ["75"] * 4 + ["150"] * 4 + ["300"] * 5 + ["600"] * 5
        assert " ".join(rows[-1][1:3]) == "context shift"
        assert len(rows[-2]) == len(rows[-1]) + 2  # which has no prompt
        assert "missed: speed must be >= 1000" in captured.err

    def test_json_and_a_plot_of_those_that_are_asked_for(self, capsys, tiny_llama, tmp_path):
        pytest.importorskip("matplotlib", reason="plots need matplotlib")
        model, plot = str(tiny_llama()), tmp_path / "depths.svg"
        chosen = ["--caches", "stock,morphkv,q8_0", "--plot", str(plot), "--json"]
        assert run("depths", model, *self.ROUNDS, *TIGHT, *chosen) == 0
        found = json.loads(capsys.readouterr().out)
        assert list(found["figures"]) == ["speed", "first-token"]
        assert found["copy_gb_s"] > 0
        assert [row["n_depth"] for row in found["depths"]] == [n for n in (37, 75, 150, 300, 600) for _ in range(3)]
        assert all(row["read_gb_s"] > 0 and row["first_token_s"] > 0 for row in found["depths"])
        ids = re.findall(r'id="(speed|prompt|memory)-([^"]+)"', plot.read_text())
        assert len(ids) == 9
        assert {name for _, name in ids} == {"MorphKV", "stock-llama.cpp", "stock,-q8_0"}

    @pytest.mark.parametrize(
        "more, sentence",
        [
            (["--caches", "morphkv,f16"], "--caches must be some of morphkv, stock, q8_0, q4_0, shift, got 'f16'"),
            (["--caches", "q8_0", "--require", "speed>1"], "--require needs morphkv and stock among --caches"),
            (["--depth", "31"], "the depth must be at least 32, twice the interval, got 31"),
            (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        ],
    )
    def test_what_cannot_be_measured_is_refused_before_the_run(self, capsys, tiny_llama, more, sentence):
        assert run("depths", str(tiny_llama()), *TIGHT, *more) == 1
        assert sentence in capsys.readouterr().err


class TestGrowth:
    BARS = ("--require", "kv-mb<=0", "--require", "cells<=0", "--require", "rss-mb<8")

    def test_a_long_run_is_flat(self, capsys, tiny_llama):
        assert run("growth", str(tiny_llama()), "--tokens", "3000", *TIGHT, *self.BARS) == 0
        captured = capsys.readouterr()
        assert "all 3 requirements met" in captured.err
        assert "3000 tokens, tok/s of those that come one by one" in captured.out

    def test_one_object_holds_every_sample(self, capsys, tiny_llama):
        assert run("growth", str(tiny_llama()), "--tokens", "3000", *TIGHT, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["figures"]["cells"], found["figures"]["kv-mb"], found["missed"]) == (0, 0, [])
        assert found["samples"][-1]["n_tokens"] >= 3000
        assert found["n_evictions"] > 100


class TestStream:
    def test_a_streamed_answer_keeps_its_speed(self, capsys, tiny_llama):
        assert run("stream", str(tiny_llama()), "--tokens", "2000", *TIGHT, "--require", "streaming>=0.01") == 0
        captured = capsys.readouterr()
        assert "the requirement is met" in captured.err
        assert "after token 2000 over those after token 1000" in captured.out


class TestArchive:
    def test_costs_are_one_object(self, capsys, tiny_llama):
        assert run("archive", str(tiny_llama()), "--tokens", "500", *TIGHT, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert list(found["figures"]) == ["archive-speed", "recall-ms", "ask-ms", "auto-speed"]
        assert found["n_archived"] > 400
        assert len(found["recalls"]) == measuring.archive.N_RECALLS


class TestShape:
    SMALL = ("--shape", "1b", "--layers", "1", "--depth", "150", "--rounds", "1")

    def test_layers_are_multiplied_openly(self, capsys):
        assert run("shape", *self.SMALL, *TIGHT) == 0
        out = capsys.readouterr().out
        assert "Llama 3.2 1B: 1 layers measured, and times 16/1, in ms" in out
        one, all_of_them = (float(x) for x in re.search(r"an eviction +([0-9.]+) +([0-9.]+)", out).groups())
        assert all_of_them == pytest.approx(16 * one, rel=0.05, abs=0.1)

    def test_figures_of_the_whole_model_are_one_object_and_a_plot(self, capsys, tmp_path):
        pytest.importorskip("matplotlib", reason="plots need matplotlib")
        plot = tmp_path / "shape.svg"
        assert run("shape", *self.SMALL, *TIGHT, "--json", "--require", "evict-ms<0", "--plot", str(plot)) == 1
        assert 'id="cost-an-eviction"' in plot.read_text(encoding="utf-8")
        found = json.loads(capsys.readouterr().out)
        counted = found["cost"]["without_archive"]
        assert found["figures"]["evict-ms"] == pytest.approx(16 * counted["evict_ms"] / counted["n"])
        assert found["copy_gb_s"] > 0
        assert found["missed"] == [f"evict-ms must be < 0, got {found['figures']['evict-ms']:.3f}"]

    def test_another_shape_is_refused(self, capsys):
        assert run("shape", "--shape", "9b") == 1
        assert "--shape must be one of 1b, 4b, 8b, 32b, got '9b'" in capsys.readouterr().err


class TestServer:
    @pytest.mark.skipif(not program("llama-server").is_file(), reason="built without llama-server")
    @pytest.mark.slow
    def test_slots_and_turns_are_one_object(self, capsys, tiny_llama):
        assert run("server", str(tiny_llama()), "-r", "1", *TIGHT, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert list(found["figures"]) == ["slots", "first-token", "watched"]
        assert set(found["rates_tok_s"]) == {"MorphKV", "stock, as many cells", "watched", "unwatched"}
        assert len(found["first_token_s"]) == 62

    @pytest.mark.skipif(not program("llama-server").is_file(), reason="built without llama-server")
    def test_one_row_is_measured_alone(self, capsys, tiny_llama, tmp_path):
        plot = tmp_path / "server.svg"
        options = ["--rows", "watched", "-r", "1", *TIGHT, "--json", "--plot", str(plot)]
        assert run("server", str(tiny_llama()), *options) == 0
        found = json.loads(capsys.readouterr().out)
        assert list(found["figures"]) == ["watched"]
        assert set(found["rates_tok_s"]) == {"watched", "unwatched"}
        assert 'id="watched-watched"' in plot.read_text(encoding="utf-8")

    @pytest.mark.skipif(not program("llama-server").is_file(), reason="built without llama-server")
    def test_so_many_slots_are_busy(self, capsys, tiny_llama):
        assert run("server", str(tiny_llama()), "--rows", "slots", "-np", "2", "-r", "1", *TIGHT) == 0
        assert "tok/s of 2 busy slots over stock's with as many cells" in capsys.readouterr().out
        assert run("server", str(tiny_llama()), "-np", "0", *TIGHT) == 1
        assert "--rounds and --parallel must be at least 1, got 5 and 0" in capsys.readouterr().err

    def test_a_row_that_there_is_not_is_refused(self, capsys, tiny_llama):
        assert run("server", str(tiny_llama()), "--rows", "slots,shown") == 1
        assert "--rows must be some of slots, first-token, watched, got 'shown'" in capsys.readouterr().err

    def test_a_bar_on_a_row_that_is_left_out_is_refused(self, capsys, tiny_llama):
        assert run("server", str(tiny_llama()), "--rows", "slots", "--require", "watched>=0.98") == 1
        assert "a requirement must speak of one of slots, got 'watched>=0.98'" in capsys.readouterr().err

    def test_devices_and_types_are_the_servers_too(self):
        plain = server_flags(llama_options(threads=3, gpu_layers=5, cache_type_k="q8_0"))
        assert plain == ["-t", 3, "-ngl", 5, "-ctk", "q8_0", "-ctv", "f16"]
        more = server_flags(llama_options(threads=3, rpc="a:1,b:2", tensor_split="3,1.5", kv_offload=False))
        assert more[2:4] == ["-ngl", "all"]  # of which llama-server takes -1 for auto
        assert more[8:] == ["--no-kv-offload", "--rpc", "a:1,b:2", "--tensor-split", "3,1.5"]

    @pytest.mark.parametrize("option", ["--policy-seed=1", "--tokens=5", "--depth=5"])
    def test_what_it_would_not_heed_is_no_option(self, capsys, tiny_llama, option):
        assert run("server", str(tiny_llama()), option) == 2
        assert option.partition("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["decode", "--rounds", "0"],
        ["growth", "--tokens", "2999"],
        ["stream", "--tokens", "999"],
        ["server", "--rounds", "0"],
    ],
)
def test_sizes_out_of_range_are_refused(capsys, tiny_llama, arguments):
    assert run(arguments[0], str(tiny_llama()), *arguments[1:]) == 1
    assert "must be at least" in capsys.readouterr().err


@pytest.mark.parametrize("command", [each.name for each in bench.registered_commands if not each.hidden])
def test_a_bar_on_nothing_measured_is_refused(capsys, tiny_llama, command):
    model = [] if command == "shape" else [str(tiny_llama())]
    assert run(command, *model, "--require", "nothing>=1") == 1
    assert "a requirement must speak of one of" in capsys.readouterr().err


def test_a_command_that_there_is_not_is_told(capsys):
    assert run("decod") == 2
    assert "decod" in capsys.readouterr().err
