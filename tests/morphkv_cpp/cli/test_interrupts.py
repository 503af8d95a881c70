"""Ctrl-C, also while llama.cpp calls back into Python."""

import ctypes
import signal
import sys

import pytest

from morphkv_cpp.cli.interrupts import noted_interrupts

# isort: split
# after morphkv_cpp, which says what libllama is loaded
import llama_cpp
from llama_cpp._internals import CustomSampler

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")


def interrupt_a_sampler() -> None:
    sampler = CustomSampler(lambda _: signal.raise_signal(signal.SIGINT))
    candidates = llama_cpp.llama_token_data_array()
    llama_cpp.llama_sampler_apply(sampler.get_sampler(), ctypes.byref(candidates))


def test_in_a_sampler_it_waits_for_the_next_check(capfd):
    reached = []

    def interrupted():
        with noted_interrupts() as check:
            check()
            interrupt_a_sampler()
            reached.append("check")
            check()
            reached.append("end")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert reached == ["check"]
    assert capfd.readouterr().err == ""  # ctypes would print an exception and go on


def test_in_a_sampler_it_is_raised_at_the_end():
    with pytest.raises(KeyboardInterrupt), noted_interrupts():
        interrupt_a_sampler()


def test_elsewhere_it_is_raised_at_once_and_the_handler_is_given_back():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), noted_interrupts():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    with noted_interrupts() as check:
        check()
