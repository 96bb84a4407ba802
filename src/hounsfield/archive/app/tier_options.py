"""[[tiers]], [[tier_rules]] and [tiering] as the engine has them; or one clear error.

Imports nothing heavy at first: the supervisor, which has no engine, checks what is configured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from hounsfield.archive.app.route_options import refuse_namesakes
from hounsfield.archive.config import Config
from hounsfield.archive.config.sections import TierEntry, TierRuleEntry
from hounsfield.archive.dicom.attributes import INSTANCE_LEVEL
from hounsfield.archive.dicom.rules import Rule, parse_rule
from hounsfield.archive.errors import ConfigError

if TYPE_CHECKING:
    from hounsfield.archive.engine.tier_rules import TierRule
    from hounsfield.archive.engine.tiers import TieringOptions, TierOptions
    from hounsfield.storage_backends.s3_store import S3Options

HOT: Final = "hot"
_WHAT_EXPIRE_KEEPS: Final = ("keep_years", "keep_until_age", "keep_from_study")


def check_tiers(config: Config) -> None:
    """Raise ConfigError for the first tier or tier rule that cannot be."""
    refuse_namesakes(config.tiers, "tiers")
    refuse_namesakes(config.tier_rules, "tier_rules")
    data = Path(config.archive.data).expanduser().absolute()
    places: dict[object, str] = {}
    for tier in config.tiers:
        _check_tier(tier)
        place = _place_of(tier)
        if isinstance(place, Path):
            _check_directory(tier.name, place, data.resolve(), places)
        if place in places:
            raise ConfigError(
                f"tiers {tier.name!r}: this is where tier {places[place]!r} is: a second copy there is none"
            )
        places[place] = tier.name
    names = [HOT, *(tier.name for tier in config.tiers)]
    for entry in config.tier_rules:
        _checked_rule(entry, names)


def tiering_options(config: Config, workers: int) -> TieringOptions:
    """What a configuration says of tiers, for one worker out of ``workers``. ConfigError."""
    from hounsfield.archive.engine.tier_planning import PlanLimits
    from hounsfield.archive.engine.tiers import TieringLimits, TieringOptions
    from hounsfield.archive.index.prefetching import PrefetchRule
    from hounsfield.storage_backends.range_cache import RangeCacheLimits

    check_tiers(config)
    tiering = config.tiering
    return TieringOptions(
        tiers=tuple(map(_tier, config.tiers)),
        rules=rules_of(config.tier_rules, [tier.name for tier in config.tiers]),
        limits=TieringLimits(
            plan_s=tiering.plan_minutes * 60,
            bytes_per_second=tiering.bytes_per_second,
            recall_when_opened=tiering.recall_when_opened,
            recalled_bytes_max=tiering.recalled_bytes_max,
            erase_s=config.compaction.erase_days * 86_400,
        ),
        plan=PlanLimits(quiet_s=tiering.quiet_minutes * 60, recalled_s=tiering.recalled_days * 86_400),
        prefetch=PrefetchRule(
            hours_before=config.prefetch.hours_before,
            priors_max=config.prefetch.priors_max,
            years_max=config.prefetch.years_max,
            only=config.prefetch.only,
        ),
        ranges=RangeCacheLimits(bytes_max=max(1 << 20, tiering.range_bytes_max // workers)),
    )


def rules_of(entries: Sequence[TierRuleEntry], tiers: Sequence[str]) -> tuple[TierRule, ...]:
    """Entries of [[tier_rules]] as the engine has them, with these tiers beside the hot one. ConfigError."""
    names = [HOT, *tiers]
    return tuple(_rule(entry, _checked_rule(entry, names)) for entry in entries)


def tried_rules(entries: Sequence[Any], tiers: Sequence[str]) -> tuple[TierRule, ...]:
    """The same of entries as JSON has them: rules that somebody tries. ConfigError."""
    try:
        checked = msgspec.convert(entries, tuple[TierRuleEntry, ...])
    except msgspec.ValidationError as error:
        raise ConfigError(f"tier_rules: {error}") from None
    refuse_namesakes(checked, "tier_rules")
    return rules_of(checked, tiers)


def _check_tier(tier: TierEntry) -> None:
    where = f"tiers {tier.name!r}"
    if tier.name == HOT:
        raise ConfigError(f"{where}: hot is the data directory itself; call this one otherwise")
    if bool(tier.directory) == bool(tier.bucket):
        raise ConfigError(f"{where}: name either a directory or a bucket")
    if tier.directory and (not Path(tier.directory).is_absolute() or "\0" in tier.directory):
        raise ConfigError(f"{where}: directory: write the whole path, from / on")
    if tier.bucket:
        _bucket(tier)


def _place_of(tier: TierEntry) -> object:
    """What two tiers must not share."""
    if tier.directory:
        return Path(tier.directory).resolve()
    return tier.endpoint.rstrip("/"), tier.bucket, tier.prefix.strip("/")


def _check_directory(tier: str, place: Path, data: Path, others: Mapping[object, str]) -> None:
    """That nothing of another tier, or of the archive itself, lies within it, or it within that."""
    where = f"tiers {tier!r}: directory"
    if place.is_relative_to(data):
        raise ConfigError(f"{where}: this is in the data directory; use another disk")
    if data.is_relative_to(place):
        raise ConfigError(f"{where}: the data directory is in it; make an empty one for the tier")
    for other, name in others.items():
        if isinstance(other, Path) and (other in place.parents or place in other.parents):
            raise ConfigError(f"{where}: of this and that of tier {name!r}, one is in the other")


def _bucket(tier: TierEntry) -> S3Options:
    from hounsfield.storage_backends.s3_store import S3Options

    try:
        return S3Options(
            bucket=tier.bucket,
            endpoint=tier.endpoint or None,
            region=tier.region,
            prefix=tier.prefix,
            path_style={"auto": None, "path": True, "host": False}[tier.path_style],
            ca_file=Path(tier.tls_ca) if tier.tls_ca else None,
            allow_http=tier.plain,
            credentials=tier.credentials,
        )
    except ValueError as error:
        raise ConfigError(f"tiers {tier.name!r}: {error}") from error


def _tier(entry: TierEntry) -> TierOptions:
    from hounsfield.archive.engine.tiers import TierOptions

    return TierOptions(
        name=entry.name,
        place=_bucket(entry) if entry.bucket else Path(entry.directory),
        requests_max=entry.requests_max,
        retry_s=entry.retry_seconds,
        silence_s=entry.silence_seconds,
        verify_s=entry.verify_days * 86_400,
    )


def _checked_rule(entry: TierRuleEntry, tiers: Sequence[str]) -> Rule:
    where = f"tier_rules {entry.name!r}"
    for name in entry.to:
        if name not in tiers:
            raise ConfigError(f"{where}: to: there is no tier {name!r}; there are {', '.join(tiers)}")
    if entry.action in {"move", "copy"} and not entry.to:
        raise ConfigError(f"{where}: name at least one tier in `to`")
    if entry.action not in {"move", "copy"} and entry.to:
        raise ConfigError(f"{where}: `to` is for move and copy")
    if entry.action in {"pin", "expire"} and entry.compress != "none":
        raise ConfigError(f"{where}: `compress` is for move, copy and recompress")
    if entry.action == "recompress" and entry.compress == "none":
        raise ConfigError(f"{where}: say as what, in `compress`")
    if entry.action == "expire":
        if not entry.keep_years:
            raise ConfigError(
                f"{where}: say in `keep_years` how long everything is kept before it is deleted"
            )
    elif any(getattr(entry, name) for name in _WHAT_EXPIRE_KEEPS):
        raise ConfigError(f"{where}: {', '.join(_WHAT_EXPIRE_KEEPS)} are for expire")
    if entry.fill_until and entry.fill_until > entry.fill_above:
        raise ConfigError(f"{where}: fill_until is above fill_above")
    if entry.bytes_max and entry.bytes_max < entry.bytes_min:
        raise ConfigError(f"{where}: bytes_max is below bytes_min")
    if entry.patient_age_max and entry.patient_age_max < entry.patient_age_min:
        raise ConfigError(f"{where}: patient_age_max is below patient_age_min")
    rule = parse_rule(entry.match, f"{where} match")
    if rule.tags & INSTANCE_LEVEL.keys():
        raise ConfigError(
            f"{where} match: tiers hold whole series: name attributes of studies and series only"
        )
    return rule


def _rule(entry: TierRuleEntry, rule: Rule) -> TierRule:
    from hounsfield.archive.engine.tier_rules import TierRule

    return TierRule(
        name=entry.name,
        rule=rule,
        action=entry.action,
        to=entry.to,
        compress="" if entry.compress == "none" else entry.compress,
        older_than_days=entry.older_than_days or None,
        not_opened_days=entry.not_opened_days or None,
        bytes_min=entry.bytes_min or None,
        bytes_max=entry.bytes_max or None,
        patient_age_min=entry.patient_age_min or None,
        patient_age_max=entry.patient_age_max or None,
        fill_above=entry.fill_above or None,
        fill_until=entry.fill_until or None,
        report_states=frozenset(entry.report_states),
        keep_years=entry.keep_years or None,
        keep_until_age=entry.keep_until_age or None,
        from_study=entry.keep_from_study,
    )
