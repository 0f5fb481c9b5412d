"""Slots: the next one goes to the tenant, then the run, with the fewest; nobody who waits is forgotten."""

import random
from collections import Counter
from types import SimpleNamespace

import pytest

from worker.slots import Line, Slots


class ARun:
    """As much of a run as slots look at."""

    def __init__(self, tenant="a"):
        self.job = SimpleNamespace(tenant=tenant)
        self.in_flight = 0


def filled(slots):
    """Takes until nothing is free; the runs in order."""
    taken = []
    while (run := slots.next()) is not None:
        slots.take(run)
        taken.append(run)
    return taken


def test_tenants_share_the_slots_evenly_however_many_runs_each_has():
    slots, crowd, alone = Slots(10), [ARun("crowd") for _ in range(100)], ARun("alone")
    for run in [*crowd, alone]:
        slots.offer(run)

    taken = Counter(run.job.tenant for run in filled(slots))

    assert taken == {"crowd": 5, "alone": 5}


def test_the_runs_of_one_tenant_take_turns():
    slots, runs = Slots(9), [ARun() for _ in range(3)]
    for run in runs:
        slots.offer(run)

    filled(slots)

    assert [run.in_flight for run in runs] == [3, 3, 3]


def test_a_freed_slot_goes_to_the_tenant_that_has_fewer():
    slots, first, late = Slots(4), ARun("first"), ARun("late")
    slots.offer(first)
    filled(slots)
    slots.offer(late)

    slots.release(first)

    assert slots.next() is late


def test_what_is_withdrawn_gets_no_slot():
    slots, run = Slots(4), ARun()
    slots.offer(run)
    slots.withdraw(run)
    slots.withdraw(run)

    assert slots.next() is None
    assert slots.in_flight == 0


@pytest.mark.parametrize("seed", range(5))
def test_after_any_course_the_next_slot_is_for_the_fewest_of_the_fewest(seed):
    rng = random.Random(seed)
    slots, runs, waiting = Slots(30), [ARun(f"t{n % 4}") for n in range(12)], set()
    for _ in range(2_000):
        run = rng.choice(runs)
        match rng.randrange(4):
            case 0:
                slots.offer(run)
                waiting.add(run)
            case 1:
                slots.withdraw(run)
                waiting.discard(run)
            case 2 if run.in_flight:
                slots.release(run)
            case 3 if (given := slots.next()) is not None:
                slots.take(given)
        following = slots.next()
        assert slots.in_flight == sum(run.in_flight for run in runs) <= 30
        if slots.in_flight == 30 or not waiting:
            assert following is None
        else:
            of_tenant = Counter()
            for each in runs:
                of_tenant[each.job.tenant] += each.in_flight
            tenant = following.job.tenant
            assert following in waiting
            assert of_tenant[tenant] == min(of_tenant[run.job.tenant] for run in waiting)
            assert following.in_flight == min(run.in_flight for run in waiting if run.job.tenant == tenant)


def test_among_equals_the_one_that_has_waited_longest_is_first():
    line = Line()
    for item in "abc":
        line.put(item, 1)
    line.put("a", 2)
    line.put("a", 1)
    line.put("b", 1)

    assert line.first() == "b"
    line.drop("b")
    assert line.first() == "c"
