"""Protocols on features computed once, against running the encoder again in every epoch.

    python -m benchmarks.frozen_evaluation --json benchmarks/results/frozen_evaluation.json

The embedded digits and the default encoder, untrained: how long it takes does not depend on what
it has learned. All contenders take turns, each with its features deleted first, so computing and
keeping them is counted; `kept` finds them there, as the second protocol of an evaluation does.
Before anything is timed, the linear probe of both ways must reach the same accuracy: seeing the
whole image in every epoch, unflipped, the one that runs the encoder again learns the same.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.pretraining_step import context
from mae.data.sharding.run import shard_dataset
from mae.evaluation import feature_cache, knn, linear
from mae.evaluation.arms import frozen_arm
from mae.evaluation.features import FrozenArm
from mae.evaluation.labelled import LabelledSplit, train_and_test
from mae.evaluation.linear_probe import Prober
from mae.evaluation.minival import minival_rows
from mae.evaluation.neighbours import Bank
from mae.evaluation.scores import Scores
from mae.files import write_json
from mae.model.artifact import EncoderArtifact, random_encoder
from mae.model.encoder import Architecture
from mae.params import Params, parse_params, read_params
from mae.training.devices import Place

ROOT = Path(__file__).resolve().parents[1]
WHOLE_IMAGE = {"crop_area": [1.0, 1.0], "crop_aspect": [1.0, 1.0], "flip": False}


class Evaluation:
    """The digits, the encoder, and each way to measure what it is worth."""

    def __init__(self, shards: Path, images: int, place: Place) -> None:
        self.params = params_with(augment=None)
        shard_dataset("images", self.params.data, self.params.seed, shards)
        train, test = train_and_test(shards)
        self.train = spread(train, images)
        self.test = spread(test, images // 2)
        self.classes = train.reader.info.classes
        self.place = place
        self.arm = arm_of(self.params, train)
        self.contenders: dict[str, tuple[bool, Callable[[], Scores]]] = {
            "linear probe, encoder run in every epoch": (False, lambda: self.probe(WHOLE_IMAGE)),
            "linear probe": (False, lambda: self.probe(None)),
            "linear probe, features kept": (True, lambda: self.probe(None)),
            "k-NN": (False, self.knn),
            "k-NN, features kept": (True, self.knn),
            "logistic regression": (False, self.logistic),
            "logistic regression, features kept": (True, self.logistic),
        }

    def seconds(self, name: str) -> tuple[float, float, float]:
        """Return seconds by the clock, seconds of processor time, and the accuracy."""
        kept, measure = self.contenders[name]
        shutil.rmtree(feature_cache.FOLDER, ignore_errors=True)
        if kept:
            for split in (self.train, self.test):
                self.features(split)
        clock, processor = time.perf_counter(), time.process_time()
        scores = measure()
        return time.perf_counter() - clock, time.process_time() - processor, scores.top1

    def features(self, split: LabelledSplit) -> torch.Tensor:
        return feature_cache.features_of(self.arm, split, "cls", self.params, self.place)

    def probe(self, augment: dict[str, Any] | None) -> Scores:
        params = params_with(augment)
        prober = Prober(params, self.train, self.test, self.classes, self.arm, self.place)
        return prober.probe().runs[0]

    def knn(self) -> Scores:
        params = self.params.evaluate.knn
        result = knn.choose_and_test(
            Bank(self.features(self.train), self.train.labels, len(self.classes)),
            (self.features(self.test), self.test.labels),
            knn.choices(params, self.train, self.params),
            params.temperature,
            self.place.device,
        )
        return result.scores

    def logistic(self) -> Scores:
        rows = minival_rows(self.train, self.params.evaluate.minival, self.params.seed)
        learn = linear.classifiers(self.place.device)["logistic"]
        known, unknown = ((self.features(split), split.labels) for split in (self.train, self.test))
        grid = self.params.evaluate.linear.logistic_c
        return linear.choose_and_test(learn, known, unknown, len(self.classes), grid, rows).scores


def params_with(augment: dict[str, Any] | None) -> Params:
    """Return the defaults, with one seed and one rate of the linear probe."""
    content = read_params(ROOT / "params.yaml").model_dump(mode="json", by_alias=True)
    content["evaluate"]["linear_probe"] |= {"seeds": 1, "blr": [20.0], "augment": augment}
    return parse_params(content)


def spread(split: LabelledSplit, images: int) -> LabelledSplit:
    return split.take(torch.arange(images) * len(split) // images)


def arm_of(params: Params, train: LabelledSplit) -> FrozenArm:
    statistics = train.reader.info.statistics
    architecture = Architecture.from_params(params.model, statistics.channels)
    encoder = random_encoder(architecture, params.seed)
    info = {"resize": params.model.resize}
    return frozen_arm("untrained", EncoderArtifact(encoder, statistics, info))


def measure(images: int, rounds: int, threads: int) -> dict[str, Any]:
    place = Place(torch.device("cpu"))
    folder = Path(tempfile.mkdtemp(prefix="maestro-frozen-"))
    feature_cache.FOLDER = folder / "features"
    try:
        evaluation = Evaluation(folder / "shards", images, place)
        rerun, cached, *_ = evaluation.contenders
        accuracies = {name: evaluation.seconds(name)[2] for name in (rerun, cached)}
        if abs(accuracies[rerun] - accuracies[cached]) > 1.5 / len(evaluation.test):
            raise SystemExit(f"the two ways do not learn the same: {accuracies}")
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in evaluation.contenders}
        for number in range(rounds):
            for name in evaluation.contenders:
                times[name].append(evaluation.seconds(name)[:2])
                print(f"round {number + 1}: {name}: {times[name][-1][0]:.2f} s", flush=True)
    finally:
        shutil.rmtree(folder)
    return {
        "context": context(place.device, threads, rounds),
        "images": {"train": images, "test": len(evaluation.test)},
        "epochs": evaluation.params.evaluate.linear_probe.epochs,
        "accuracy": accuracies,
        "rows": [row(name, taken, times[rerun]) for name, taken in times.items()],
    }


def row(
    name: str, taken: list[tuple[float, float]], rerun: list[tuple[float, float]]
) -> dict[str, Any]:
    """Medians, and medians of the ratios round by round: what disturbs a round disturbs both."""
    pairs = list(zip(rerun, taken, strict=True))
    return {
        "contender": name,
        "seconds": round(statistics.median(one[0] for one in taken), 3),
        "processor_seconds": round(statistics.median(one[1] for one in taken), 3),
        "times_as_fast": round(statistics.median(a[0] / b[0] for a, b in pairs), 1),
        "times_by_processor": round(statistics.median(a[1] / b[1] for a, b in pairs), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=512, help="of train; half as many of test")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where to record the results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = measure(arguments.images, arguments.rounds, arguments.threads)
    print(json.dumps(results, indent=2))
    if arguments.json:
        write_json(arguments.json, results)


if __name__ == "__main__":
    main()
