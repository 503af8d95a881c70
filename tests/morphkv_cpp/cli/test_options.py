"""Option groups: written once, they become the options of every command that takes them."""

import dataclasses
import inspect
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from morphkv_cpp import MorphKV, bridge
from morphkv_cpp.cli.gpu_layers import fitted
from morphkv_cpp.cli.options import llama_options, model_path, morphkv_options, sampling_options, with_options


def pair(
    left: Annotated[int, typer.Option("--left")] = 1, right: Annotated[int, typer.Option("--right")] = 2
) -> tuple[int, int]:
    return left, right


def run(command, *arguments: str):
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, list(arguments))


class TestWithOptions:
    def test_the_result_of_a_group_reaches_the_command(self):
        got = []

        @with_options(values=pair)
        def command(name: str, values: tuple) -> None:
            got.append((name, values))

        assert run(command, "x", "--right", "7").exit_code == 0
        assert got == [("x", (1, 7))]

    def test_a_command_may_have_defaults_of_its_own(self):
        got = []

        @with_options({"left": 5}, values=pair)
        def command(values: tuple) -> None:
            got.append(values)

        assert run(command).exit_code == 0
        assert got == [(5, 2)]

    def test_options_stand_where_the_group_stood(self):
        @with_options(values=pair)
        def command(first: int, values: tuple, last: int = 0) -> None:
            pass

        assert list(inspect.signature(command).parameters) == ["first", "left", "right", "last"]


class TestMorphKVOptions:
    def test_no_option_gives_the_defaults(self):
        values = {name: p.default for name, p in inspect.signature(morphkv_options).parameters.items()}
        assert morphkv_options(**values) == MorphKV()

    def test_every_setting_has_an_option(self):
        settings = {field.name for field in dataclasses.fields(MorphKV)}
        options = set(inspect.signature(morphkv_options).parameters)
        # the seed of the text has the name --seed
        assert {"seed" if name == "policy_seed" else name for name in options} == settings

    def test_each_option_reaches_its_setting(self):
        got = []

        @with_options(morphkv=morphkv_options)
        def command(morphkv: MorphKV) -> None:
            got.append(morphkv)

        wanted = MorphKV(
            capacity=100,
            window=20,
            interval=30,
            keep=5,
            prompt_room=60,
            votes=7,
            fusion="max",
            policy="random",
            decay=0.5,
            seed=9,
            protect=11,
        )
        arguments = []
        for field in dataclasses.fields(MorphKV):
            name = "policy-seed" if field.name == "seed" else field.name.replace("_", "-")
            arguments += [f"--{name}", str(getattr(wanted, field.name))]
        assert run(command, *arguments).exit_code == 0
        assert got == [wanted]


class TestLlamaOptions:
    def test_names_of_cache_types_are_those_of_ggml(self):
        options = llama_options(threads=3, cache_type_k="q8_0", cache_type_v="bf16")
        assert (options["type_k"], options["type_v"]) == (8, 30)
        assert options["n_threads"] == options["n_threads_batch"] == 3

    @pytest.mark.parametrize(("is_gpu", "n_layers"), [(False, 0), (True, -1)])
    def test_layers_go_to_a_gpu_where_there_is_one_unless_it_is_said_how_many(self, monkeypatch, is_gpu, n_layers):
        monkeypatch.setattr(bridge, "devices", lambda: [{"is_gpu": False}, {"is_gpu": is_gpu}])
        assert llama_options()["n_gpu_layers"] == n_layers
        assert llama_options(gpu_layers=5)["n_gpu_layers"] == 5
        assert llama_options(gpu_layers="0")["n_gpu_layers"] == 0

    @pytest.mark.parametrize("is_gpu", [False, True])
    def test_as_many_as_fit_go_there_where_nothing_is_compared(self, monkeypatch, is_gpu):
        monkeypatch.setattr(bridge, "devices", lambda: [{"is_gpu": is_gpu}])
        default = {p.name: p.default for p in inspect.signature(fitted(llama_options)).parameters.values()}
        assert fitted(llama_options)(**default)["n_gpu_layers"] == "auto"
        assert fitted(llama_options)(**default | {"gpu_layers": "0"})["n_gpu_layers"] == 0
        assert fitted(llama_options)(**default | {"rpc": "a:1"})["n_gpu_layers"] == -1
        assert fitted(llama_options)(**default | {"rpc": "a:1", "gpu_layers": "auto"})["n_gpu_layers"] == "auto"

    def test_layers_are_counted_with_the_words_of_llama_server(self):
        assert [llama_options(gpu_layers=text)["n_gpu_layers"] for text in ("auto", "all", "17", "-1")] == [
            "auto",
            -1,
            17,
            -1,
        ]
        with pytest.raises(ValueError, match="--gpu-layers must be a number, 'auto' or 'all', got 'most'"):
            llama_options(gpu_layers="most")

    def test_layers_go_to_rpc_servers_unless_it_is_said_how_many(self, monkeypatch):
        monkeypatch.setattr(bridge, "devices", list)
        assert llama_options()["n_gpu_layers"] == 0
        options = llama_options(rpc="a:1,b:2", tensor_split="3,1", kv_offload=False)
        assert (options["n_gpu_layers"], options["rpc_servers"], options["tensor_split"]) == (-1, "a:1,b:2", [3, 1])
        assert options["offload_kqv"] is False
        assert llama_options(rpc="a:1", gpu_layers=2)["n_gpu_layers"] == 2

    def test_proportions_are_numbers(self):
        with pytest.raises(ValueError, match="--tensor-split must be numbers separated by commas, got '1,x'"):
            llama_options(tensor_split="1,x")

    def test_an_unknown_cache_type_is_refused(self):
        with pytest.raises(ValueError, match=r"--cache-type-k must be one of f32, f16.* got 'q9'"):
            llama_options(cache_type_k="q9")

    def test_no_threads_are_refused(self):
        with pytest.raises(ValueError, match="--threads must be at least 1, got 0"):
            llama_options(threads=0)


def test_a_negative_seed_is_a_random_one():
    assert sampling_options(seed=-1)["seed"] == 0xFFFFFFFF
    assert sampling_options(seed=3)["seed"] == 3


class TestModelPath:
    def test_a_file_is_taken_as_it_is(self, tmp_path):
        path = tmp_path / "model.gguf"
        path.touch()
        assert model_path(str(path)) == path

    def test_anything_else_is_refused(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="MODEL must be a GGUF file, 'demo' or hf:OWNER/REPO:FILE, got"):
            model_path(str(tmp_path / "nothing"))
