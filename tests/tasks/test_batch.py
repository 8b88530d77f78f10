import pytest
import torch

from fewstep.errors import BadInput
from fewstep.tasks import TaskBatch


def make(tasks: int = 4, support: int = 5, query: int = 3) -> TaskBatch:
    return TaskBatch(
        torch.rand(tasks, support, 2),
        torch.zeros(tasks, support, dtype=torch.int64),
        torch.rand(tasks, query, 2),
        torch.zeros(tasks, query, dtype=torch.int64),
    )


def test_length_slices_and_single_tasks():
    batch = make()
    assert len(batch) == 4
    assert len(batch[1:3]) == 2
    assert torch.equal(batch[1:3].query_x, batch.query_x[1:3])
    assert torch.equal(batch[-1].support_x, batch.support_x[3:])
    assert [len(task) for task in batch] == [1, 1, 1, 1]


def test_concatenate_undoes_slicing():
    batch = make()
    again = TaskBatch.concatenate([batch[0], batch[1:4]])
    for name in ("support_x", "support_y", "query_x", "query_y"):
        assert torch.equal(getattr(again, name), getattr(batch, name))


def test_several_inputs_travel_together():
    x = (torch.rand(2, 5, 3), torch.rand(2, 5))
    batch = TaskBatch(x, torch.zeros(2, 5, 1), [x[0][:, :2], x[1][:, :2]], torch.zeros(2, 2, 1))
    assert isinstance(batch.query_x, tuple)
    assert [t.shape[0] for t in batch[0].support_x] == [1, 1]
    assert [t.dtype for t in batch.to(torch.float64).support_x] == [torch.float64] * 2
    joined = TaskBatch.concatenate([batch, batch])
    assert [tuple(t.shape) for t in joined.support_x] == [(4, 5, 3), (4, 5)]


def test_to_changes_floats_and_keeps_whole_numbers():
    batch = make().to(torch.float64)
    assert (batch.support_x.dtype, batch.support_y.dtype) == (torch.float64, torch.int64)
    assert make().to("meta").query_x.device.type == "meta"


@pytest.mark.parametrize(
    ("field", "shape", "message"),
    [
        ("support_x", (4, 6, 2), r"support_x of a TaskBatch has shape \(4, 6, 2\).*support_y \(4, 5\)"),
        ("query_x", (3, 3, 2), r"query_x of a TaskBatch has shape \(3, 3, 2\)"),
        ("query_y", (5, 3), r"query_y of a TaskBatch has shape \(5, 3\)"),
        ("support_y", (4,), r"support_y of a TaskBatch has shape \(4,\)"),
    ],
)
def test_shapes_that_disagree_are_named(field, shape, message):
    batch = make()
    parts = {name: getattr(batch, name) for name in ("support_x", "support_y", "query_x", "query_y")}
    parts[field] = torch.zeros(shape)
    with pytest.raises(BadInput, match=message):
        TaskBatch(**parts)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [((0, 5, 3), "no tasks"), ((4, 0, 3), "an empty support set"), ((4, 5, 0), "an empty query set")],
)
def test_empty_ones_are_refused(sizes, message):
    with pytest.raises(BadInput, match=f"^a TaskBatch has {message}; it needs at least one task of at least one"):
        make(*sizes)
    with pytest.raises(BadInput, match="a TaskBatch has no tasks"):
        make()[2:2]


def test_things_that_are_not_tensors_are_named():
    with pytest.raises(BadInput, match="support_y of a TaskBatch must be a tensor, not list"):
        TaskBatch(torch.zeros(1, 2), [[0, 1]], torch.zeros(1, 2), torch.zeros(1, 2))
    with pytest.raises(BadInput, match="query_x of a TaskBatch must be a tensor or a tuple of tensors, not ndarray"):
        TaskBatch(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 2).numpy(), torch.zeros(1, 2))


def test_concatenating_nothing_or_unlike_shapes_is_refused():
    with pytest.raises(BadInput, match="no meta-batches to concatenate"):
        TaskBatch.concatenate([])
    with pytest.raises(BadInput, match="support_x differs in shape"):
        TaskBatch.concatenate([make(), make(support=6)])


def test_values_that_are_not_finite_are_named_with_their_task():
    batch = make()
    batch.check_finite()
    batch.query_x[2, 1, 0] = float("nan")
    with pytest.raises(BadInput, match="query_x of task 2 in the meta-batch holds values that are not finite"):
        batch.check_finite()


def test_a_task_out_of_range_is_an_index_error():
    with pytest.raises(IndexError, match="task 4 of a meta-batch of 4"):
        make()[4]
