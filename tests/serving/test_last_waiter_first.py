"""Which thread is woken."""

import threading

from serving.last_waiter_first import LastWaiterFirst
from tests.waiting import wait_until

PATIENCE_S = 30.0


class Waiters:
    """Threads that wait, one begun after the other."""

    def __init__(self, count: int) -> None:
        self.changed = LastWaiterFirst()
        self.woken: list[int] = []
        self.waiting = 0
        self.threads = [threading.Thread(target=self._wait, args=(i,), daemon=True) for i in range(count)]
        for begun, thread in enumerate(self.threads, 1):
            thread.start()
            wait_until(lambda begun=begun: self.waiting == begun)
        with self.changed:  # so that the last one has let go of the lock, and waits
            pass

    def _wait(self, number: int) -> None:
        with self.changed:
            self.waiting += 1
            self.changed.wait()
            self.woken.append(number)

    def join(self) -> None:
        for thread in self.threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


def test_the_thread_that_began_to_wait_last_is_woken_first() -> None:
    waiters = Waiters(4)
    for woken in range(1, 5):
        with waiters.changed:
            waiters.changed.notify()
        wait_until(lambda woken=woken: len(waiters.woken) == woken)
    assert waiters.woken == [3, 2, 1, 0]
    waiters.join()


def test_all_are_woken() -> None:
    waiters = Waiters(5)
    with waiters.changed:
        waiters.changed.notify_all()
    waiters.join()
    assert sorted(waiters.woken) == [0, 1, 2, 3, 4]


def test_a_thread_that_waits_no_longer_takes_no_others_turn() -> None:
    waiters = Waiters(1)
    with waiters.changed:
        waiters.changed.wait(0.01)  # as the last one, in vain
        waiters.changed.notify()
    waiters.join()
    assert waiters.woken == [0]


def test_waiting_ends_when_what_is_waited_for_holds() -> None:
    changed, numbers = LastWaiterFirst(), list[int]()

    def count() -> None:
        for number in range(3):
            with changed:
                numbers.append(number)
                changed.notify()

    with changed:
        thread = threading.Thread(target=count)
        thread.start()
        changed.wait_for(lambda: len(numbers) == 3)
        assert numbers == [0, 1, 2]
    thread.join()
    with changed:
        changed.notify()  # nobody waits
        changed.wait_for(lambda: True)
