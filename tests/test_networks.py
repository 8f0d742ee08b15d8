"""Networks: shapes to shapes under any leading dimensions, and how they start."""

import math

import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import SpecError
from pyro_vae.networks.base import ACTIVATIONS, Net

NETWORKS = [
    pv.networks.MLP(hidden=(6, 5)),
    pv.networks.MLP(hidden=()),
    pv.networks.GatedMLP(hidden=(6,)),
    pv.networks.Linear(),
    pv.networks.Conv(channels=(3, 4), hidden=8),
    pv.networks.GatedConv(channels=(3, 4), hidden=8),
    pv.networks.ResNet(channels=(3, 4), hidden=8, blocks=1),
    pv.networks.Counts(hidden=(6,)),
]
CONVOLUTIONAL = [pv.networks.Conv, pv.networks.GatedConv, pv.networks.ResNet]


def ids(network):
    return network.name


@pytest.mark.parametrize("network", [*NETWORKS, pv.networks.Topics()], ids=ids)
@pytest.mark.parametrize(
    ("in_shape", "out_shape"), [((7, 6), (5,)), ((4,), (7, 6)), ((4,), (2, 3, 7, 6))]
)
def test_leading_dimensions_equal_a_loop(network, in_shape, out_shape):
    net = network.make(in_shape, out_shape).double()
    x = torch.randn(3, 2, *in_shape, dtype=torch.double)
    whole = net(x)
    assert whole.shape == (3, 2, *out_shape)
    for k in range(3):
        for b in range(2):
            assert net(x[k, b]).shape == out_shape
            torch.testing.assert_close(whole[k, b], net(x[k, b]), rtol=0, atol=1e-12)
    # Strided and expanded inputs are inputs like any other.
    torch.testing.assert_close(net(x.transpose(0, 1)), whole.transpose(0, 1), rtol=0, atol=1e-12)
    assert net(x[:1].expand(4, 2, *in_shape)).shape == (4, 2, *out_shape)


@pytest.mark.parametrize("kind", CONVOLUTIONAL)
@pytest.mark.parametrize("size", [(7, 7), (9, 8), (28, 28), (28, 20), (2, 2)])
@pytest.mark.parametrize("colours", [(), (1,), (3,)])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_pictures_both_ways(kind, size, colours, layers):
    conv = kind(channels=(2, 3, 4)[:layers], hidden=5)
    image = (*colours, *size)
    halvings = math.ceil(math.log2(min(size)))
    if layers > halvings:
        for shapes in ((image, (4,)), ((4,), image)):
            with pytest.raises(SpecError) as caught:
                conv.make(*shapes)
            assert "use fewer layers" in str(caught.value)
            assert len(str(caught.value).splitlines()) == 1
        return
    encoder, decoder = conv.make(image, (6,)), conv.make((4,), image)
    x = torch.randn(3, *image)
    assert encoder(x).shape == (3, 6)
    pictures = decoder(torch.randn(3, 4))
    assert pictures.shape == (3, *image)
    # Every pixel depends on the latent, and the code on every pixel: nothing is cropped or padded.
    activation = {} if kind is pv.networks.GatedConv else {"activation": "tanh"}
    smooth = kind(channels=(4,) * layers, hidden=16, **activation)
    decoder = smooth.make((4,), image)
    z = torch.randn(1, 4)
    assert (decoder(z) != decoder(z + 1)).all()
    x = torch.randn(1, *image, requires_grad=True)
    smooth.make(image, (6,))(x).sum().backward()
    assert (x.grad != 0).all()


def test_conv_by_hand():
    conv = pv.networks.Conv(channels=(2,), hidden=5, activation="relu")
    encoder = conv.make((3, 4, 4), (6,))
    convolution, first, last = (m for m in encoder.body if hasattr(m, "weight"))
    x = torch.randn(2, 3, 4, 4)
    h = torch.conv2d(x, convolution.weight, convolution.bias, stride=2, padding=1).relu()
    h = (h.flatten(1) @ first.weight.T + first.bias).relu()
    torch.testing.assert_close(encoder(x), h @ last.weight.T + last.bias)


def test_gated_conv_by_hand():
    net = pv.networks.GatedConv(channels=(2,), hidden=5).make((3, 4, 4), (6,))
    gate, _, full, last = list(net.body)[1:]
    x = torch.randn(2, 3, 4, 4)

    def half(rows):
        layer = gate.layer
        return torch.conv2d(x, layer.weight[rows], layer.bias[rows], stride=2, padding=1)

    h = half(slice(0, 2)) * half(slice(2, 4)).sigmoid()
    torch.testing.assert_close(net(x), last(full(h.flatten(1))))


def test_residual_blocks_begin_as_the_identity():
    net = pv.networks.ResNet(channels=(2,), hidden=5, blocks=2, activation="elu")
    net = net.make((3, 4, 4), (6,))
    convolution, first, second, *rest = list(net.body)[1:]
    x = torch.randn(2, 3, 4, 4)
    h = torch.conv2d(x, convolution.weight, convolution.bias, stride=2, padding=1)
    torch.testing.assert_close(second(first(h)), h)
    expected = h
    for block in (first, second):
        for parameter in block.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        _, inner, _, outer = block.layers
        elu = torch.nn.functional.elu
        expected = expected + outer(elu(inner(elu(expected))))
    torch.testing.assert_close(second(first(h)), expected)
    torch.testing.assert_close(net(x), nn.Sequential(*rest)(expected))


def test_counts_are_seen_as_logs_and_as_shares():
    net = pv.networks.Counts(hidden=(7,)).make((2, 3), (4,))
    features, mlp = net.body
    x = torch.tensor([[[0.0, 10, 90], [0, 0, 100]], [[0, 0, 0], [0, 0, 0]]])
    flat = x.flatten(1)
    shares = torch.stack([flat[0] / 200, torch.zeros(6)])
    torch.testing.assert_close(features(x), torch.cat([flat.log1p(), shares], 1))
    torch.testing.assert_close(net(x), mlp(features(x)))
    assert features(-x).isfinite().all()


@pytest.mark.parametrize("network", NETWORKS, ids=ids)
def test_no_network_has_a_batch_norm(network):
    """Its running means are part of no density, and make a datum's depend on the others'."""
    for shapes in (((7, 6), (5,)), ((4,), (7, 6))):
        modules = network.make(*shapes).modules()
        assert not any("Norm" in type(module).__name__ for module in modules)


@pytest.mark.parametrize("kind", CONVOLUTIONAL)
def test_of_two_pictures_the_larger_is_the_picture(kind):
    conv = kind(channels=(2,), hidden=5)
    decoder, encoder = conv.make((3, 4), (8, 8)), conv.make((8, 8), (3, 4))
    assert any(isinstance(module, nn.ConvTranspose2d) for module in decoder.modules())
    assert not any(isinstance(module, nn.ConvTranspose2d) for module in encoder.modules())


@pytest.mark.parametrize("kind", CONVOLUTIONAL)
def test_conv_refuses_what_is_no_picture(kind):
    for data_shape in [(784,), (5,)]:
        for part in ("encoder", "decoder"):
            with pytest.raises(SpecError, match="pictures") as caught:
                pv.VAE(data_shape=data_shape, **{part: kind.name})
            assert str(data_shape) in str(caught.value)
            assert f"'{kind.name}'" in str(caught.value)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_by_hand(activation):
    net = pv.networks.MLP(hidden=(6, 5), activation=activation).make((2, 3), (4,))
    layers = [m for m in net.body if isinstance(m, nn.Linear)]
    h = torch.randn(7, 2, 3)
    found = net(h)
    h = h.flatten(1)
    for i, layer in enumerate(layers):
        h = h @ layer.weight.T + layer.bias
        if i < 2:
            h = getattr(torch.nn.functional, activation)(h)
    torch.testing.assert_close(found, h)


def test_gated_mlp_by_hand():
    net = pv.networks.GatedMLP(hidden=(6,)).make((4,), (3,))
    gate, last = net.body[1].value_and_gate, net.body[2]
    x = torch.randn(5, 4)
    value = x @ gate.weight[:6].T + gate.bias[:6]
    opening = torch.sigmoid(x @ gate.weight[6:].T + gate.bias[6:])
    torch.testing.assert_close(net(x), (value * opening) @ last.weight.T + last.bias)


@pytest.mark.parametrize("network", NETWORKS, ids=ids)
@pytest.mark.parametrize("shapes", [((28, 28), (50,)), ((50,), (28, 28))])
def test_biases_start_at_zero_and_weights_are_glorot(network, shapes):
    wide = {"hidden": (200,)} if "gated" in network.name else {"hidden": (200, 200)}
    if type(network) in CONVOLUTIONAL:
        wide = {"channels": (32, 64), "hidden": 200}
    if network.name == "linear":
        wide = {}
    net = type(network)(**wide).make(*shapes)
    for module in net.modules():
        if getattr(module, "weight", None) is None:
            continue
        assert not module.bias.any()
        weight = module.weight
        if network.name == "resnet" and not weight.any():
            continue  # a block begins as the identity
        fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(weight)
        if isinstance(module, nn.Linear) and "gated" in network.name and module.bias.numel() == 400:
            expected = math.sqrt(2 / fan_in)  # He
        else:
            expected = math.sqrt(2 / (fan_in + fan_out))
            assert weight.abs().max() <= math.sqrt(6 / (fan_in + fan_out)) * (1 + 1e-6)
        error = expected / math.sqrt(weight.numel())
        assert abs(weight.std().item() - expected) < 5 * error
        assert 5 * error < 0.3 * expected


@pytest.mark.parametrize("network", NETWORKS, ids=ids)
def test_output_bias(network):
    net = network.make((4,), (2, 6, 6))
    value = torch.randn(2, 6, 6)
    assert net.set_output_bias(value)
    for parameter in net.parameters():
        if parameter.dim() > 1:
            parameter.data.zero_()  # what is left is the bias
    expected = value
    if type(network) in CONVOLUTIONAL:  # one bias per channel
        expected = value.mean((1, 2), keepdim=True).expand(2, 6, 6)
    torch.testing.assert_close(net(torch.randn(3, 4)), expected.expand(3, 2, 6, 6))


def test_output_bias_of_other_networks():
    hidden = nn.Linear(4, 6)
    before = hidden.bias.clone()
    without = Net(nn.Sequential(hidden, nn.Tanh(), nn.Linear(6, 12, bias=False)), (4,), (12,))
    assert not without.set_output_bias(torch.randn(12))
    assert torch.equal(hidden.bias, before), "a hidden bias is no output bias"
    assert not Net(nn.Flatten(), (4,), (4,)).set_output_bias(torch.randn(4))
    odd = Net(nn.Linear(4, 5), (4,), (5,))
    assert not odd.set_output_bias(torch.randn(12))


def test_wrong_shapes_are_said():
    net = pv.networks.MLP(hidden=(3,)).make((4, 5), (2,))
    for shape in [(3, 5, 4), (20,), (3, 20), ()]:
        with pytest.raises(ValueError, match=r"inputs \[\.\.\., 4, 5\]"):
            net(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"Linear returned \(3, 7\) for 3 rows"):
        Net(nn.Linear(4, 7), (4,), (2,))(torch.zeros(3, 4))
