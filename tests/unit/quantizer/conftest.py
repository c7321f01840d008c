"""Models trained once for the whole room."""

import pytest
import torch

from secure_quant.quantizer.zoo import LeNet, RowClassifier, digits, mlp, train


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Models this small gain nothing from threads, and lose much to them on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def flat():
    data = digits("flat")
    return train(mlp, data, epochs=6, batch_size=32), data


@pytest.fixture(scope="session")
def images():
    data = digits("image")
    return train(LeNet, data, epochs=2, batch_size=32), data


@pytest.fixture(scope="session")
def rows():
    data = digits("rows")
    return train(RowClassifier, data, epochs=4, batch_size=32), data
