"""The compiled kernels against torch's operators, and where they step back for these."""

import copy
import platform
import sys

import pytest
import torch
from observers import Calls
from problems import conv_learner, images
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import vmap
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import fewstep
from fewstep.models import Conv4, native
from fewstep.models.block import Block, through
from fewstep.models.block import fused as blocks
from fewstep.models.convolution import Conv2d
from fewstep.models.norm import PooledBatchNorm

LAST = torch.channels_last
EXPECTED = sys.platform == "linux" and platform.machine() == "x86_64"
compiled = pytest.mark.skipif(not native.there(), reason="no compiled kernels here")
SHAPES = [  # images, channels, filters, height, width, blocks
    (5, 1, 16, 9, 8, 1),
    (3, 16, 32, 7, 6, 2),
    (2, 3, 16, 5, 12, 1),
    (4, 32, 16, 2, 3, 1),
    (20, 16, 16, 14, 14, 3),
    (3, 5, 48, 6, 9, 2),
    (4, 3, 16, 17, 23, 4),
]


def random(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype)


def plain(x, *parameters, slope=0.1):
    """What `blocks` stands for, of torch's operators; not `F.batch_norm`, whose third derivative is wrong."""
    for i in range(0, len(parameters), 3):
        filters, weight, bias = parameters[i : i + 3]
        z = F.conv2d(x, filters, padding=1)
        var, mean = torch.var_mean(z, (0, 2, 3), correction=0, keepdim=True)
        normalised = (z - mean) / (var + 1e-5).sqrt()
        x = F.leaky_relu(F.max_pool2d(weight[:, None, None] * normalised + bias[:, None, None], 2), slope)
    return x


def fused(x, *parameters, slope=0.1):
    filters, weights, biases = (parameters[i::3] for i in range(3))
    return blocks(x, filters, [None] * len(filters), weights, biases, 1e-5, slope)[0]


def point(n, channels, filters, height, width, count=1, dtype=torch.float64):
    """Images; filters, weight and bias of each block."""
    torch.manual_seed(0)
    parameters = []
    for i in range(count):
        parameters.append(random(filters, filters if i else channels, 3, 3, dtype=dtype) / 3)
        parameters += [random(filters, dtype=dtype) for _ in range(2)]
    return random(n, channels, height, width, dtype=dtype), *parameters


def derivatives(function, inputs):
    """Output, first, second and third derivatives along the same random directions."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    torch.manual_seed(1)
    y = function(*leaves)
    a = torch.randn(y.shape, dtype=y.dtype).requires_grad_()  # whatever the layout
    first = torch.autograd.grad(y, leaves, a, create_graph=True)
    u = [torch.randn(t.shape, dtype=t.dtype).requires_grad_() for t in first]
    second = torch.autograd.grad(first, [a, *leaves], u, create_graph=True, materialize_grads=True)
    v = [torch.randn(t.shape, dtype=t.dtype) for t in second]
    third = torch.autograd.grad(second, [a, *leaves, *u], v, materialize_grads=True)
    return [t.detach() for t in (y, *first, *second, *third)]


def assert_close(mine, others, tolerance):
    for i, (a, b) in enumerate(zip(mine, others, strict=True)):
        assert (a - b).abs().max() <= tolerance * max(float(b.abs().max()), 1e-3), i


def test_kernels_are_compiled_where_they_should_be():
    """Otherwise all tests below would be skipped, and nobody would notice but by the clock."""
    if EXPECTED and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        assert native.takes(torch.zeros(1, 16, 4, 4), torch.zeros(16, 16, 3, 3))


# --- blocks -------------------------------------------------------------------------------------------------------


@compiled
@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_equal_torch_in_three_derivatives(shape):
    inputs = point(*shape)
    assert_close(derivatives(fused, inputs), derivatives(plain, inputs), 1e-10)


@compiled
@pytest.mark.parametrize("slope", [0.0, 0.01, 1.0])
def test_first_and_second_derivatives_match_finite_differences(slope):
    inputs = [t.requires_grad_() for t in point(2, 3, 8, 5, 4, count=2)]

    def function(*inputs):
        return fused(*inputs, slope=slope)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@compiled
@pytest.mark.parametrize("shape", SHAPES)
def test_single_precision_is_as_near_to_double_as_torchs(shape):
    """Winograd's convolution with tiles of 2×2 rounds no worse than a direct one."""
    inputs = point(*shape)
    single = [t.float() for t in inputs]
    true = derivatives(plain, inputs)
    for mine, torchs, exact in zip(derivatives(fused, single), derivatives(plain, single), true, strict=True):
        scale = float(exact.abs().max()) + 1e-3
        assert (mine - exact).abs().max() <= 4 * (torchs - exact).abs().max() + 4e-6 * scale


@compiled
@pytest.mark.parametrize("constant", range(7))
@pytest.mark.parametrize("channels", [3, 16])
def test_any_of_the_inputs_may_be_constant(channels, constant):
    def with_constant(function):
        given = point(3, channels, 16, 6, 6, count=2)
        rest = [t for i, t in enumerate(given) if i != constant]

        def of_rest(*rest):
            return function(*rest[:constant], given[constant], *rest[constant:])

        leaves = [t.detach().requires_grad_() for t in rest]
        torch.manual_seed(1)
        y = of_rest(*leaves)
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(t.square().sum() for t in first), leaves)
        return [t.detach() for t in (y, *first, *second)]

    assert_close(with_constant(fused), with_constant(plain), 1e-10)


@compiled
@pytest.mark.parametrize("channels", [3, 16])
@pytest.mark.parametrize("wanted", [[1], [4], [6], [0, 5]])
def test_gradients_of_some_parameters_alone(channels, wanted):
    """The second derivative leaves out the blocks before the first that anybody asked for."""

    def of_some(function):
        leaves = [t.detach().requires_grad_() for t in point(3, channels, 16, 9, 6, count=2)]
        first = torch.autograd.grad(function(*leaves).square().sum(), [leaves[i] for i in wanted], create_graph=True)
        second = torch.autograd.grad(sum(t.sin().sum() for t in first), leaves)
        return [t.detach() for t in (*first, *second)]

    assert_close(of_some(fused), of_some(plain), 1e-10)


@compiled
def test_what_is_made_without_gradients_is_a_constant_to_transforms():
    """They enter it a second time with gradients on, and nothing was kept."""
    model = Conv4(ways=3, filters=16, image_size=16)
    x = torch.randn(3, 1, 16, 16)

    def function(scale):
        with torch.no_grad():
            maps = through(model.blocks, x)
        return (maps * scale).sum()

    gradient = torch.func.grad(function)(torch.tensor(2.0))
    torch.testing.assert_close(gradient, through(model.blocks, x).sum())
    if gradient.requires_grad:
        assert all(g is None for g in torch.autograd.grad(gradient, list(model.parameters()), allow_unused=True))


@compiled
def test_a_number_that_is_none_stays():
    model = Conv4(ways=3, filters=16, image_size=16)
    for place in range(4):
        x = torch.randn(3, 1, 16, 16)
        x[0, 0, 6 + place // 2, 6 + place % 2] = torch.nan
        given = [(torch.zeros(16), torch.ones(16))]
        with torch.no_grad():
            block = model.blocks[0]
            mine = blocks(x, [block.conv.weight], [None], [None], [None], 1e-5, 0.1, given)[0]
        want = F.leaky_relu(F.max_pool2d(F.conv2d(x, block.conv.weight, padding=1), 2), 0.1)
        assert torch.equal(mine.isnan(), want.isnan())


@compiled
@pytest.mark.parametrize("lacking", range(4))
def test_lists_of_other_lengths_are_refused(lacking):
    lists = [[torch.zeros(16)] * 2 for _ in range(3)] + [[(torch.zeros(16),) * 2] * 2]
    lists[lacking] = lists[lacking][:1]
    filters = [torch.zeros(16, 16, 3, 3)] * 2
    with torch.no_grad(), pytest.raises(ValueError, match="2 blocks need as many"):
        blocks(torch.zeros(2, 16, 4, 4), filters, *lists[:3], 1e-5, 0.0, lists[3])


@compiled
def test_statistics_are_those_of_the_convolutions():
    x, filters, weight, bias, other, *_ = point(4, 3, 16, 6, 7, count=2)
    shift = random(16).requires_grad_()
    filters.requires_grad_()
    y, mean, var = blocks(x, [filters, other], [shift, None], [weight] * 2, [bias] * 2, 1e-5, 0.1)
    z = F.conv2d(x, filters, shift, padding=1).detach()
    after = F.conv2d(plain(x, filters, weight, bias), other, padding=1).detach()
    for i, maps in enumerate((z, after)):
        torch.testing.assert_close((mean[i], var[i]), (maps.mean((0, 2, 3)), maps.var((0, 2, 3), correction=0)))
    assert not mean.requires_grad
    assert not var.requires_grad
    of_shift = torch.autograd.grad(y.square().sum(), shift)[0]
    assert not of_shift.any()  # as it is in exact arithmetic


@compiled
@pytest.mark.parametrize("channels", [3, 16])
def test_given_statistics_are_those_it_normalises_by(channels):
    tasks = 3
    x = random(tasks, 4, channels, 9, 6)
    filters, other = random(tasks, 16, channels, 3, 3), random(tasks, 16, 16, 3, 3)
    weights, biases, shifts, means, variances = (random(tasks, 2, 16) for _ in range(5))
    variances = variances.square()

    def torchs(x, filters, weights, biases, shifts, means, variances):
        for i, w in enumerate(filters):
            z = F.conv2d(x, w, shifts[i], padding=1)
            z = F.batch_norm(z, means[i], variances[i], weights[i], biases[i], eps=1e-5)
            x = F.leaky_relu(F.max_pool2d(z, 2), 0.1)
        return x

    def mine(x, filters, weights, biases, shifts, means, variances):
        given = list(zip(means, variances, strict=True))
        return blocks(x, filters, shifts, weights, biases, 1e-5, 0.1, given)[0]

    each = [weights, biases, shifts, means, variances]
    with torch.no_grad():
        at_once = vmap(lambda x, v, w, *rest: mine(x, [v, w], *rest))(x, filters, other, *each)
        for task in range(tasks):
            own = [filters[task], other[task]], *(t[task] for t in each)
            want = torchs(x[task], *own)
            torch.testing.assert_close(mine(x[task], *own), want)
            torch.testing.assert_close(at_once[task], want)
    with pytest.raises(ValueError, match="no_grad"):
        mine(x[0], *own)


@compiled
def test_large_means_lose_no_digits():
    """Moments are taken around the mean of each image, not as a difference of squares."""
    x, filters, weight, bias = (t.float() for t in point(6, 3, 16, 8, 8))
    far = x + 100.0
    exact = plain(far.double(), filters.double(), weight.double(), bias.double())
    mine, torchs = fused(far, filters, weight, bias), plain(far, filters, weight, bias)
    assert (mine - exact).abs().max() <= 4 * (torchs - exact).abs().max() + 1e-4


@compiled
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "expanded", "sliced"])
def test_any_layout_gives_the_same(layout):
    x, filters, weight, bias = point(4, 16, 16, 6, 6)
    want = plain(x, filters, weight, bias)
    if layout == "channels last":
        x, filters = x.to(memory_format=LAST), filters.to(memory_format=LAST)
    elif layout == "expanded":
        x = x[:1].expand(4, -1, -1, -1)
        want = plain(x, filters, weight, bias)
    elif layout == "sliced":
        x = torch.cat((x, x), 1)[:, :16]
        weight = torch.stack((weight, weight), 1)[:, 0]
    torch.testing.assert_close(fused(x, filters, weight, bias), want)


@compiled
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("channels", [1, 3, 16])
def test_tasks_under_vmap_equal_a_loop(channels, shared):
    torch.manual_seed(0)
    x = random(4, 3, channels, 6, 5)
    per_task = [random(4, 16, channels, 3, 3) / 3, random(4, 16), random(4, 16)]
    per_task += [random(4, 16, 16, 3, 3) / 3, random(4, 16), random(4, 16)]
    if shared:
        per_task = [t[0].expand_as(t) for t in per_task]

    def second(*inputs):
        def first(*inputs):
            return torch.func.grad(lambda *i: fused(*i).square().sum(), argnums=tuple(range(1, 7)))(*inputs)

        value = torch.func.grad(lambda *i: sum(g.square().sum() for g in first(*i)), argnums=tuple(range(1, 7)))
        return value(*inputs)

    dims = (0, *[None] * 6) if shared else 0
    inputs = [t[0] for t in per_task] if shared else per_task
    at_once = vmap(second, in_dims=dims)(x, *inputs)
    one_by_one = [second(x[i], *(t[i] for t in per_task)) for i in range(4)]
    assert_close(at_once, [torch.stack(each) for each in zip(*one_by_one, strict=True)], 1e-10)


@compiled
@pytest.mark.parametrize("channels", [3, 16])
def test_threads_inside_a_call_change_no_bit(channels):
    """A run that goes on after an interruption may compute its first task with other threads than it would have."""
    inputs = point(9, channels, 32, 13, 11, count=3, dtype=torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            leaves = [t.detach().requires_grad_() for t in inputs]
            y = fused(*leaves)
            first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
            results.append([y, *first, *torch.autograd.grad([t[0].sum() for t in first], leaves)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


# --- convolutions ----------------------------------------------------------------------------------------------------


@compiled
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("channels", [1, 3, 16])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (7, 6), (1, 9)])
def test_convolutions_equal_torchs(size, channels, groups):
    torch.manual_seed(0)
    x, filters, bias = random(5, channels * groups, *size), random(16 * groups, channels, 3, 3), random(16 * groups)
    other_x, other_filters = torch.randn_like(x), torch.randn_like(filters)

    def torchs(x, filters):
        return F.conv2d(x, filters, padding=1, groups=groups)

    y, pull_back = torch.func.vjp(torchs, x, filters)
    a, other_a = torch.randn_like(y), torch.randn_like(y)
    other_pull_back = torch.func.vjp(torchs, other_x, other_filters)[1]
    vectors = bias[:, None, None]
    pairs = [(x, filters), (other_x, other_filters)]
    mine = [
        native.convolve(pairs[:1], bias, groups),
        native.convolve(pairs, bias, groups),
        native.convolve([(a, filters)], None, groups, turned=True),
        native.convolve([(a, filters), (other_a, other_filters)], None, groups, turned=True),
        native.correlate([(x, a)], groups),
        native.correlate([(x, a), (other_x, other_a)], groups),
    ]
    (dx, dw), (other_dx, other_dw) = pull_back(a), other_pull_back(other_a)
    want = [y + vectors, y + torchs(other_x, other_filters) + vectors, dx, dx + other_dx, dw, dw + other_dw]
    assert_close(mine, want, 1e-12)


# --- where torch serves ----------------------------------------------------------------------------------------------


@compiled
def test_kernels_take_what_they_can():
    x, filters = torch.zeros(2, 16, 4, 4), torch.zeros(16, 16, 3, 3)
    assert native.takes(x, filters)
    assert native.takes(x.double(), filters.double())
    assert native.takes(torch.zeros(2, 32, 4, 4), filters, groups=1) is False
    assert native.takes(torch.zeros(2, 32, 4, 4), torch.cat((filters, filters)), groups=2)
    assert not native.takes(x, filters.double())
    assert not native.takes(x, filters[:15])
    assert not native.takes(x, filters[..., :1])
    assert not native.takes(x[0], filters)
    assert not native.takes(x.bfloat16(), filters.bfloat16())
    assert not native.takes(x.to("meta"), filters.to("meta"))
    assert not native.takes(FakeTensorMode().from_tensor(x), filters)
    with Calls():
        assert not native.takes(x, filters)
    with torch.autocast("cpu", torch.bfloat16):
        assert not native.takes(x, filters)


@compiled
@pytest.mark.parametrize(
    "wrong", [torch.zeros(8), torch.zeros(16, dtype=torch.float64), torch.zeros(16, device="meta")]
)
@pytest.mark.parametrize("which", range(3))
def test_vectors_that_do_not_fit_are_refused_before_memory_is_read(which, wrong):
    vectors = [torch.zeros(16)] * 3
    vectors[which] = wrong
    with pytest.raises(ValueError, match=r"gives 16 channels of torch\.float32 on cpu; its bias or the norm"):
        blocks(torch.zeros(2, 16, 4, 4), [torch.zeros(16, 16, 3, 3)], *([vector] for vector in vectors), 1e-5, 0.0)


@compiled
def test_images_that_do_not_fit_get_torchs_error():
    model = Conv4(ways=5, filters=16, image_size=16)
    with pytest.raises(RuntimeError, match="channels"):
        through(model.blocks[1:], torch.zeros(2, 8, 8, 8))
    with pytest.raises(RuntimeError, match=r"same|type"):
        through(model.blocks[1:], torch.zeros(2, 16, 8, 8, dtype=torch.float64))
    with pytest.raises((RuntimeError, ValueError), match=r"4-?D|dimension"):
        through(model.blocks[1:], torch.zeros(2, 16))


@compiled
@pytest.mark.parametrize(
    "change", ["hook", "hook of the norm", "backward hook", "hook of the block", "forward", "norm", "layer"]
)
def test_a_changed_block_is_not_fused(change):
    """Whoever watches a layer, or put another in its place, gets what that layer does."""
    torch.manual_seed(0)
    model = Conv4(ways=5, filters=16, image_size=16)
    changed, seen = copy.deepcopy(model), []
    if change == "hook":
        changed.blocks[1].conv.register_forward_hook(lambda *_: seen.append(1))
    elif change == "hook of the norm":
        changed.blocks[1].norm.register_forward_hook(lambda *_: seen.append(1))
    elif change == "backward hook":
        changed.blocks[1].conv.register_full_backward_hook(lambda *_: seen.append(1))
    elif change == "hook of the block":
        changed.blocks[1].register_forward_hook(lambda *_: seen.append(1))
    elif change == "forward":
        forward = changed.blocks[1].conv.forward
        changed.blocks[1].conv.forward = lambda x: seen.append(1) or forward(x)
    elif change == "norm":

        class Watched(PooledBatchNorm):
            def forward(self, x):
                seen.append(1)
                return super().forward(x)

        changed.blocks[1].norm = Watched(16, track_running_stats=False)
    else:
        changed.blocks[1].conv = torch.nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect")
        changed.blocks[1].conv.load_state_dict(model.blocks[1].conv.state_dict())
    x = torch.randn(3, 1, 16, 16)
    outputs = changed(x)
    outputs.sum().backward()
    same = torch.allclose(model(x), outputs, atol=1e-5)
    assert same == (change != "layer")
    assert bool(seen) == (change != "layer")


@compiled
@pytest.mark.parametrize("change", ["eps", "slope", "width"])
def test_blocks_that_are_not_alike_go_one_by_one(change):
    model = torch.nn.ModuleList([Block(1, 16, True, 0.1), Block(16, 16, True, 0.1)]).double()
    if change == "eps":
        model[1].norm.eps = 0.5
    elif change == "slope":
        model[1].negative_slope = 0.5
    else:
        model[1] = Block(16, 32, True, 0.1).double()
    x = random(3, 1, 9, 9)
    want = x
    for block in model:
        maps = F.batch_norm(block.conv(want), None, None, block.norm.weight, block.norm.bias, True, 0, block.norm.eps)
        want = F.leaky_relu(F.max_pool2d(maps, 2), block.negative_slope)
    torch.testing.assert_close(through(model, x), want)


@compiled
@pytest.mark.parametrize("strategy", ["loop", "vectorized"])
@pytest.mark.parametrize("statistics", ["support", "running", "batch"])
def test_predictions_equal_those_of_torchs_operators(statistics, strategy):
    """Whatever normalises the queries: by name, mean and variance each in its place."""
    learner = conv_learner(fewstep.preset("maml++", steps=2), filters=8, size=18, strategy=strategy)
    batch = images(size=18)
    learner.update_running(learner.meta_gradient(batch).statistics)
    predictor = learner.adapt(batch.support_x[0], batch.support_y[0], statistics=statistics)
    mine = predictor(batch.query_x[0])
    with Calls():
        torch.testing.assert_close(predictor(batch.query_x[0]), mine)
    tasks = lambda numbers: batch[: len(numbers)]  # noqa: E731
    score = fewstep.evaluate(learner, tasks, count=2, statistics=statistics)
    with Calls():
        assert fewstep.evaluate(learner, tasks, count=2, statistics=statistics).per_task == score.per_task


@compiled
def test_images_may_ask_for_their_gradient():
    x = random(2, 3, 6, 6).requires_grad_()
    torch.manual_seed(0)
    block = Block(3, 16, True, 0.0).double()
    mine = torch.autograd.grad(through([block], x).square().sum(), x)[0]
    parameters = block.conv.weight, block.norm.weight, block.norm.bias
    want = torch.autograd.grad(plain(x, *parameters, slope=0.0).square().sum(), x)[0]
    torch.testing.assert_close(mine, want)


@compiled
def test_images_may_ask_for_their_gradient_twice():
    x, filters, weight, bias = point(2, 3, 16, 6, 6)

    def twice(function):
        leaf = x.detach().requires_grad_()
        first = torch.autograd.grad(function(leaf, filters, weight, bias).square().sum(), leaf, create_graph=True)[0]
        return [first.detach(), torch.autograd.grad(first.square().sum(), leaf)[0]]

    assert_close(twice(fused), twice(plain), 1e-10)


@compiled
def test_kernels_from_other_sources_are_not_called(tmp_path, monkeypatch):
    """Their arguments may be others: a call would write anywhere."""
    for file in native.SOURCES.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    changed = tmp_path / "vectors.h"
    changed.write_text(changed.read_text() + "\n")
    monkeypatch.setattr(native, "SOURCES", tmp_path)
    native._library.cache_clear()
    try:
        assert not native.there()
    finally:
        monkeypatch.undo()
        native._library.cache_clear()
    assert native.there()


@compiled
@pytest.mark.parametrize("wrong", [torch.zeros(8), torch.zeros(16, 3), torch.zeros(16, dtype=torch.float64)])
def test_a_bias_that_does_not_fit_a_convolution_gets_torchs_error(wrong):
    layer = Conv2d(16, 16, 3, padding=1)
    with pytest.raises(RuntimeError):
        torch.func.functional_call(layer, {"bias": wrong}, torch.zeros(2, 16, 4, 4))


@compiled
@pytest.mark.parametrize("channels", [1, 3, 16])
def test_a_view_with_the_minus_sign_in_a_bit_is_read_with_it(channels):
    """Its memory holds the other sign; with one channel it lies as the kernels want it, so nothing copies it."""
    inputs = point(5, channels, 16, 8, 8)
    turned = [torch._neg_view(-t) for t in inputs]
    assert turned[0].is_neg()
    assert_close(derivatives(fused, turned), derivatives(fused, inputs), 0)
    x, filters, bias = turned[0].contiguous(memory_format=LAST), inputs[1].contiguous(memory_format=LAST), inputs[3]
    turned = [torch._neg_view(-t) for t in (x, filters, bias)]
    want = native.convolve([(x, filters)], bias)
    assert torch.equal(native.convolve([(turned[0], turned[1])], turned[2]), want)
    assert torch.equal(native.correlate([(turned[0], torch._neg_view(-want))]), native.correlate([(x, want)]))


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Transparent(Watching):
    transparent = True


@compiled
def test_a_transparent_mode_lets_kernels_be_called():
    """But not one outside or inside of it that is none."""
    x, filters = torch.zeros(2, 16, 4, 4), torch.zeros(16, 16, 3, 3)
    with Transparent():
        assert native.takes(x, filters)
        with Watching():
            assert not native.takes(x, filters)
    with Watching(), Transparent():
        assert not native.takes(x, filters)


@compiled
def test_results_are_on_the_cpu_whatever_the_default_device():
    inputs = point(3, 16, 16, 6, 6)
    want = derivatives(fused, inputs)
    leaves = [t.detach().requires_grad_() for t in inputs]
    with torch.device("meta"):
        y = fused(*leaves)
        first = torch.autograd.grad(y, leaves, torch.ones(y.shape, dtype=y.dtype, device="cpu"))
    assert torch.equal(y, want[0])
    assert {t.device.type for t in first} == {"cpu"}


@compiled
def test_a_hessian_vector_product_may_name_every_parameter():
    """The bias that batch norm takes away too: its gradient is zero, but not a constant."""
    torch.manual_seed(0)
    model = Conv4(ways=3, filters=16, image_size=16).double()
    parameters = list(model.parameters())
    loss = model(random(4, 1, 16, 16)).square().sum()
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    product = torch.autograd.grad(gradients, parameters, [torch.ones_like(g) for g in gradients])
    assert all(p.isfinite().all() for p in product)
    assert not product[1].any()  # of the first convolution's bias


@compiled
def test_norms_whose_weight_begins_at_zero_differentiate_three_times():
    """All four pixels of a window are then equal: the one that the first derivative took is taken in every other."""
    x, filters, _, bias = point(3, 16, 16, 6, 6)
    weight = torch.zeros(16, dtype=x.dtype)
    third = derivatives(fused, (x, filters, weight, bias))
    step = derivatives(fused, (x, filters, weight + 1e-9, bias))
    assert_close(third, step, 1e-4)


@compiled
@pytest.mark.parametrize("channels", [3, 16])
def test_tasks_whose_images_ask_for_their_gradient_equal_a_loop(channels):
    torch.manual_seed(0)
    inputs = random(3, 2, channels, 6, 4), random(3, 16, channels, 3, 3) / 3, random(3, 16), random(3, 16)

    def second(*inputs):
        first = torch.func.grad(lambda *i: fused(*i).square().sum(), argnums=(0, 1))
        return torch.func.grad(lambda *i: sum(g.square().sum() for g in first(*i)), argnums=(0, 1, 2))(*inputs)

    one_by_one = [second(*(t[i] for t in inputs)) for i in range(3)]
    assert_close(vmap(second)(*inputs), [torch.stack(each) for each in zip(*one_by_one, strict=True)], 1e-10)


@compiled
def test_the_compiler_of_torch_gets_torchs_operators():
    """It can look neither into the kernels nor at their derivatives."""
    torch.manual_seed(0)
    block = Block(16, 16, True, 0.1)
    x = torch.randn(3, 16, 6, 6)

    def function(x):
        return through([block], x)

    compiled_function = torch.compile(function, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled_function(x), function(x), rtol=1e-4, atol=1e-5)
