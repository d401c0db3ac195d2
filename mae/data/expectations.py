"""The gate between sharding and training: Great Expectations on the manifests, and a verdict.

Great Expectations' own results hold random ids and times; the verdict holds neither, so equal
data gives equal bytes, and training depends on the verdict alone.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae.data.dataset import DatasetInfo
from mae.data.profile import Profile
from mae.data.rules import Rule, Severity, rules_for
from mae.errors import DataError
from mae.files import read_json, replacing_folder
from mae.params import ValidateParams

if TYPE_CHECKING:
    from great_expectations.data_context import EphemeralDataContext

log = logging.getLogger(__name__)

_SITE = "local_site"
_DIGITS = 6


@dataclass(frozen=True)
class Finding:
    """What one expectation found. observed: the value, or the share of rows that break it."""

    dataset: str
    expectation: str
    column: str | None
    severity: Severity
    success: bool
    observed: Any
    limit: dict[str, Any]
    subject: str
    advice: str

    def sentence(self) -> str:
        bounds = {"min_value": "at least", "max_value": "at most", "value_set": "values allowed:"}
        wanted = [f"{bounds[name]} {_plain(value)}" for name, value in self.limit.items()]
        limit = " and ".join(wanted) or "none allowed"
        return f"{self.dataset}: {self.subject} is {_plain(self.observed)} ({limit}): {self.advice}"


@dataclass(frozen=True)
class Verdict:
    """Whether the data may be trained on. fingerprints: of each dataset judged."""

    passed: bool
    fingerprints: dict[str, str]
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "fingerprints": self.fingerprints,
            "expectations": [asdict(finding) for finding in self.findings],
        }

    @classmethod
    def read(cls, path: Path) -> "Verdict":
        """Read a verdict.json. Raises DataError where there is none."""
        try:
            content = read_json(path)
        except FileNotFoundError:
            raise DataError(f"{path} does not exist: run `dvc repro validate` first") from None
        findings = tuple(Finding(**finding) for finding in content["expectations"])
        return cls(content["passed"], content["fingerprints"], findings)

    def demand_valid(self, info: DatasetInfo) -> None:
        """Raise DataError when the data failed, or when another state of them was judged."""
        self.demand_passed()
        if self.fingerprints.get(info.dataset) != info.fingerprint:
            raise DataError(
                f"{info.dataset}: the shards have changed since they were validated: "
                "run `dvc repro validate` first"
            )

    def failures(self, severity: Severity) -> list[Finding]:
        return [one for one in self.findings if one.severity == severity and not one.success]

    def demand_passed(self) -> None:
        """Raise DataError that names every critical failure, its value and its limit."""
        failures = [failure.sentence() for failure in self.failures("critical")]
        if failures:
            raise DataError("the data failed validation. " + "; ".join(failures))


def validate_datasets(
    images: DatasetInfo, scenes: DatasetInfo | None, params: ValidateParams, docs_folder: Path
) -> Verdict:
    """Judge the datasets by mae.data.rules and build Great Expectations' Data Docs.

    Skipped scenes are not judged. The verdict may have failed: see `demand_passed`.
    """
    judged = [info for info in (images, scenes) if info is not None and not info.skipped]
    with replacing_folder(docs_folder) as temporary:
        context = _context(temporary)
        findings = [
            finding for info in judged for finding in _judge(context, Profile.of(info), params)
        ]
        context.build_data_docs(site_names=[_SITE])
    for finding in findings:
        if not finding.success and finding.severity != "critical":
            level = logging.WARNING if finding.severity == "warning" else logging.INFO
            log.log(level, "%s", finding.sentence())
    return Verdict(
        passed=all(one.success for one in findings if one.severity == "critical"),
        fingerprints={info.dataset: info.fingerprint for info in judged},
        findings=tuple(findings),
    )


def _context(docs: Path) -> "EphemeralDataContext":
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    context.update_data_docs_site(
        _SITE,
        {
            "class_name": "SiteBuilder",
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "store_backend": {
                "class_name": "TupleFilesystemStoreBackend",
                "base_directory": str(docs.resolve()),
            },
        },
    )
    return context


def _judge(
    context: "EphemeralDataContext", profile: Profile, params: ValidateParams
) -> list[Finding]:
    """Run the rules, a checkpoint for each table, and return findings in the rules' order."""
    rules = rules_for(profile, params)
    dataset = profile.info.dataset
    source = context.data_sources.add_pandas(dataset)
    found: dict[int, Finding] = {}
    for table in dict.fromkeys(rule.table for rule in rules):
        chosen = {number: rule for number, rule in enumerate(rules) if rule.table == table}
        batch = source.add_dataframe_asset(table).add_batch_definition_whole_dataframe("whole")
        results = _run(context, f"{dataset}-{table}", batch, profile, list(chosen.values()))
        for (number, rule), result in zip(chosen.items(), results, strict=True):
            found[number] = _finding(dataset, rule, result)
    return [found[number] for number in sorted(found)]


def _run(
    context: "EphemeralDataContext",
    name: str,
    batch: Any,
    profile: Profile,
    rules: Sequence[Rule],
) -> list[Any]:
    """Return the result of each rule, in order."""
    import great_expectations as gx

    suite = context.suites.add(gx.ExpectationSuite(name=name))
    for number, rule in enumerate(rules):
        arguments = {**rule.limit, "severity": rule.severity, "meta": {"rule": number}}
        if rule.column is not None:
            arguments["column"] = rule.column
        suite.add_expectation(getattr(gx.expectations, rule.expectation)(**arguments))
    definition = context.validation_definitions.add(
        gx.ValidationDefinition(name=name, data=batch, suite=suite)
    )
    checkpoint = context.checkpoints.add(
        gx.Checkpoint(name=name, validation_definitions=[definition], actions=[])
    )
    table = getattr(profile, rules[0].table)
    (outcome,) = checkpoint.run(batch_parameters={"dataframe": table}).run_results.values()
    by_rule = {}
    for result in outcome.results:
        assert result.expectation_config is not None
        by_rule[result.expectation_config.meta["rule"]] = result
    return [by_rule[number] for number in range(len(rules))]


def _finding(dataset: str, rule: Rule, result: Any) -> Finding:
    if "raised_exception': True" in str(result.exception_info):
        raise RuntimeError(f"Great Expectations failed on {rule}: {result.exception_info}")
    content = result.result
    if "observed_value" in content and "missing_count" not in content:
        observed = content["observed_value"]
    elif "unexpected_percent" in content:
        observed = (content["unexpected_percent"] or 0.0) / 100
    else:  # a set of values: say which of those expected are there
        absent = set(content.get("partial_missing_list") or ())
        observed = [value for value in rule.limit["value_set"] if value not in absent]
    return Finding(
        dataset=dataset,
        expectation=rule.expectation,
        column=rule.column,
        severity=rule.severity,
        success=bool(result.success),
        observed=_canonical(observed),
        limit=rule.limit,
        subject=rule.subject,
        advice=rule.advice,
    )


def _canonical(value: Any) -> Any:
    """Return numbers as plain Python ones, fractions rounded to what a reader can use."""
    if isinstance(value, list | str | None):
        return value
    number = float(value)
    return int(number) if number.is_integer() else round(number, _DIGITS)


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
