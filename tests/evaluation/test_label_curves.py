import pytest
from hypothesis import given
from hypothesis import strategies as st

from mae.evaluation.label_curves import Curves, Run, labels_worth, may_be_chance

IMAGES = 1000


def runs_of(
    arm: str, by_labels: dict[int, list[float]], protocol: str = "logistic", all_labels: int = 1000
) -> list[Run]:
    return [
        Run(protocol, arm, labels / all_labels, labels, seed, accuracy, seconds=2.0)
        for labels, accuracies in by_labels.items()
        for seed, accuracy in enumerate(accuracies)
    ]


def curves_of(*runs: list[Run]) -> Curves:
    return Curves.of([run for part in runs for run in part], IMAGES)


def test_numbers_name_protocol_share_and_arm() -> None:
    curves = curves_of(
        runs_of("pretrained", {5: [0.4, 0.6], 1000: [0.9]}),
        runs_of("pixels", {5: [0.3, 0.3], 1000: [0.8]}),
    )
    assert curves.numbers() == {
        "accuracy_logistic_0_5_percent": pytest.approx(0.5),
        "accuracy_logistic_0_5_percent_std": pytest.approx(0.2 / 2**0.5),
        "accuracy_logistic_100_percent": 0.9,
        "accuracy_logistic_0_5_percent_pixels": pytest.approx(0.3),
        "accuracy_logistic_0_5_percent_pixels_std": pytest.approx(0.0),
        "accuracy_logistic_100_percent_pixels": 0.8,
    }


def test_a_point_is_described_with_its_interval_and_cost() -> None:
    curves = curves_of(runs_of("pretrained", {10: [0.5, 0.6, 0.7], 1000: [0.9]}))
    few, everything = curves.to_dict()["logistic"]["pretrained"]
    # Student's t for two degrees of freedom is 4.303; the standard error 0.1 / sqrt(3).
    assert few["interval"] == pytest.approx([0.6 - 0.2484, 0.6 + 0.2484], abs=1e-3)
    assert (few["interval_over"], few["labels"], few["seconds"]) == ("draws", 10, 2.0)
    assert everything["interval_over"] == "test images"
    assert everything["interval"][0] < 0.9 < everything["interval"][1]


def test_the_verdict_says_gain_uncertainty_and_worth() -> None:
    curves = curves_of(
        runs_of("pretrained", {10: [0.59, 0.60, 0.61], 1000: [0.9]}),
        runs_of("pixels", {10: [0.39, 0.40, 0.41], 1000: [0.8]}),
        runs_of("random", {10: [0.1, 0.1, 0.1], 1000: [0.3]}),
    )
    # Half-way from .4 to .8 along the logarithm: 10 x sqrt(100) = 100 labels, ten times as many.
    assert curves.verdict() == (
        "With 1 % of the labels (10) logistic regression on the pretrained encoder gains 20.0 "
        "points (± 0.0 over 3 draws) over the best without pretraining, logistic regression on "
        "raw pixels: 60.0 against 40.0 %, worth about as much as 10 times the labels."
    )


def test_the_rival_may_come_from_another_protocol() -> None:
    curves = curves_of(
        runs_of("pretrained", {10: [0.6, 0.6], 1000: [0.9, 0.9]}, "finetune"),
        runs_of("scratch", {10: [0.2, 0.2], 1000: [0.7, 0.7]}, "finetune"),
        runs_of("pretrained", {10: [0.3, 0.3], 1000: [0.5]}, "knn"),
        runs_of("pixels", {10: [0.5, 0.5], 1000: [0.55]}, "knn"),
    )
    verdict = curves.verdict()
    assert "fine-tuning on the pretrained encoder gains 10.0 points" in verdict
    assert "k-NN on raw pixels: 60.0 against 50.0 %" in verdict
    assert "which the other does not reach with 100 times the labels" in verdict


def test_what_the_user_named_is_no_rival_without_pretraining() -> None:
    curves = curves_of(
        runs_of("pretrained", {10: [0.6]}),
        runs_of("other", {10: [0.9]}),
        runs_of("random", {10: [0.2]}),
    )
    assert "a random encoder: 60.0 against 20.0 %" in curves.verdict()
    assert [one.baseline for one in curves.comparisons()] == ["other", "random encoder"]


def test_a_loss_is_called_one() -> None:
    curves = curves_of(runs_of("pretrained", {10: [0.3]}), runs_of("pixels", {10: [0.6]}))
    verdict = curves.verdict()
    assert "loses 30.0 points in a single run to the best without pretraining" in verdict
    assert "worth" not in verdict and "chance" not in verdict


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([0.5, 0.9, 0.6], [0.55, 0.4, 0.62]),  # the draws disagree
        ([0.51], [0.50]),  # within what 1,000 images can tell
    ],
)
def test_what_may_be_chance_is_said_to_be(ours: list[float], theirs: list[float]) -> None:
    curves = curves_of(runs_of("pretrained", {10: ours}), runs_of("pixels", {10: theirs}))
    assert curves.verdict().endswith("which may be chance.")


def test_a_classifier_without_chance_counts_for_all_seeds() -> None:
    curves = curves_of(
        runs_of("pretrained", {1000: [0.8, 0.9]}, "finetune"),
        runs_of("scratch", {1000: [0.1, 0.1]}, "finetune"),
        runs_of("pixels", {1000: [0.6]}, "knn"),
        runs_of("pretrained", {1000: [0.5]}, "knn"),
    )
    assert "With all 1000 labels" in curves.verdict()
    assert "gains 25.0 points" in curves.verdict() and "over 2 draws" in curves.verdict()


def test_comparisons_are_paired_and_the_most_telling_protocol_comes_first() -> None:
    curves = curves_of(
        runs_of("pretrained", {10: [0.3, 0.4]}, "knn"),
        runs_of("pixels", {10: [0.5, 0.6]}, "knn"),
        runs_of("pretrained", {10: [0.6, 0.6]}, "finetune"),
        runs_of("scratch", {10: [0.2, 0.2]}, "finetune"),
    )
    first, second = curves.comparisons()
    assert first.task == "Fine-tuning, 1 % of the labels (10)"
    assert first.baseline == "from scratch"
    assert (second.task, second.values) == ("K-NN, 1 % of the labels (10)", (0.5, 0.6))
    assert all(one.paired and one.images == IMAGES for one in (first, second))


@given(st.floats(0.2, 0.8))
def test_labels_worth_inverts_the_curve(accuracy: float) -> None:
    points = curves_of(runs_of("a", {10: [0.2], 100: [0.5], 1000: [0.8]})).by_protocol
    labels = labels_worth(accuracy, points["logistic"]["a"])
    assert labels is not None and 10 <= labels <= 1000 * (1 + 1e-9)
    before, rise = (10, accuracy - 0.2) if accuracy <= 0.5 else (100, accuracy - 0.5)
    assert labels == pytest.approx(before * 10 ** (rise / 0.3))


def test_labels_worth_at_the_ends_and_on_a_curve_that_falls() -> None:
    falling = curves_of(runs_of("a", {10: [0.5], 100: [0.3], 1000: [0.7]})).by_protocol
    points = falling["logistic"]["a"]
    assert labels_worth(0.4, points) == 10
    assert labels_worth(0.9, points) is None
    assert labels_worth(0.6, points) == pytest.approx(100 * 10**0.75)


def test_equal_arms_may_be_chance() -> None:
    point = curves_of(runs_of("a", {10: [0.5, 0.5]})).by_protocol["logistic"]["a"][0]
    assert may_be_chance([0.0, 0.0], point, point)
    assert not may_be_chance([0.3, 0.3], point, point)
