"""Trees of scikit-learn on whole numbers: the class that scikit-learn gives."""

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.ensemble import (
    AdaBoostClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.preprocessing import KBinsDiscretizer
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from conformance.executors import He, Mpc, OneHost
from secure_quant import reference
from secure_quant.errors import UnsupportedModule
from secure_quant.quantizer import quantize

X, Y = load_digits(return_X_y=True)
X = X.astype(np.float32)
SEEN, OTHERS = slice(0, 1200), slice(1200, None)
HEAVY = pytest.mark.heavy
CLASSIFIERS = {
    "tree": DecisionTreeClassifier(max_depth=6, random_state=0),
    "forest": RandomForestClassifier(8, max_depth=7, random_state=0),
    "forest of whole trees": RandomForestClassifier(4, random_state=0),
    "extra trees": ExtraTreesClassifier(4, max_depth=6, random_state=0),
    "boosted": GradientBoostingClassifier(n_estimators=4, random_state=0),
}


@pytest.mark.parametrize(
    "name", [n if n == "forest" else pytest.param(n, marks=HEAVY) for n in CLASSIFIERS]
)
def test_classes_are_those_of_scikit_learn(name):
    model = CLASSIFIERS[name].fit(X[SEEN], Y[SEEN])
    scores = reference.run(quantize(model, X[:300]), X[OTHERS])
    assert np.array_equal(scores.argmax(1), model.predict(X[OTHERS]))


@HEAVY
@pytest.mark.parametrize(
    "model",
    [
        DecisionTreeRegressor(max_depth=5, random_state=0),
        RandomForestRegressor(5, max_depth=5, random_state=0),
        GradientBoostingRegressor(n_estimators=8, random_state=0),
    ],
)
def test_predictions_are_those_of_scikit_learn(model):
    model.fit(X[SEEN], Y[SEEN])
    made = reference.run(quantize(model, X[:300]), X[OTHERS])
    assert np.abs(made.ravel() - model.predict(X[OTHERS])).max() < 0.01


@HEAVY
@pytest.mark.parametrize("executor", [Mpc("traffic"), He("traffic"), OneHost()], ids=repr)
def test_binned_features_in_every_engine(executor):
    """Two classes, thirty features that are fractions until they are binned."""
    x, y = load_breast_cancer(return_X_y=True)
    bins = KBinsDiscretizer(32, encode="ordinal", strategy="quantile").fit(x)
    x = bins.transform(x).astype(np.float32)
    model = GradientBoostingClassifier(n_estimators=3, max_depth=2, random_state=0).fit(x, y)
    graph = quantize(model, x)
    made = reference.run(graph, x)
    assert np.array_equal(made.ravel() > 0, model.predict(x) == 1)
    q = reference.quantize_input(graph, x[:3])
    got = executor.prepare(graph).run(q)[graph.output.name]
    assert np.array_equal(got, reference.run_int(graph, q))


@pytest.mark.parametrize(
    ("model", "x", "says"),
    [
        (DecisionTreeClassifier(max_depth=3), X / 7, "fractions.*KBinsDiscretizer"),
        (DecisionTreeClassifier(max_depth=3), X * 9, "144 apart"),
        (DecisionTreeRegressor(max_depth=3), X, "2 outputs"),
        (AdaBoostClassifier(n_estimators=2), X, "decision trees, random forests"),
    ],
    ids=["fractions", "far apart", "two outputs", "weighted votes"],
)
def test_others_are_refused_by_name(model, x, says):
    y = np.stack([Y, -Y], 1) if says == "2 outputs" else Y
    with pytest.raises(UnsupportedModule, match=says):
        quantize(model.fit(x, y), x[:50])
