"""What speed rests on, without a clock: no graph at evaluation, one memory layout, no convolution too many."""

from collections import Counter

import pytest
import torch
from observers import Calls, Live
from problems import conv_learner, images

import fewstep
from fewstep.methods import LastStep, SecondOrder, Uniform
from fewstep.models import native

SIZE = 32  # four blocks leave maps of 2×2, in which layouts differ


def learner(name, strategy="loop", steps=3, **parts):
    return conv_learner(fewstep.preset(name, steps=steps, **parts), filters=4, size=SIZE, strategy=strategy)


def convolutions(name, strategy, tasks=2, steps=3, **parts):
    """(forward calls, calls of the backward) in one meta-gradient."""
    made, batch = learner(name, strategy, steps, **parts), images(size=SIZE, tasks=tasks)
    made.meta_gradient(batch)  # looks for attention, and for the width of the output, once
    with Calls() as calls:
        made.meta_gradient(batch)
    return calls.count["convolution"], calls.count["convolution_backward"]


# --- convolutions counted by hand ------------------------------------------------------------------------------------
#
# Conv4 has four layers. Of N inner steps and Q query passes, a task by itself needs
#
#                                   forward calls              calls of the backward
#     support passes                4 N                        4 N, the inner gradients
#     query passes                  4 Q                        4 Q
#     through the inner gradients   4 N                        6 N, and 4 N through the support passes
#
# The pull-back of one call of the backward, to (output's gradient, input, weight), is a convolution of two things side
# by side, a gradient by an input and a gradient by a weight. Nobody asks for the gradient of the images, so the first
# layer has the first of them alone, of one thing: 4 and 3 + 3. First order has the first two lines alone.
#
# All tasks at once make the calls of one task: each is a group.


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("tasks", [1, 3])
def test_second_order_makes_the_convolutions_counted_by_hand(steps, tasks):
    forward, backward = 4 * steps + 4 + 4 * steps, 4 * steps + 4 + 10 * steps
    assert convolutions("maml", "loop", tasks, steps) == (tasks * forward, tasks * backward)
    if tasks > 1:
        assert convolutions("maml", "vectorized", tasks, steps) == (forward, backward)


@pytest.mark.parametrize("steps", [1, 3])
def test_first_order_makes_the_convolutions_counted_by_hand(steps):
    forward = backward = 4 * steps + 4
    assert convolutions("fomaml", "loop", 2, steps) == (2 * forward, 2 * backward)
    assert convolutions("fomaml", "vectorized", 2, steps) == (forward, backward)


@pytest.mark.parametrize("strategy", ["loop", "vectorized"])
def test_a_query_pass_is_made_only_where_a_step_weight_asks_for_it(strategy):
    """MAML++ once its multi-step loss is annealed away costs the query passes of MAML, and before one for each step."""
    last = convolutions("maml++", strategy, order=SecondOrder(), step_weights=LastStep())
    every = convolutions("maml++", strategy, order=SecondOrder(), step_weights=Uniform())
    assert last == convolutions("maml", strategy)
    times = 2 if strategy == "loop" else 1  # tasks, or all at once
    assert (every[0] - last[0], every[1] - last[1]) == (times * 4 * 2, times * 4 * 2)


def test_adapting_and_predicting_make_no_pass_too_many():
    """N support passes with their gradients, one more forwards for the statistics of the support set, the queries."""
    made, batch = learner("maml", steps=3), images(size=SIZE)
    predictor = made.adapt(batch.support_x[0], batch.support_y[0])
    with Calls() as calls:
        predictor = made.adapt(batch.support_x[0], batch.support_y[0])
    assert (calls.count["convolution"], calls.count["convolution_backward"]) == (4 * 3 + 4, 4 * 3)
    with Calls() as calls:
        predictor(batch.query_x[0])
    assert (calls.count["convolution"], calls.count["convolution_backward"]) == (4, 0)


# --- kernels counted by hand ------------------------------------------------------------------------------------------
#
# The blocks of Conv4 are one call where kernels are compiled. Of N inner steps and Q query passes, a task needs
#
#                                   blocks        blocks_first   blocks_second
#     passes                        N + Q
#     their gradients                             N + Q
#     through the inner gradients                                N
#     and the support passes                      N
#
# Nobody asks for the gradient of the images, nor for what goes to them.


@pytest.mark.skipif(not native.there(), reason="no compiled kernels here")
@pytest.mark.parametrize("strategy", ["loop", "vectorized"])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", ["maml", "fomaml"])
def test_a_task_makes_the_kernel_calls_counted_by_hand(name, steps, strategy, monkeypatch):
    made = conv_learner(fewstep.preset(name, steps=steps), filters=16, size=SIZE, strategy=strategy)
    batch, called, call = images(size=SIZE, tasks=2), Counter(), native._call
    made.meta_gradient(batch)

    def counting(kernel, *arguments):
        called[kernel] += 1
        if kernel == "blocks_first":
            called["to images"] += arguments[11] is not None
        if kernel == "blocks_second":
            called["to images"] += arguments[17] is not None
        return call(kernel, *arguments)

    monkeypatch.setattr(native, "_call", counting)
    made.meta_gradient(batch)
    passes = steps + 1
    by_hand = {"blocks": passes, "blocks_first": passes, "to images": 0}
    if name == "maml":
        by_hand["blocks_first"] += steps
        by_hand["blocks_second"] = steps
    times = 2 if strategy == "loop" else 1  # tasks, or all at once
    assert called == {kernel: times * count for kernel, count in by_hand.items()}


@pytest.mark.skipif(not native.there(), reason="no compiled kernels here")
@pytest.mark.parametrize("statistics", ["support", "batch"])
def test_adapting_and_predicting_make_the_kernel_calls_counted_by_hand(statistics, monkeypatch):
    """`support` adds a pass for the statistics of the support set. Predictions keep nothing for a derivative."""
    made, batch = conv_learner(fewstep.preset("maml"), filters=16, size=SIZE), images(size=SIZE)
    called, call = [], native._call

    def noting(kernel, dtype, *arguments):
        called.append((kernel, kernel == "blocks" and arguments[10] is not None))
        return call(kernel, dtype, *arguments)

    made.adapt(batch.support_x[0], batch.support_y[0])
    monkeypatch.setattr(native, "_call", noting)
    predictor = made.adapt(batch.support_x[0], batch.support_y[0], steps=2, statistics=statistics)
    predictor(batch.query_x[0])
    step = [("gradients", False)]
    assert called == 2 * step + (2 if statistics == "support" else 1) * [("blocks", False)]


# --- memory layout ---------------------------------------------------------------------------------------------------

LAYERS = {
    "convolution", "convolution_backward", "addcmul", "max_pool2d_with_indices", "leaky_relu", "leaky_relu_backward",
}  # fmt: skip


def layouts(made, batch, channels):
    """(operation, pixels a side, whether channels are last) of each map that a layer makes, forwards and backwards."""
    found = []

    def look(name, _, outputs):
        for t in outputs if name in LAYERS else ():
            if t.dim() == 4 and t.shape[1] == channels and t.shape[2] == t.shape[3] and t.shape[2] in (2, 4, 8, 16, 32):
                found.append((name, t.shape[2], t.is_contiguous(memory_format=torch.channels_last)))

    made.meta_gradient(batch)
    with Calls(look):
        made.meta_gradient(batch)
    return found


@pytest.mark.parametrize("strategy", ["loop", "recompute"])
@pytest.mark.parametrize("name", ["fomaml", "sharp-maml++"])
def test_maps_of_a_task_stay_channels_last_forwards_and_backwards(name, strategy):
    found = layouts(learner(name, strategy, steps=2), images(size=SIZE), channels=4)
    assert {entry[0] for entry in found} == LAYERS
    assert [entry for entry in found if not entry[2]] == []


def test_maps_of_all_tasks_stay_channels_last():
    made, batch, seen = learner("fomaml", "vectorized", steps=2), images(size=SIZE), []

    def look(name, given, outputs):
        if name == "convolution" and given[8] > 1:  # grouped: a group is a task
            seen.append((outputs[0].shape[2], outputs[0].is_contiguous(memory_format=torch.channels_last)))

    made.meta_gradient(batch)
    with Calls(look):
        made.meta_gradient(batch)
    assert seen == 3 * [(32, True), (16, True), (8, True), (4, True)]  # two support passes and the query pass


def test_no_map_is_copied_between_the_layers_of_all_tasks():
    made, batch, copied = learner("fomaml", "vectorized", steps=1), images(size=SIZE), []
    x = batch.support_x
    inner = made.inner_loop(x[0], made.frozen(), "batch")
    own = {n: torch.stack([p.detach(), p.detach()]) for n, p in made.model.named_parameters()}

    def look(name, given, _):
        if name in ("clone", "_to_copy", "copy_") and given[0].dim() >= 4:
            copied.append((name, tuple(given[0].shape)))

    with Calls(look):
        torch.func.vmap(lambda weights, x: inner.forward(weights, x, inner.setting).output)(own, x)
    # Filters are laid out for their group, and the last maps, of two pixels a side, for the head.
    assert [shape for _, shape in copied if shape[-1] > 3] == []


# --- no graph at evaluation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["maml", "maml++", "sharp-maml-both"])
def test_a_prediction_saves_nothing_for_a_gradient(name):
    made, batch, saved = learner(name), images(size=SIZE), []
    predictor = made.adapt(batch.support_x[0], batch.support_y[0])
    assert not any(p.requires_grad for p in predictor.parameters.values())
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        assert predictor(batch.query_x[0]).grad_fn is None
    assert saved == []


@pytest.mark.parametrize("statistics", ["batch", "support", "running"])
def test_nothing_of_an_adaptation_outlives_it_but_the_predictor(statistics):
    made, batch = learner("maml++"), images(size=SIZE)
    with Live():  # what is kept for good, such as where planes begin in memory, is made here
        made.adapt(batch.support_x[0], batch.support_y[0], statistics=statistics)
    with Live() as live:
        predictor = made.adapt(batch.support_x[0], batch.support_y[0], statistics=statistics)
    given = [t for moments in (predictor.given or {}).values() for t in moments]
    kept = {t.untyped_storage()._cdata for t in (*predictor.parameters.values(), *given)}
    assert {ref.cdata for ref, _ in live.living()} <= kept


@pytest.mark.parametrize("strategy", ["loop", "vectorized"])
def test_evaluation_needs_no_more_memory_for_more_steps(strategy):
    """A graph from step to step would add the maps of a pass, some hundred kilobytes here, for each."""
    made, batch, peaks = learner("maml++", strategy), images(size=SIZE), []
    for steps in (2, 2, 5):
        with Live() as live:
            fewstep.evaluate(made, lambda numbers: batch[: len(numbers)], count=2, steps=steps, every_step=False)
        peaks.append(live.peak)
    assert peaks[2] < 1.01 * peaks[1]


def test_a_graph_is_what_this_would_see():
    """The measure itself: second order keeps the maps of every step."""
    batch, peaks = images(size=SIZE), []
    for steps in (1, 4):
        made = learner("maml", "loop", steps)
        with Live() as live:
            made.meta_gradient(batch)
        peaks.append(live.peak)
    assert peaks[1] > 2 * peaks[0]
