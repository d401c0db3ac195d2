"""Where the numbers of a report come from, gathered from the context that each one carries."""

from dataclasses import dataclass
from typing import Any

from mae.report.findings import Findings


@dataclass(frozen=True)
class Provenance:
    """Distinct commits, machines and versions behind the numbers; warnings where they disagree."""

    commits: list[str]
    machines: list[str]
    versions: dict[str, str]
    seeds: list[int]
    params: dict[str, Any]
    warnings: list[str]


def provenance_of(findings: Findings) -> Provenance:
    contexts = [result.context for result in findings.results.values() if result.context]
    training = findings.encoder["training"] if findings.encoder else {}
    commits = [context.get("commit") for context in contexts] + [training.get("commit")]
    params: dict[str, Any] = dict(training.get("params", {}))
    versions: dict[str, str] = {}
    for context in contexts:
        params |= context.get("params", {})
        versions |= context.get("versions", {})
    return Provenance(
        commits=sorted({commit for commit in commits if commit}),
        machines=sorted({machine_of(context["hardware"]) for context in contexts}),
        versions=versions,
        seeds=sorted({context["seed"] for context in contexts}),
        params=params,
        warnings=_warnings(findings, sorted({commit for commit in commits if commit})),
    )


def machine_of(hardware: dict[str, Any]) -> str:
    """Return the processor, its cores and the GPU in words."""
    where = f"{hardware['cpu']}, {hardware['cores']} cores"
    return f"{where}, {hardware['gpu']}" if hardware.get("gpu") else f"{where}, no GPU"


def _warnings(findings: Findings, commits: list[str]) -> list[str]:
    warnings = []
    if len(commits) > 1:
        warnings.append(f"The numbers were made by {len(commits)} different versions of the code.")
    if any(commit.endswith("-dirty") for commit in commits):
        warnings.append("Some numbers were made with changes that were not committed.")
    now = findings.encoder and findings.encoder["training"]
    others = [
        protocol
        for protocol, result in findings.results.items()
        if now and result.encoder and result.encoder["training"] != now
    ]
    if others:
        warnings.append(f"{', '.join(others)}: measured on another encoder than the one here.")
    return warnings + _other_data(findings)


def _other_data(findings: Findings) -> list[str]:
    now = {info.fingerprint for info in findings.datasets.values()}
    used = {
        protocol: result.context["data_fingerprint"]
        for protocol, result in findings.results.items()
        if "data_fingerprint" in result.context
    }
    stale = [protocol for protocol, fingerprint in used.items() if fingerprint not in now]
    if not now or not stale:
        return []
    return [f"{', '.join(stale)}: measured on other data than the shards described here."]
