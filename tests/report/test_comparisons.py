"""The headline: what counts as a gain, and what the gains say together."""

import statistics

import pytest

from mae.evaluation.outcome import Compared
from mae.report.comparisons import Comparison, answer, compare, margin_of
from mae.report.findings import Result
from tests.report.made_up import results


def pair(
    *gains: float,
    protocol: str = "finetune",
    baseline: str = "from scratch",
    task: str = "Fine-tuning, all labels",
    reached: float = 0.5,
    images: int | None = None,
) -> Comparison:
    """Arms that differ by so much, seed by seed."""
    return Comparison(
        protocol,
        Compared(
            task=task,
            metric="top-1 accuracy",
            pretrained=tuple(reached + gain for gain in gains),
            baseline=baseline,
            values=(reached,) * len(gains),
            paired=True,
            images=images,
            deciding=protocol == "finetune",
        ),
    )


@pytest.mark.parametrize(
    ("gains", "outcome"),
    [
        ((0.1, 0.12, 0.11), "better"),
        ((-0.1, -0.12, -0.11), "worse"),
        ((0.1, -0.01, 0.1), "level"),
        ((0.001, 0.08, 0.01), "level"),
        ((0.0, 0.0, 0.0), "level"),
        ((0.1, 0.2), "level"),  # two seeds say little: their interval is 12.7 deviations wide
        ((0.2,), "better"),
        ((0.0,), "level"),
    ],
)
def test_a_gain_must_exceed_its_interval_over_seeds(gains: tuple[float, ...], outcome: str) -> None:
    assert pair(*gains).outcome == outcome


def test_margin_is_half_of_students_interval() -> None:
    """4.303 and 2.262: Student's 97.5 % quantiles with 2 and 9 degrees of freedom."""
    gains = [0.1, 0.2, 0.4]
    half = 4.3027 * statistics.stdev(gains) / 3**0.5
    assert pair(*gains).margin == pytest.approx(half, rel=1e-4)
    ten = [0.1 * i for i in range(10)]
    assert margin_of(ten) == pytest.approx(2.2622 * statistics.stdev(ten) / 10**0.5, rel=1e-4)
    assert pair(0.1).margin is None


def test_arms_whose_seeds_are_no_pairs_add_their_margins_in_squares() -> None:
    def arms(pretrained: tuple[float, ...], values: tuple[float, ...]) -> Comparison:
        return Comparison("linear_probe", Compared("t", "m", pretrained, "random encoder", values))

    first, second = (0.8, 0.82, 0.84), (0.5, 0.53, 0.56)
    both = arms(first, second)
    assert both.gains == ()
    margins = [margin_of(values) or 0.0 for values in (first, second)]
    assert both.margin == pytest.approx((margins[0] ** 2 + margins[1] ** 2) ** 0.5)
    assert arms(first, (0.5,)).margin == margin_of(first)
    assert arms((0.8,), (0.5,)).margin is None


def test_a_single_run_counts_only_beyond_chance() -> None:
    def lead(gain: float, images: int) -> str:
        return pair(gain, reached=0.228, images=images).outcome

    assert lead(0.023, 395) == "level"  # two standard errors are about 0.06 there
    assert lead(0.023, 40_000) == "better"
    assert lead(-0.10, 395) == "worse"


@pytest.mark.parametrize(
    ("gains", "short"),
    [
        ([(0.1, 0.11), (0.001, -0.001)], "Yes"),
        ([(0.1, 0.11), (-0.1, -0.11)], "It depends"),
        ([(0.001, -0.001)], "Not clearly"),
        ([(-0.1, -0.11), (0.001, -0.001)], "No"),
        ([], "Not measured"),
    ],
)
def test_headline(gains: list[tuple[float, ...]], short: str) -> None:
    assert answer([pair(*one) for one in gains]).short == short


def test_fine_tuning_decides_where_it_was_measured() -> None:
    lost = pair(-0.2, -0.21, protocol="knn", baseline="raw pixels", task="k-NN")
    probe = pair(0.2, 0.21, protocol="linear_probe", baseline="random encoder", task="Probe")
    assert answer([pair(0.1, 0.11), lost]).short == "Yes"
    assert answer([lost, probe]).protocol == "linear_probe"
    assert answer([lost]).short == "No"


def test_without_fine_tuning_the_best_baseline_of_a_task_counts() -> None:
    random = pair(0.4, protocol="knn", baseline="random encoder", reached=0.2)
    pixels = pair(-0.2, protocol="knn", baseline="raw pixels", reached=0.8)
    said = answer([random, pixels])
    assert said.short == "No"
    assert "raw pixels" in said.sentence and "random encoder" not in said.sentence


def test_other_encoders_and_worse_images_say_nothing_of_pretraining() -> None:
    added = pair(-0.3, protocol="linear", baseline="timm_mae")
    adapted = pair(0.3, protocol="test_time", baseline="the encoder as pretrained")
    corrupted = pair(0.3, protocol="robustness", baseline="random encoder")
    assert answer([added, adapted, corrupted]).short == "Not measured"


def test_results_say_themselves_what_they_compared() -> None:
    content = {name: Result.of(name, one) for name, one in results().items()}
    content["new"] = Result.of("new", {"comparisons": [results()["knn"]["comparisons"][0]]})
    found = compare(content)
    assert [(one.protocol, one.compared.task, one.compared.baseline) for one in found] == [
        ("finetune", "Fine-tuning, 10 labels per class", "from scratch"),
        ("finetune", "Fine-tuning, all labels", "from scratch"),
        ("linear_probe", "Linear probe", "random encoder"),
        ("knn", "k nearest neighbours", "random encoder"),
        ("knn", "k nearest neighbours", "raw pixels"),
        ("new", "k nearest neighbours", "random encoder"),
    ]
    assert found[0].gain == pytest.approx(0.293)
    assert [one.outcome for one in found] == [
        "better",
        "level",
        "better",
        "better",
        "level",
        "better",
    ]
    assert "(±\u00a04.5 over 3 seeds)" in answer(found).sentence
    assert "which may be chance" in answer(found).sentence
