import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from fewstep.errors import BadInput
from fewstep.tasks import TaskBatch, TaskDataset, Tasks, sinusoid, strokes


def test_split_finds_its_function_and_names_the_nearest():
    tasks = sinusoid()
    assert tasks.split("test") is tasks.test
    with pytest.raises(BadInput, match="unknown split 'tests'; did you mean 'test'"):
        tasks.split("tests")


def test_a_split_must_be_a_function():
    with pytest.raises(BadInput, match=r"Tasks.validation must be a function from task numbers to a Task"):
        Tasks(sinusoid().train, 3, sinusoid().test)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # 8 workers on a machine of 2 cores are the point
def test_any_number_of_workers_gives_the_same_tasks():
    tasks = strokes(classes=(20, 10, 10), drawers=4).tasks(ways=5, shots=1, queries=1, seed=3).train
    dataset = TaskDataset(tasks, count=40, size=4)
    reference = tasks(range(40))
    for workers in (0, 2, 8):
        loader = DataLoader(dataset, batch_size=None, num_workers=workers)
        seen = TaskBatch.concatenate(list(loader))
        assert torch.equal(seen.support_x, reference.support_x), workers
        assert torch.equal(seen.query_x, reference.query_x), workers


def test_tasks_can_be_sent_to_another_process():
    tasks = pickle.loads(pickle.dumps(strokes(classes=(6, 6, 6), drawers=2).tasks()))
    assert len(tasks.train([0])) == 1
    assert len(pickle.loads(pickle.dumps(sinusoid())).train([0, 1])) == 2


def test_a_task_dataset_has_an_end():
    dataset = TaskDataset(sinusoid().train, count=10, size=4)
    assert (len(dataset), len(dataset[2])) == (3, 2)
    with pytest.raises(IndexError):
        dataset[3]
    with pytest.raises(BadInput, match="count and size of at least 1, not 0 and 4"):
        TaskDataset(sinusoid().train, 0, 4)
