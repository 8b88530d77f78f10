"""Conv4: the published sizes, the layout of its maps through an inner loop, and what it refuses."""

import copy

import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from fewstep.errors import BadInput
from fewstep.models import Conv4


def inner_loop_size(model):
    return sum(p.numel() for name, p in model.named_parameters() if "norm" not in name)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"ways": 5}, 111_749),
        ({"ways": 20}, 112_724),
        ({"ways": 5, "downsample": "stride"}, 111_749),
        ({"ways": 5, "channels": 3, "filters": 48, "image_size": 84}, 69_701),
        ({"ways": 5, "channels": 3, "filters": 32, "image_size": 84}, 32_645),
    ],
)
def test_sizes_are_the_published_ones(options, size):
    model = Conv4(**options)
    assert inner_loop_size(model) == size
    filters = options.get("filters", 64)
    assert sum(p.numel() for p in model.parameters()) == size + 2 * 4 * filters


def test_parameter_names():
    names = [f"blocks.{i}.{part}.{kind}" for i in range(4) for part in ("conv", "norm") for kind in ("weight", "bias")]
    model = Conv4()
    assert list(dict(model.named_parameters())) == [*names, "head.weight", "head.bias"]
    assert not list(model.buffers())


@pytest.mark.parametrize(
    "options",
    [
        {"image_size": 16},
        {"image_size": (16, 37)},
        {"image_size": 9, "downsample": "stride"},
        {"image_size": (28, 20), "downsample": "stride", "channels": 3},
        {"image_size": 4, "blocks": 2, "ways": 2},
        {"image_size": 32, "channels": 3, "init": "default", "negative_slope": 0.0},
    ],
)
def test_output_is_the_plain_network(options):
    model = Conv4(filters=6, **options).double()
    size = options["image_size"]
    x = torch.randn(3, options.get("channels", 1), *((size, size) if isinstance(size, int) else size)).double()
    pool, slope = options.get("downsample") != "stride", options.get("negative_slope", 0.01)
    h = x
    for block in model.blocks:
        h = F.conv2d(h, block.conv.weight, block.conv.bias, stride=1 if pool else 2, padding=1)
        h = F.leaky_relu(F.batch_norm(h, None, None, block.norm.weight, block.norm.bias, training=True), slope)
        h = F.max_pool2d(h, 2) if pool else h
    h = F.linear(h.flatten(1) if pool else h.mean((2, 3)), model.head.weight, model.head.bias)
    torch.testing.assert_close(model(x), h)


def test_xavier_bounds_and_zero_biases():
    torch.manual_seed(0)
    model = Conv4(channels=3, ways=20)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert not p.any()
        elif "norm" in name:
            assert (p == 1).all()
        else:
            positions = p[0, 0].numel() if p.dim() == 4 else 1
            bound = (6 / ((p.shape[0] + p.shape[1]) * positions)) ** 0.5
            assert 0.97 * bound < p.abs().max() <= bound
    assert Conv4(init="default").head.bias.any()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("lies", [torch.contiguous_format, torch.channels_last])
def test_every_map_keeps_channels_last_through_inner_steps(channels, lies):
    model, seen = Conv4(channels=channels, filters=8), []
    for block in model.blocks:
        block.conv.register_forward_hook(lambda *args: seen.append(args[-1]))
        block.norm.register_forward_hook(lambda *args: seen.append(args[-1]))
    x, y = torch.randn(5, channels, 28, 28).contiguous(memory_format=lies), torch.arange(5)
    weights = dict(model.named_parameters())
    for _ in range(3):
        loss = F.cross_entropy(functional_call(model, weights, (x,)), y)
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        weights = {name: w - 0.1 * g for (name, w), g in zip(weights.items(), gradients, strict=True)}
    assert len(seen) == 24
    assert all(map_.is_contiguous(memory_format=torch.channels_last) for map_ in seen)
    assert not any(map_.is_contiguous() for map_ in seen if map_.shape[2] > 1)  # of one pixel both layouts are one
    assert copy.deepcopy(model).blocks[1].conv.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("downsample", ["max_pool", "stride"])
def test_tasks_under_vmap_equal_a_loop(downsample):
    model = Conv4(ways=2, filters=3, image_size=16, downsample=downsample).double()
    weights = {name: p.detach() for name, p in model.named_parameters()}
    x, y = torch.randn(2, 4, 1, 16, 16).double(), torch.tensor([0, 1, 0, 1])

    def meta_gradient(weights, x):
        def loss(weights):
            return F.cross_entropy(functional_call(model, weights, (x,)), y)

        def after_a_step(weights):
            return loss({name: weights[name] - 0.1 * g for name, g in grad(loss)(weights).items()})

        return grad(after_a_step)(weights)

    vectorised = vmap(meta_gradient, in_dims=(None, 0))(weights, x)
    for task in range(2):
        for name, value in meta_gradient(weights, x[task]).items():
            torch.testing.assert_close(vectorised[name][task], value, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 15}, "images of 15×15 pixels .* the smallest is 16×16"),
        ({"image_size": (28, 15)}, "images of 28×15 pixels .* the smallest is 16×16"),
        ({"image_size": 8, "downsample": "stride"}, "the smallest is 9×9"),
        ({"image_size": 31, "blocks": 5}, "5 blocks with max_pool: the smallest is 32×32"),
        ({"downsample": "maxpool"}, "did you mean 'max_pool'"),
        ({"init": "xaver"}, "did you mean 'xavier'"),
        ({"filters": 0}, "0 filters"),
        ({"negative_slope": -1}, "negative_slope is -1"),
    ],
)
def test_what_cannot_be_built_is_refused(options, message):
    with pytest.raises(BadInput, match=message):
        Conv4(**options)


@pytest.mark.parametrize("shape", [(2, 3, 28, 28), (2, 1, 32, 32), (2, 28, 28)])
def test_other_images_are_refused(shape):
    model = Conv4(filters=2)
    given = "×".join(map(str, shape[1:]))
    with pytest.raises(BadInput, match=f"built for images of 1×28×28; it was given {given}"):
        model(torch.zeros(shape))
    with pytest.raises(BadInput, match=f"it was given {given}"):
        vmap(model)(torch.zeros(4, *shape))


def test_exports():
    model = Conv4(filters=4).eval()
    program = torch.export.export(model, (torch.randn(3, 1, 28, 28),))
    x = torch.randn(3, 1, 28, 28)
    torch.testing.assert_close(program.module()(x), model(x))
