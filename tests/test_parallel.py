"""Tests of the ordered thread pool that runs windows."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from skysense_o.inference.sliding import plan_windows, thread_count
from skysense_o.parallel import OrderedThreadPool


def test_results_come_in_order_and_few_items_are_pending():
    lock, now, most = threading.Lock(), 0, 0

    def slow(number: int) -> int:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.02 if number % 3 else 0.06)
        with lock:
            now -= 1
        return number * number

    taken = []

    def items():
        for number in range(9):
            taken.append(number)
            yield number

    with OrderedThreadPool(slow, 3) as pool:
        results = pool(items())
        assert next(results) == 0
        assert len(taken) == 4, "only four items may be taken: three being processed and one waiting"
        assert list(results) == [n * n for n in range(1, 9)]
    assert most == 3


def test_each_call_has_one_thread_and_the_setting_is_restored():
    before = torch.get_num_threads()
    with OrderedThreadPool(lambda _: (torch.get_num_threads(), torch.is_inference_mode_enabled()), 2) as pool:
        assert list(pool(range(4))) == [(1, True)] * 4
    assert torch.get_num_threads() == before
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert found == [before], "threads started later must have the restored setting, too"


def test_a_count_of_one_runs_in_the_callers_thread():
    with OrderedThreadPool(lambda _: threading.get_ident(), 1) as pool:
        assert set(pool(range(2))) == {threading.get_ident()}


def test_an_error_in_a_thread_is_raised():
    def fails(number: int) -> int:
        if number == 2:
            raise ValueError("window 2 is broken")
        return number

    with OrderedThreadPool(fails, 2) as pool, pytest.raises(ValueError, match="window 2 is broken"):
        list(pool(range(5)))


def test_the_thread_count_fits_memory_device_and_model(small_model, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    plan = plan_windows(small_model, (2000, 2000), 100)
    assert thread_count(small_model, 1, plan, 2**34) == 8, "with enough memory, there must be one thread per core"
    assert thread_count(small_model, 1, plan, 2**31) == 3, (
        "the windows of all threads must fit into a quarter of the memory"
    )
    assert thread_count(small_model, 1, plan, 2**20) == 1
    assert thread_count(small_model, 4, plan) == 1, (
        "a batch of several windows uses all cores by itself, so one thread is enough"
    )
    monkeypatch.setattr("skysense_o.inference.sliding.LARGE", 10**5)
    assert thread_count(small_model, 1, plan, 2**34) == 1, (
        "a large model's layers use all cores by themselves, so one thread is enough"
    )
