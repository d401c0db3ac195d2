"""The protocols as a reader meets them: names, what each measures, and where it is told."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Explained:
    """A protocol's name, and in a sentence what it measures."""

    title: str
    measures: str


@dataclass(frozen=True)
class Section:
    """A part of the page, and the protocols told there, in order. short: its heading in a word.
    together: all comparisons in one list, so that they can be held beside each other."""

    name: str
    short: str
    heading: str
    protocols: tuple[str, ...]
    together: bool = False


# In the order in which a reader wants them.
PROTOCOLS = {
    "finetune": Explained(
        "Fine-tuning",
        "The whole encoder learns the classes, beside the same network from scratch with the same "
        "labels and steps.",
    ),
    "label_budget": Explained(
        "Label budget",
        "Accuracy by share of the labels: what pretraining saves somebody who has few. Bands are "
        "95 % intervals.",
    ),
    "linear_probe": Explained(
        "Linear probe", "A linear layer learns on the frozen encoder, as in the MAE paper."
    ),
    "linear": Explained(
        "Linear classifiers",
        "Logistic regression and a linear SVM on frozen features, solved to their minimum.",
    ),
    "few_shot": Explained(
        "Few-shot", "Logistic regression on frozen features of a few labelled images per class."
    ),
    "partial": Explained(
        "Partial fine-tuning", "The last blocks learn and the others stay as they are."
    ),
    "lora": Explained(
        "Low-rank adapters", "The encoder stays as it is, and a few numbers beside it learn."
    ),
    "detection": Explained(
        "Detection", "Mask R-CNN on the encoder finds objects in scenes, beside one from scratch."
    ),
    "knn": Explained("k-NN", "The labels of the nearest training images vote: nothing is learned."),
    "retrieval": Explained(
        "Retrieval", "Test images ask, and the training images most like them answer."
    ),
    "robustness": Explained(
        "Robustness",
        "Classifiers that learned on clean images meet corrupted ones. Accuracy in percent; of a "
        "corruption, the mean over its severities.",
    ),
    "test_time": Explained(
        "Test-time training",
        "The encoder learns to reconstruct each test image before it is classified. Accuracy in "
        "percent on the same images, with and without.",
    ),
    "quality": Explained(
        "Label-free quality",
        "What can be said without labels: in how many directions the features vary, and how far "
        "pretraining moved them.",
    ),
}

# Labels come first: what they cost is why most people pretrain.
SECTIONS = (
    Section("labels", "Labels", "What it is worth in labels", ("label_budget", "few_shot")),
    Section(
        "tasks",
        "Tasks",
        "What the encoder is good for",
        ("finetune", "linear_probe", "linear", "detection", "knn"),
        together=True,
    ),
    Section("parts", "Parts", "Tuning a part of it", ("partial", "lora")),
    Section("conditions", "Robustness", "On worse images", ("robustness", "test_time")),
    Section("search", "Retrieval", "Finding images alike", ("retrieval",)),
    Section("features", "Features", "The features, without labels", ("quality",)),
)


TASKS = frozenset(name for part in SECTIONS if part.together for name in part.protocols)


def title_of(protocol: str) -> str:
    """Return the protocol's name; of one that is not known here, its key in words."""
    known = PROTOCOLS.get(protocol)
    return known.title if known else protocol.replace("_", " ").capitalize()


def stage_of(protocol: str) -> str:
    """Return the DVC stage that measures a protocol."""
    return "detect" if protocol == "detection" else f"evaluate@{protocol}"
