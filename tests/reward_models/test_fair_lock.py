"""The fair lock changes hands."""

import threading

from reward_models.pipeline import FairLock


def test_who_waits_comes_before_who_takes_it_again():
    lock, order, waits = FairLock(), [], threading.Event()

    def visit():
        waits.set()
        with lock:
            order.append("visitor")

    visitor = threading.Thread(target=visit)
    with lock:
        visitor.start()
        waits.wait(60)
        while not lock._door.locked():
            assert visitor.is_alive()
    with lock:
        order.append("again")
    visitor.join()
    assert order == ["visitor", "again"]
