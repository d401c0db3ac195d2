import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from mae.errors import DataError
from mae.evaluation import logistic
from mae.evaluation.logistic import choose_logistic, fit_logistic


def overlapping(count: int, dim: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features of unequal scales, far from zero, along few axes, of classes that overlap."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    mixing = torch.randn(dim, dim, generator=torch.Generator().manual_seed(98))
    points = torch.randn(count, dim, generator=generator) + 0.4 * centres[labels]
    return points @ (mixing * torch.logspace(0, -2, dim)) * torch.logspace(-2, 2, dim) + 5, labels


def theirs(features: Tensor, labels: Tensor, c: float) -> tuple[np.ndarray, object]:
    model = LogisticRegression(C=c, tol=1e-8, max_iter=10_000)
    pipeline = make_pipeline(StandardScaler(), model).fit(features.double(), labels)
    return model.coef_, pipeline


@pytest.mark.parametrize("c", [0.01, 1.0])
@pytest.mark.parametrize(("count", "dim"), [(400, 24), (30, 48)])
def test_agrees_with_scikit_learn(count: int, dim: int, c: float) -> None:
    features, labels = overlapping(count, dim, classes=5)
    unseen, _ = overlapping(300, dim, classes=5, seed=1)
    found = fit_logistic(features, labels, 5, c)
    weight, pipeline = theirs(features, labels, c)
    np.testing.assert_allclose(found.weight, weight, atol=1e-3)
    shares = pipeline.predict_proba(unseen.double())  # type: ignore[attr-defined]
    np.testing.assert_allclose(found.logits(unseen).softmax(1), shares, atol=1e-3)
    assert found.logits(unseen).argmax(1).tolist() == shares.argmax(1).tolist()


def test_two_classes_are_two_halves_of_the_binary_weight() -> None:
    features, labels = overlapping(200, 6, classes=2)
    found = fit_logistic(features, labels, 2, c=0.5)
    # |w|^2 is shared by two rows w/2 and -w/2, so it weighs half as much as in the binary form.
    weight, _ = theirs(features, labels, c=1.0)
    np.testing.assert_allclose(found.weight[1] - found.weight[0], weight[0], atol=1e-3)


def test_stretches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = overlapping(200, 12, classes=3)
    whole = fit_logistic(features, labels, 3, 1.0)
    monkeypatch.setattr(logistic, "_ROWS", 37)
    parts = fit_logistic(features, labels, 3, 1.0)
    torch.testing.assert_close(parts.weight, whole.weight, atol=1e-4, rtol=0)
    torch.testing.assert_close(parts.logits(features), whole.logits(features), atol=1e-3, rtol=1e-3)


def test_the_same_each_time_and_threads_are_left_as_they_were() -> None:
    features, labels = overlapping(100, 8, classes=3)
    threads = torch.get_num_threads()
    one, other = (fit_logistic(features, labels, 3, 1.0) for _ in range(2))
    assert torch.equal(one.weight, other.weight) and torch.equal(one.bias, other.bias)
    assert torch.get_num_threads() == threads


def test_a_feature_that_never_varies_carries_nothing() -> None:
    features, labels = overlapping(100, 8, classes=3)
    features[:, 3] = 0.1
    found = fit_logistic(features, labels, 3, 1.0)
    assert found.logits(features).isfinite().all()
    assert float(found.weight[:, 3].abs().max()) < 1e-6


def test_a_class_that_none_of_the_images_has_is_never_predicted() -> None:
    features, labels = overlapping(90, 8, classes=3)
    found = fit_logistic(features, labels, 4, 1.0)
    assert 3 not in found.logits(features).argmax(1).tolist()


def test_labels_of_one_class_are_refused() -> None:
    with pytest.raises(DataError, match="all of one class"):
        fit_logistic(torch.rand(5, 3), torch.ones(5, dtype=torch.int64), 2, 1.0)


def test_the_regularisation_is_chosen_on_minival() -> None:
    fit, minival = overlapping(40, 24, classes=4), overlapping(200, 24, classes=4, seed=1)
    chosen, accuracy = choose_logistic(fit, minival, 4, [10.0, 1e-4, 0.01])
    for c, value in accuracy.items():
        predicted = fit_logistic(*fit, 4, c).logits(minival[0]).argmax(1)
        assert value == pytest.approx(float((predicted == minival[1]).double().mean()))
    assert accuracy[chosen] == max(accuracy.values())
    assert chosen == min(c for c in accuracy if accuracy[c] == accuracy[chosen])
