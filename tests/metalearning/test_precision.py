"""Precision of convolutions: bfloat16 in products alone, gradients close to those of float32, training that works."""

import pytest
import torch
from observers import Calls
from problems import conv_learner, images, with_rates

import fewstep
from fewstep.metalearning.modes import tf32
from fewstep.models import Conv4
from fewstep.training.experiment import Experiment

TASKS = fewstep.strokes(classes=(60, 20, 20), drawers=6).tasks(ways=5, shots=1, queries=3)


def learner(name, precision="float32", steps=1, **options):
    torch.manual_seed(0)
    model = Conv4(ways=5, filters=16)
    return fewstep.Learner(model, fewstep.preset(name).replace(steps=steps), precision=precision, **options)


def flat(result):
    return torch.cat([g.flatten() for g in result.gradients.values()])


@pytest.mark.parametrize("name", fewstep.preset_names())
def test_gradients_are_close_to_those_of_float32(name):
    """With a low inner rate: inner steps make much of a maximum of the pooling that rounding moves to another pixel."""
    method, batch, found = with_rates(fewstep.preset(name), 0.01), TASKS.train(range(2)), []
    for precision in ("float32", "bf16"):
        torch.manual_seed(0)
        model = Conv4(ways=5, filters=16)
        made = fewstep.Learner(model, method.replace(steps=min(method.steps, 1)), precision=precision)
        found.append(flat(made.meta_gradient(batch, 0.5)))
    assert 0.98 < torch.nn.functional.cosine_similarity(*found, dim=0) < 0.99999


@pytest.mark.parametrize("strategy", ["loop", "vectorized", "recompute"])
def test_only_convolutions_and_matrix_products_are_rounded(strategy):
    """In both directions and twice; whatever else makes a tensor in bfloat16 converts, looks at or adds those."""
    made, batch, rounded, kept = learner("maml++", "bf16", 2, strategy=strategy), TASKS.train(range(2)), set(), set()

    def look(name, _, outputs):
        for t in outputs:
            if t.is_floating_point():
                (rounded if t.dtype == torch.bfloat16 else kept).add(name)

    made.meta_gradient(batch, 0.5)  # what is found out once, in float64
    with Calls(look):
        result = made.meta_gradient(batch, 0.5)
    products = {"convolution", "convolution_backward"}
    assert products <= rounded
    assert not products & kept
    for name in rounded:
        assert not any(word in name for word in ("norm", "pool", "relu", "softmax", "nll", "loss", "sqrt"))
    tensors = [*result.gradients.values(), result.query_logits, result.loss, *result.statistics["blocks.0.norm"]]
    assert {t.dtype for t in tensors} == {torch.float32}


def test_predictions_have_the_dtype_of_the_model():
    batch, made = TASKS.train([0]), learner("maml++", "bf16")
    predictor = made.adapt(batch.support_x[0], batch.support_y[0])
    assert predictor(batch.query_x[0]).dtype == torch.float32
    assert fewstep.evaluate(made, TASKS, count=4).count == 4


@pytest.mark.slow
def test_it_trains(tmp_path):
    made, score = learner("fomaml", "bf16", steps=2), {"count": 40, "every_step": False, "per_query": False}
    before = fewstep.evaluate(made, TASKS, **score).accuracy
    fewstep.train(made, TASKS, tmp_path, epochs=1, iterations=120, meta_batch=2, validation_tasks=4)
    assert fewstep.evaluate(made, TASKS, **score).accuracy > before + 0.08


def test_a_run_keeps_its_precision(tmp_path):
    length = {"epochs": 1, "iterations": 1, "meta_batch": 1, "validation_tasks": 1}
    run = fewstep.train(learner("fomaml", "bf16"), TASKS, tmp_path, **length)
    assert run.config["precision"] == "bf16"
    with pytest.raises(fewstep.BadInput, match=r"another configuration \(precision is bf16 there, None now"):
        fewstep.train(learner("fomaml"), TASKS, tmp_path, **length)


def test_an_experiment_without_the_field_is_one_in_float32():
    old = {name: value for name, value in Experiment("maml").to_json().items() if name != "precision"}
    assert Experiment.from_json(old).build()[0].precision == "float32"
    assert Experiment("maml", precision="float32").to_json() == Experiment("maml").to_json()
    assert Experiment.from_json(Experiment("maml", precision="bf16").to_json()).build()[0].precision == "bf16"


def test_unknown_precisions_are_refused():
    with pytest.raises(fewstep.BadInput, match="unknown precision 'fp16'"):
        learner("maml", "fp16")
    made = learner("maml")
    with pytest.raises(fewstep.BadInput, match=r"unknown precision 'half'.* Known: bf16, float32, tf32"):
        made.precision = "half"
    assert made.precision == "float32"


def test_tf32_changes_nothing_on_a_cpu_and_the_flags_of_others_come_back():
    batch = TASKS.train(range(2))
    assert torch.equal(flat(learner("maml").meta_gradient(batch)), flat(learner("maml", "tf32").meta_gradient(batch)))
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with tf32(True):
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (True, True)
    with tf32(False):
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (False, False)
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before


def test_double_precision_stays_under_the_default():
    made = conv_learner(fewstep.preset("maml", steps=1))
    assert made.meta_gradient(images()).loss.dtype == torch.float64
