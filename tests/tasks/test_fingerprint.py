"""A fingerprint tells tasks apart by their values, and by nothing else."""

import pytest

import fewstep
from fewstep.tasks.fingerprint import fingerprint

DATA = fewstep.strokes(classes=(20, 10, 10), drawers=6)


def test_what_does_not_change_test_tasks_does_not_change_their_fingerprint():
    marks = {
        fingerprint(DATA.tasks(ways=3, **options).test, 60)
        for options in ({}, {"seed": 5}, {"queries": 2, "evaluation_queries": 1}, {"rotate": False})
    }
    assert len(marks) == 1


@pytest.mark.parametrize("options", [{"ways": 4}, {"shots": 2}, {"evaluation_queries": 2}])
def test_what_changes_them_does(options):
    assert fingerprint(DATA.tasks(**{"ways": 3, **options}).test, 4) != fingerprint(DATA.tasks(ways=3).test, 4)


@pytest.mark.parametrize("part", ["support_x", "support_y", "query_x", "query_y"])
def test_one_value_of_the_last_task_is_enough(part):
    tasks = DATA.tasks(ways=3).test

    def altered(numbers):
        batch = tasks(numbers)
        if 59 in numbers:
            getattr(batch, part)[-1].view(-1)[-1] += 1
        return batch

    assert fingerprint(altered, 60) != fingerprint(tasks, 60)
    assert fingerprint(altered, 59) == fingerprint(tasks, 59)
