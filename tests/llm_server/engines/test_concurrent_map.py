"""Concurrent calls: results in order, bounded concurrency, an end at the first error, no wait after a stop."""

import threading

import pytest

from llm_server.engines.concurrent_map import concurrent_map


def test_results_come_in_the_order_of_the_items_however_calls_end():
    second_has_ended = threading.Event()

    def call(item):
        if item == 0:
            assert second_has_ended.wait(10)
        else:
            second_has_ended.set()
        return item * 10

    assert concurrent_map(call, [0, 1, 2], 2, threading.Event()) == [0, 10, 20]
    assert concurrent_map(call, [], 2, threading.Event()) == []


def test_no_more_calls_than_allowed_are_under_way():
    together, lock, most = [0], threading.Lock(), [0]
    gate = threading.Barrier(3)

    def call(item):
        with lock:
            together[0] += 1
            most[0] = max(most[0], together[0])
        gate.wait(10)  # three do run at once
        with lock:
            together[0] -= 1
        return item

    assert concurrent_map(call, list(range(9)), 3, threading.Event()) == list(range(9))
    assert most[0] == 3


def test_the_first_error_ends_it_while_another_call_hangs():
    hang = threading.Event()

    def call(item):
        if item == "hangs":
            hang.wait(30)
        raise ArithmeticError(item)

    with pytest.raises(ArithmeticError, match="breaks"):
        concurrent_map(call, ["hangs", "breaks", "later"], 2, threading.Event())
    hang.set()


def test_a_stopped_map_does_not_wait_for_its_calls():
    hang, stop, began = threading.Event(), threading.Event(), threading.Event()

    def call(item):
        began.set()
        hang.wait(30)

    threading.Thread(target=lambda: (began.wait(10), stop.set()), daemon=True).start()
    with pytest.raises(RuntimeError, match="closed before everything was answered"):
        concurrent_map(call, ["a", "b"], 1, stop)
    hang.set()
