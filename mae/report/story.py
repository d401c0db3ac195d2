"""What the findings add up to: the one account that the page and the model card both give."""

from dataclasses import dataclass

from mae.report.classified import Classified, classified
from mae.report.comparisons import Answer, Comparison, answer, compare
from mae.report.data_summary import DataSummary, summarise
from mae.report.decision import Decision
from mae.report.findings import Findings
from mae.report.protocols import TASKS
from mae.report.provenance import Provenance, provenance_of


@dataclass(frozen=True)
class Story:
    """The findings, and what they say together.

    verdict: of the label budget, in a sentence. decision: the gate's, where this is about one.
    """

    findings: Findings
    answer: Answer
    verdict: str | None
    comparisons: list[Comparison]
    classified: Classified | None
    data: list[DataSummary]
    provenance: Provenance
    decision: Decision | None = None

    def compared(self, protocol: str) -> list[Comparison]:
        return [one for one in self.comparisons if one.protocol == protocol]

    @property
    def tasks(self) -> list[Comparison]:
        """The comparisons that belong beside each other, the most telling protocol first."""
        return [one for one in self.comparisons if one.protocol in TASKS]


def tell(findings: Findings, decision: Decision | None = None) -> Story:
    comparisons = compare(findings.results)
    budget = findings.results.get("label_budget")
    return Story(
        findings=findings,
        answer=answer(comparisons),
        verdict=budget.detail.get("verdict") if budget else None,
        comparisons=comparisons,
        classified=classified(findings),
        data=[summarise(info) for info in findings.datasets.values()],
        provenance=provenance_of(findings),
        decision=decision,
    )
