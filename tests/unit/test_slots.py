"""Slots: the next one goes to the tenant, then the run, with the fewest; nobody who waits is forgotten."""

import random
from collections import Counter
from types import SimpleNamespace

import pytest

from worker.slots import Line, Slots


class ARun:
    """As much of a run as slots look at."""

    def __init__(self, tenant="a", provider="lab", max_in_flight=1_000):
        self.job = SimpleNamespace(tenant=tenant)
        self.plan = SimpleNamespace(provider=provider)
        self.max_in_flight = max_in_flight
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


def test_a_provider_is_given_no_more_calls_than_it_takes_and_the_slots_left_go_to_the_others():
    slots = Slots(10)
    narrow = [ARun(provider="narrow", max_in_flight=3), ARun("b", provider="narrow", max_in_flight=3)]
    wide = ARun()
    for run in [*narrow, wide]:
        slots.offer(run)

    filled(slots)

    assert sorted(run.in_flight for run in narrow) == [1, 2]
    assert wide.in_flight == 7
    slots.release(wide)
    assert slots.next() is wide


def test_what_a_provider_takes_is_shared_by_all_tenants_however_many_calls_one_has_elsewhere():
    slots, crowd = Slots(100), ARun("a")
    slots.offer(crowd)
    filled(slots)
    narrow = [ARun(tenant, provider="narrow", max_in_flight=4) for tenant in "ab"]
    for run in narrow:
        slots.offer(run)
    for _ in range(4):
        slots.release(crowd)

    filled(slots)

    assert [run.in_flight for run in narrow] == [2, 2]


def test_providers_of_equal_claim_take_turns():
    slots, runs, turns = Slots(3), [ARun(provider=name, max_in_flight=2) for name in ("one", "two")], []
    for run in runs:
        slots.offer(run)
    filled(slots)
    for _ in range(6):
        slots.release(max(runs, key=lambda run: run.in_flight))
        turns += filled(slots)

    assert Counter(turns) == {runs[0]: 3, runs[1]: 3}


def test_what_is_withdrawn_gets_no_slot():
    slots, run = Slots(4), ARun()
    slots.offer(run)
    slots.withdraw(run)
    slots.withdraw(run)

    assert slots.next() is None
    assert slots.in_flight == 0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("narrow", [None, 9], ids=["one queue", "a narrow provider"])
def test_after_any_course_the_next_slot_is_for_the_fewest_of_the_fewest(seed, narrow):
    rng = random.Random(seed)
    runs = [ARun(f"t{n % 4}") for n in range(12)]
    if narrow:
        runs += [ARun(f"t{n % 3}", provider="narrow", max_in_flight=narrow) for n in range(9)]
    slots, waiting = Slots(30), set()
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
        of_provider, of_tenant = Counter(), Counter()
        for each in runs:
            of_provider[each.plan.provider] += each.in_flight
            of_tenant[each.plan.provider, each.job.tenant] += each.in_flight
        assert of_provider["narrow"] <= 9
        able = [run for run in waiting if of_provider[run.plan.provider] < run.max_in_flight]
        if slots.in_flight == 30 or not able:
            assert following is None
        else:
            its = (following.plan.provider, following.job.tenant)
            assert following in able
            assert of_tenant[its] == min(of_tenant[run.plan.provider, run.job.tenant] for run in able)
            assert following.in_flight == min(
                run.in_flight for run in able if (run.plan.provider, run.job.tenant) == its
            )


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
