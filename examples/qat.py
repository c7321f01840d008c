"""Quantization-aware training: where rounding hurts, a short fine-tune with the rounding in place.

python examples/qat.py [--epochs 12] [--tune 4]
"""

import argparse

import torch
from torch import nn

import secure_quant as sq
from secure_quant.quantizer import Training, zoo


def uneven(model: nn.Sequential) -> nn.Sequential:
    """The same function with hidden channels that differ up to 100,000-fold in size, as folded
    BatchNorms of depthwise networks leave them."""
    stretch = torch.logspace(0, 5, model[0].out_features)
    with torch.no_grad():
        model[0].weight *= stretch[:, None]
        model[0].bias *= stretch
        model[2].weight /= stretch
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=12, help="of float training")
    parser.add_argument("--tune", type=int, default=4, help="epochs of the fine-tune")
    arguments = parser.parse_args()

    data = zoo.digits("flat")
    model = uneven(zoo.train(zoo.mlp, data, epochs=arguments.epochs))
    with torch.no_grad():
        floats = model(torch.from_numpy(data.test_x)).numpy()

    # After training, with one scale for all weights of a layer (grid=1) and for all its
    # activations: the small channels are rounded away. Without max_error this would be refused.
    static = sq.quantize(model, data.train_x[:256], grid=1, max_error=float("inf"))

    # In training: each step rounds as the integers will, gradients pass straight through, and the
    # weights learn to live with it.
    trained = sq.quantize(
        model, data.train_x, grid=1, mode="qat", targets=data.train_y,
        training=Training(epochs=arguments.tune, learning_rate=2e-3),
    )  # fmt: skip

    for name, logits in {
        "float32": floats,
        "int8, rounded after training": sq.reference.run(static, data.test_x),
        "int8, rounded in training": sq.reference.run(trained, data.test_x),
    }.items():
        print(f"{name:32}{zoo.accuracy(logits, data.test_y):.2%}")
    # Once trained it costs nothing more: both graphs have the same steps.
    same = [type(node) for node in static.nodes] == [type(node) for node in trained.nodes]
    print(f"the same steps at inference: {'yes' if same else 'no'}")


if __name__ == "__main__":
    main()
