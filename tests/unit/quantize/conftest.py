"""Models trained once for the whole room."""

import pytest

from secure_quant.quantize.zoo import LeNet, RowClassifier, digits, mlp, train


@pytest.fixture(scope="session")
def flat():
    data = digits("flat")
    return train(mlp, data, epochs=12), data


@pytest.fixture(scope="session")
def images():
    data = digits("image")
    return train(LeNet, data, epochs=3), data


@pytest.fixture(scope="session")
def rows():
    data = digits("rows")
    return train(RowClassifier, data, epochs=8), data
