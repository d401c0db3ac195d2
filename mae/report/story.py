"""What the findings add up to: the one account that the page and the model card both give."""

from dataclasses import dataclass

from mae.report.comparisons import Answer, Comparison, answer, compare
from mae.report.data_summary import DataSummary, summarise
from mae.report.findings import Findings
from mae.report.provenance import Provenance, provenance_of


@dataclass(frozen=True)
class Story:
    """The findings, and what they say together."""

    findings: Findings
    answer: Answer
    comparisons: list[Comparison]
    data: list[DataSummary]
    provenance: Provenance


def tell(findings: Findings) -> Story:
    comparisons = compare(findings.results)
    return Story(
        findings=findings,
        answer=answer(comparisons),
        comparisons=comparisons,
        data=[summarise(info) for info in findings.datasets.values()],
        provenance=provenance_of(findings),
    )
