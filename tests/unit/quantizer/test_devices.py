"""Models whose code or tensors name a GPU: quantized on the CPU, with the integers of their twins
that name none. What needs a GPU to be there is skipped without one."""

import copy
import hashlib

import numpy as np
import pytest
import torch
from torch import nn
from unit.quantizer.nets import Net, own_answer, relative_error

from secure_quant import reference
from secure_quant.errors import UnsupportedModule
from secure_quant.quantizer import Training, quantize
from secure_quant.quantizer.devices import OnCpu

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def to_device(m, x):
    return m.a(x.to(m.device)).relu()


def to_device_and_dtype(m, x):
    first = torch.device(m.device.type, 0)
    return m.a(x.to(first, torch.float32, True))


def keyword(m, x):
    return m.a(x) + torch.arange(4, device=m.device, dtype=torch.float32)


def number(m, x):
    return m.a(x) + torch.ones(4, device="cpu" if m.device.type == "cpu" else 0)


def likes(m, x):
    y = m.a(x)
    return y + torch.zeros_like(y, device=m.device) + x.new_ones(4, device=m.device)


def constants(m, x):
    return m.a(x) * torch.tensor([1.0, 2.0, 3.0, 4.0], device=m.device, pin_memory=False)


def under_device(m, x):
    with torch.device(m.device):
        ones = torch.ones(4)
    return m.a(x) + ones


def two_devices(m, x):
    first, second = ("cpu", "cpu") if m.device.type == "cpu" else ("cuda:0", "cuda:1")
    return m.b(m.a(x.to(first)).relu().to(second)).to("cpu")


def method(m, x):
    return m.a(x if m.device.type == "cpu" else x.cuda(non_blocking=True)).cpu()


def hidden(m, x):
    h, c = torch.zeros(1, len(x), 6).to(m.device), torch.zeros(1, len(x), 6, device=m.device)
    made, _ = m.r(x.reshape(len(x), 2, 4), (h, c))
    return made[:, -1]


def module_moves(m, x):
    return m.a.to(m.device)(x)


FORWARDS = [
    to_device, to_device_and_dtype, keyword, number, likes, constants, under_device, two_devices,
    method, hidden,
]  # fmt: skip


def net(forward, device="cpu"):
    torch.manual_seed(5)
    layers = {"a": nn.Linear(8, 4)}
    if forward is two_devices:
        layers["b"] = nn.Linear(4, 3)
    if forward is hidden:
        layers = {"r": nn.LSTM(4, 6, batch_first=True)}
    made = Net(forward, **layers).eval()
    made.device = torch.device(device)
    return made


def samples():
    return torch.randn(64, 8, generator=torch.Generator().manual_seed(6))


def integers(graph):
    """A digest of all that a graph is, without the salt of its name."""
    digest = hashlib.sha256(repr(graph.nodes).encode())
    for name, value in sorted(graph.parameters.items()):
        digest.update(name.encode() + value.tobytes())
    return digest.hexdigest()


SOME = {to_device, constants, two_devices, hidden}


@pytest.mark.parametrize(
    "forward", [f if f in SOME else pytest.param(f, marks=pytest.mark.heavy) for f in FORWARDS]
)
def test_a_gpu_in_the_code_gives_the_integers_of_the_cpu(forward):
    made = quantize(net(forward, "cuda"), samples())
    assert integers(made) == integers(quantize(net(forward), samples()))


def test_a_module_that_moves_in_forward_is_told_where_to():
    with pytest.raises(UnsupportedModule, match="move and cast modules before the call"):
        quantize(net(module_moves), samples())


def test_the_device_without_values_stays():
    with OnCpu():
        assert torch.empty(3, device="meta").is_meta
        assert torch.ones(3).to("meta").is_meta
        assert torch.ones(3).to(torch.float64).dtype is torch.float64
        assert torch.ones(3).type("torch.cuda.DoubleTensor").type() == "torch.DoubleTensor"
        assert torch.ones(3).to(torch.zeros(1)).device.type == "cpu"


class Held(nn.Module):
    """Tensors in places where ``Module.cuda`` and ``Module.cpu`` do not look."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 4)
        self.register_buffer("scale", torch.full((4,), 0.5))
        self.plain = torch.arange(4.0)
        self.listed = [torch.ones(4), {"x": torch.full((4,), 2.0)}]
        self.add = None

    def forward(self, x):
        y = self.a(x) * self.scale + self.plain + self.listed[0] * self.listed[1]["x"]
        return y if self.add is None else self.add(y)


def held():
    torch.manual_seed(1)
    return Held()


def on_gpu(model):
    made = copy.deepcopy(model).cuda()
    if isinstance(made, Held):
        made.plain = made.plain.cuda()
        made.listed = [made.listed[0].cuda(), {"x": made.listed[1]["x"].cuda()}]
    return made


@needs_gpu
@pytest.mark.parametrize("forward", FORWARDS)
def test_a_model_on_a_gpu(forward):
    model, x = on_gpu(net(forward, "cuda")), samples()
    assert integers(quantize(model, x.cuda())) == integers(quantize(net(forward), x))
    assert integers(quantize(model, x)) == integers(quantize(net(forward), x.cuda()))


@needs_gpu
def test_a_model_on_a_gpu_is_left_as_it_is():
    model, x = on_gpu(held()), samples().cuda()
    kept = model.state_dict(keep_vars=True)
    before = {name: (value, value.clone()) for name, value in kept.items()}
    state, used = torch.cuda.get_rng_state(), torch.cuda.memory_allocated()
    quantize(model, x)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert torch.cuda.memory_allocated() <= used
    for name, value in model.state_dict(keep_vars=True).items():
        same, values = before[name]
        assert value is same, name
        assert torch.equal(value, values), name
    held_there = [model.listed[0], model.listed[1]["x"], model.plain, *kept.values()]
    assert all(value.is_cuda for value in held_there)


@needs_gpu
def test_tensors_of_a_gpu_in_lists_attributes_and_closures():
    plain, three = held(), torch.full((4,), 3.0)
    moved, three_there = on_gpu(plain), three.cuda()
    plain.add, moved.add = (lambda y: y * three), (lambda y: y * three_there)
    assert integers(quantize(moved, samples().cuda())) == integers(quantize(plain, samples()))


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_on_a_gpu(dtype):
    model, x = net(to_device).to(dtype), samples()
    assert integers(quantize(on_gpu(model), x.cuda())) == integers(quantize(model, x))


@needs_gpu
@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrapped_on_a_gpu(wrap):
    model, x = net(likes), samples()
    assert integers(quantize(wrap(on_gpu(model)), x.cuda())) == integers(quantize(model, x))


@needs_gpu
def test_training_with_targets_and_a_loss_of_a_gpu():
    model, x = net(likes), samples()
    targets, weight = torch.arange(64) % 4, torch.tensor([1.0, 2.0, 3.0, 4.0])

    def trained(model, x, targets, weight):
        training = Training(epochs=2, loss=nn.CrossEntropyLoss(weight=weight))
        return quantize(model, x, mode="qat", targets=targets, training=training)

    made = trained(on_gpu(model), x.cuda(), targets.cuda(), weight.cuda())
    assert integers(made) == integers(trained(model, x, targets, weight))


@needs_gpu
@pytest.mark.parametrize(
    "options",
    [{"scheme": "log"}, {"scheme": "kmeans"}, {"mode": "dynamic"}, {"mode": "weight-only"}],
)
def test_schemes_and_modes_on_a_gpu(options):
    model, x = net(to_device), samples()
    made = quantize(on_gpu(model), x.cuda(), **options)
    assert integers(made) == integers(quantize(model, x, **options))


@needs_gpu
def test_calibration_by_a_loader_with_pinned_memory():
    model, x = net(to_device), samples()
    data = torch.utils.data.TensorDataset(x)
    loader = torch.utils.data.DataLoader(data, batch_size=16, pin_memory=True)
    want = integers(quantize(model, list(x.split(16))))
    assert integers(quantize(on_gpu(model), [batch.cuda() for (batch,) in loader])) == want
    assert integers(quantize(on_gpu(model), loader)) == want


@needs_gpu
def test_the_integers_follow_what_the_gpu_computes():
    model, x = on_gpu(held()), samples()
    got = reference.run(quantize(model, x.cuda()), x.numpy())
    with torch.no_grad():
        want = model(x.cuda()).cpu().double().numpy()
    assert relative_error(got, want) < 0.04
    assert np.allclose(want, own_answer(held(), x), rtol=1e-2, atol=1e-2)
