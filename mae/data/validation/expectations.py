"""The gate between sharding and training: Great Expectations on the profiles of the manifests.

Great Expectations' own results hold random ids and times; the verdict made of them holds neither.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae.data.dataset import DatasetInfo
from mae.data.validation.drift import Drift, compare, read_reference
from mae.data.validation.profile import Profile, skipped_profile
from mae.data.validation.rules import Rule, Table, rules_for, tables_of
from mae.data.validation.verdict import Finding, Verdict
from mae.files import replacing_folder
from mae.params import ValidateParams

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.data_context import EphemeralDataContext
    from great_expectations.data_context.store.store import DataDocsSiteConfigTypedDict

__all__ = ["Finding", "Validation", "Verdict", "check_datasets", "validate_datasets"]

log = logging.getLogger(__name__)

_SITE = "local_site"
_DIGITS = 6


@dataclass(frozen=True)
class Validation:
    """verdict: what training depends on. profiles: dataset -> its profile, for later versions to
    be compared with. drifts: dataset -> what was found against the accepted version, if any."""

    verdict: Verdict
    profiles: dict[str, dict[str, Any]]
    drifts: dict[str, Drift]


def validate_datasets(
    infos: Sequence[DatasetInfo], params: ValidateParams, references: Path, docs_folder: Path
) -> Validation:
    """Judge the datasets by mae.data.validation.rules and build Great Expectations' Data Docs.

    references: folder of accepted profiles. Skipped datasets are not judged. The verdict may
    have failed: see `demand_passed`.
    """
    with replacing_folder(docs_folder) as temporary:
        context = _context()
        context.update_data_docs_site(_SITE, _site(temporary))
        found = _validate(context, infos, params, references)
        context.build_data_docs(site_names=[_SITE])
    for finding in found.verdict.worst_first():
        if finding.severity != "critical":
            level = logging.WARNING if finding.severity == "warning" else logging.INFO
            log.log(level, "%s", finding.sentence())
    return found


def check_datasets(
    infos: Sequence[DatasetInfo], params: ValidateParams, references: Path
) -> Validation:
    """Judge the datasets as `validate_datasets` does, without Data Docs."""
    return _validate(_context(), infos, params, references)


def _context() -> "EphemeralDataContext":
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    # It tells of a temporary folder that is gone by then.
    logging.getLogger(ProgressBarsConfig.__module__).setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    return context


def _site(folder: Path) -> "DataDocsSiteConfigTypedDict":
    return {
        "class_name": "SiteBuilder",
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        "store_backend": {
            "class_name": "TupleFilesystemStoreBackend",
            "base_directory": str(folder.resolve()),
        },
    }


def _validate(
    context: "EphemeralDataContext",
    infos: Sequence[DatasetInfo],
    params: ValidateParams,
    references: Path,
) -> Validation:
    findings: list[Finding] = []
    profiles: dict[str, dict[str, Any]] = {}
    drifts: dict[str, Drift] = {}
    for info in infos:
        if info.skipped:
            profiles[info.dataset] = skipped_profile(info)
            continue
        reference = read_reference(references, info.dataset)
        profile = Profile.of(info, params)
        profiles[info.dataset] = profile.to_dict()
        drift = None
        if reference is not None:
            drift = compare(reference, profiles[info.dataset], params.drift)
            drifts[info.dataset] = drift
        tables = tables_of(profile, drift)
        findings += _judge(context, info.dataset, tables, rules_for(profile, drift, params))
    fingerprints = {info.dataset: info.fingerprint for info in infos if not info.skipped}
    return Validation(Verdict.of(fingerprints, findings), profiles, drifts)


def _judge(
    context: "EphemeralDataContext",
    dataset: str,
    tables: dict[Table, "pd.DataFrame"],
    rules: list[Rule],
) -> list[Finding]:
    """Run the rules, a checkpoint for each table, and return findings in the rules' order.

    Drift within its limits is not kept: it would change the verdict, and with it what depends on
    it, whenever another version is accepted.
    """
    source = context.data_sources.add_pandas(dataset)
    found: dict[int, Finding] = {}
    for table in dict.fromkeys(rule.table for rule in rules):
        chosen = {number: rule for number, rule in enumerate(rules) if rule.table == table}
        batch = source.add_dataframe_asset(table).add_batch_definition_whole_dataframe("whole")
        name = f"{dataset}-{table}"
        results = _run(context, name, batch, tables[table], list(chosen.values()))
        for (number, rule), result in zip(chosen.items(), results, strict=True):
            finding = _finding(dataset, rule, result)
            if table != "drift" or not finding.success:
                found[number] = finding
    return [found[number] for number in sorted(found)]


def _run(
    context: "EphemeralDataContext",
    name: str,
    batch: Any,
    table: "pd.DataFrame",
    rules: Sequence[Rule],
) -> list[Any]:
    """Return the result of each rule, in order."""
    import great_expectations as gx

    suite = context.suites.add(gx.ExpectationSuite(name=name))
    for number, rule in enumerate(rules):
        arguments = {
            **rule.limit,
            "column": rule.column,
            "severity": rule.severity,
            "meta": {"rule": number, "subject": rule.subject},
        }
        suite.add_expectation(getattr(gx.expectations, rule.expectation)(**arguments))
    definition = context.validation_definitions.add(
        gx.ValidationDefinition(name=name, data=batch, suite=suite)
    )
    checkpoint = context.checkpoints.add(
        gx.Checkpoint(name=name, validation_definitions=[definition], actions=[])
    )
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
