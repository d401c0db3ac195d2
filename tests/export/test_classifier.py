"""The exported classifier answers as the one that was learned, on names of classes."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mae.data.reader import ShardReader
from mae.evaluation.logistic import fit_logistic
from mae.export.classifier import LearnedClassifier, learn_classifier, with_linear_head
from mae.export.description import EncoderDescription
from mae.files import read_json
from mae.model.artifact import load_encoder
from mae.params import Params, parse_params
from tests.small_project import Exported


def changed(params: Params, **sections: dict) -> Params:
    content = params.model_dump(mode="json", by_alias=True)
    for name, values in sections.items():
        content[name] |= values
    return parse_params(content)


@pytest.fixture
def inside(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> Exported:
    monkeypatch.chdir(exported.root)  # where the cache of features lies
    return exported


def test_file_names_classes_and_gives_probabilities(exported: Exported) -> None:
    session = onnxruntime.InferenceSession(
        exported.root / "artifacts/export/classifier.onnx", providers=["CPUExecutionProvider"]
    )
    about = EncoderDescription.from_metadata(session.get_modelmeta().custom_metadata_map)
    assert about.kind == "classifier"
    assert about.classes == ("bright", "dark")
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 16, 24), dtype=np.uint8)
    logits, probabilities = session.run(["logits", "probabilities"], {"images": images})
    assert logits.shape == probabilities.shape == (5, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    told = read_json(exported.root / "artifacts/export/export.json")
    assert told["classifier"]["kind"] == "logistic"
    assert about.metrics["classifier"]["accuracy"] == told["classifier"]["accuracy"]
    assert told["files"]["classifier.onnx"]["decisions"] == 1.0
    assert exported.numbers["max_abs_probabilities_classifier"] < 1e-4


def test_logistic_head_is_scikit_learns(inside: Exported) -> None:
    linear = {**inside.params.evaluate.linear.model_dump(mode="json"), "logistic_c": [0.3]}
    params = changed(inside.params, evaluate={"linear": linear})
    learned = learn_classifier(inside.pretrained, inside.shards, params)
    assert isinstance(learned, LearnedClassifier)
    assert learned.how == {"kind": "logistic", "feature": "mean", "c": 0.3}
    reader = ShardReader(inside.shards, "train")
    artifact = load_encoder(inside.pretrained)
    pixels = torch.stack([torch.tensor(reader.pixels(i)) for i in range(len(reader))])
    shown = pixels.permute(0, 3, 1, 2).double() / 255
    mean, std = artifact.statistics.mean[0], artifact.statistics.std[0]
    with torch.no_grad():
        images = ((shown - mean) / std).float()
        features = artifact.encoder(images).mean.double().numpy()
        got = learned.classifier(images)
    scaler = StandardScaler().fit(features)
    # Of two classes it learns one vector, whose half each of a softmax's two would be: the same
    # penalty is half as strong.
    oracle = LogisticRegression(C=0.6, max_iter=5000, tol=1e-8)
    oracle.fit(scaler.transform(features), reader.labels.numpy())
    expected = oracle.predict_proba(scaler.transform(features))
    np.testing.assert_allclose(got.softmax(dim=1).numpy(), expected, atol=2e-3)


def test_linear_head_has_the_standardisation_in_it() -> None:
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(90, 16, generator=draw) * 3 + 7
    labels = torch.arange(90) % 3
    model = fit_logistic(features, labels, 3, 1.0)

    class Encoder(torch.nn.Module):
        dim = 16

    head = with_linear_head(Encoder(), model, "cls").head
    torch.testing.assert_close(head(features), model.logits(features), atol=1e-4, rtol=1e-4)


def test_finetuned_learns_the_whole(inside: Exported) -> None:
    params = changed(
        inside.params,
        export={"classifier": "finetuned"},
        evaluate={
            "finetune": {
                **inside.params.evaluate.finetune.model_dump(mode="json"),
                "budgets": [{"labels_per_class": 2, "epochs": 2, "seeds": 1}],
                "blr": [1e-3, 1e-2],
                "batch": 16,
                "precision": "fp32",
            }
        },
    )
    learned = learn_classifier(inside.pretrained, inside.shards, params)
    assert isinstance(learned, LearnedClassifier)
    assert learned.how["kind"] == "finetuned"
    assert learned.how["blr"] in (1e-3, 1e-2)
    assert 0 <= learned.accuracy <= 1
    before = load_encoder(inside.pretrained).encoder.state_dict()
    after = learned.classifier.encoder.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before if "weight" in name)


def test_without_labels_there_is_none_and_a_reason(inside: Exported, tmp_path: Path) -> None:
    from mae.data.sharding.run import shard_dataset
    from tests.small_project import small_params

    flat = tmp_path / "flat"
    flat.mkdir()
    for index, image in enumerate(sorted((inside.root / "source").rglob("0*.png"))):
        (flat / f"{index}.png").write_bytes(image.read_bytes())
    shard_dataset("images", small_params(flat).data, 0, tmp_path / "shards")
    reason = learn_classifier(inside.pretrained, tmp_path / "shards", inside.params)
    assert isinstance(reason, str)
    assert "have no labels" in reason
