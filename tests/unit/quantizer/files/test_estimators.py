"""Estimators of scikit-learn: the integers are close to their own scores."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cross_decomposition import PLSRegression
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    MultiTaskLasso,
    PoissonRegressor,
    Ridge,
    RidgeClassifier,
    SGDClassifier,
)
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    MaxAbsScaler,
    MinMaxScaler,
    PolynomialFeatures,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import SVC, LinearSVC

import secure_quant as sq
from secure_quant.errors import CaptureMismatch, UnsupportedModule

X, Y = load_digits(return_X_y=True)
X, Y = X[:400].astype(np.float32) / 16, Y[:400]
TWO = Y % 2

SVD = TruncatedSVD(20, random_state=0)
BOTH = np.stack([Y, TWO], 1)
LINEAR = {
    "least squares": (LinearRegression(), Y),
    "ridge, two goals": (Ridge(), BOTH),
    "lasso": (MultiTaskLasso(0.01), BOTH),
    "logistic": (LogisticRegression(), Y),
    "logistic, two classes": (LogisticRegression(), TWO),
    "ridge classifier": (RidgeClassifier(), Y),
    "gradient descent": (SGDClassifier(random_state=0), Y),
    "linear svc": (LinearSVC(random_state=0), TWO),
    "svc": (SVC(kernel="linear"), TWO),
    "standardized": (make_pipeline(StandardScaler(), LogisticRegression()), Y),
    "components": (make_pipeline(MinMaxScaler(), PCA(20, random_state=0), Ridge()), Y),
    "three steps": (make_pipeline(RobustScaler(), MaxAbsScaler(), SVD, Ridge()), TWO),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_models(name) -> None:
    estimator, goal = LINEAR[name]
    estimator.fit(X, goal)
    graph = sq.quantize(estimator, X)
    scored = getattr(estimator, "decision_function", None) or estimator.predict
    wanted = scored(X).reshape(len(X), -1)
    got = sq.reference.run(graph, X)
    assert np.sqrt(np.mean((got - wanted) ** 2)) < 0.1 * np.sqrt(np.mean(wanted**2))


@pytest.mark.parametrize("activation", ["relu", "tanh", "logistic"])
@pytest.mark.parametrize("goal", [Y, TWO], ids=["ten", "two"])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_networks(activation, goal) -> None:
    model = make_pipeline(
        StandardScaler(), MLPClassifier((24,), activation=activation, max_iter=60, random_state=0)
    )
    model.fit(X, goal)
    scores = sq.reference.run(sq.quantize(model, X), X)
    chosen = scores.argmax(1) if scores.shape[1] > 1 else (scores[:, 0] > 0).astype(int)
    assert np.mean(chosen == model.predict(X)) > 0.98


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_regressor_and_an_output_of_several_labels() -> None:
    model = MLPRegressor(hidden_layer_sizes=(16,), max_iter=80, random_state=0).fit(X, Y)
    off = sq.reference.run(sq.quantize(model, X), X)[:, 0] - model.predict(X)
    assert np.abs(off).mean() < 0.15
    labels = np.stack([TWO, Y > 4], 1).astype(int)
    several = MLPClassifier((16,), max_iter=60, random_state=0).fit(X, labels)
    scores = sq.reference.run(sq.quantize(several, X), X)
    assert np.mean((scores > 0) == several.predict(X)) > 0.98


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (LogisticRegression(), "call fit first"),
        (RandomForestClassifier(3).fit(X, Y), "thresholds"),
        (SVC().fit(X, TWO), "no linear model"),
        (make_pipeline(PolynomialFeatures(2), Ridge()).fit(X[:, :4], Y), "PolynomialFeatures"),
        (make_pipeline(MinMaxScaler(clip=True), Ridge()).fit(X, Y), "MinMaxScaler"),
    ],
    ids=["not fitted", "forest", "kernel", "polynomials", "clipping"],
)
def test_others_are_refused_by_name(model, says) -> None:
    with pytest.raises(UnsupportedModule, match=says):
        sq.quantize(model, X)


def test_what_is_no_plain_linear_model_is_caught_by_its_scores() -> None:
    with pytest.raises((CaptureMismatch, UnsupportedModule)):
        sq.quantize(PoissonRegressor().fit(X, Y), X)  # exp of a linear map
    model = PLSRegression(3).fit(X, Y)
    model.coef_ = model.coef_ * 1.5
    model.predict = lambda x: LinearRegression().fit(X, Y).predict(x)
    with pytest.raises(CaptureMismatch, match="PLSRegression"):
        sq.quantize(model, X)


def test_other_widths_are_refused() -> None:
    with pytest.raises(UnsupportedModule, match="batch, 64"):
        sq.quantize(Ridge().fit(X, Y), X[:, :10])
