"""A tier or a rule that cannot be is one clear error before anything starts; one that can is what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from hounsfield.archive.app.tier_options import check_tiers, tiering_options
from hounsfield.archive.config import load_config
from hounsfield.archive.engine.tiers import open_place
from hounsfield.archive.errors import ConfigError
from hounsfield.storage_backends.late_store import LateStore
from hounsfield.storage_backends.s3_store import S3Options
from hounsfield.storage_backends.store_wrappers import TimedOut

COLD = '[[tiers]]\nname = "cold"\ndirectory = "/mnt/cold"\n'
RULE = '[[tier_rules]]\nname = "r"\n'


def options_of(tmp_path: Path, text: str, workers: int = 2):  # type: ignore[no-untyped-def]
    file = tmp_path / "config.toml"
    file.write_text(text, encoding="utf-8")
    return tiering_options(load_config(file), workers)


def test_what_the_example_says(root_directory: Path, tmp_path: Path) -> None:
    import re

    text = (root_directory / "config.toml").read_text(encoding="utf-8")
    alive = re.sub(r"^# (?=\[\[tier|\w+ = )", "", text[text.index("# [[tiers]]") :], flags=re.MULTILINE)
    found = options_of(tmp_path, alive)
    (cold,), (old_ct,) = found.tiers, found.rules
    assert cold.place == S3Options("hounsfield", "https://s3.example.org")
    assert (cold.requests_max, cold.retry_s, cold.verify_s) == (16, 60.0, 90 * 86_400.0)
    assert cold.silence_s == 20.0
    assert (old_ct.action, old_ct.to, old_ct.compress) == ("move", ("cold",), "")
    assert (old_ct.older_than_days, old_ct.not_opened_days, old_ct.bytes_min) == (365.0, 90.0, None)
    assert old_ct.fill_above is None
    assert old_ct.keep_years is None


def test_how_long_a_silent_place_is_waited_for(tmp_path: Path) -> None:
    bucket = '[[tiers]]\nname = "far"\nbucket = "b"\nendpoint = "https://s3.example.org"\n'
    found = options_of(tmp_path, f"{COLD}silence_seconds = 1.5\n{bucket}silence_seconds = 90\n")
    assert [one.silence_s for one in found.tiers] == [1.5, 90.0]
    cold, far = map(open_place, found.tiers)
    assert isinstance(cold, TimedOut)
    assert cold._seconds == 1.5
    assert isinstance(far, LateStore)
    limits = far._opened()._limits  # type: ignore[attr-defined]
    assert limits.silence_s == limits.request_s == 90.0
    far.close()


def test_the_memory_for_distant_stretches_is_the_archives(tmp_path: Path) -> None:
    found = options_of(tmp_path, "[tiering]\nrange_bytes_max = 100000000\nplan_minutes = 5\n", workers=4)
    assert found.ranges.bytes_max == 25_000_000
    assert found.limits.plan_s == 300.0
    assert not found.tiers
    assert not found.rules


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[[tiers]]\nname = "hot"\ndirectory = "/x"\n', "hot is the data directory itself"),
        ('[[tiers]]\nname = "cold"\n', "either a directory or a bucket"),
        ('[[tiers]]\nname = "cold"\ndirectory = "/x"\nbucket = "b"\n', "either a directory or a bucket"),
        ('[[tiers]]\nname = "cold"\ndirectory = "x"\n', "the whole path"),
        (
            '[[tiers]]\nname = "cold"\nbucket = "b"\nendpoint = "http://10.0.0.1"\n',
            "tiers 'cold': http://10.0.0.1 is without TLS",
        ),
        (
            '[[tiers]]\nname = "cold"\nbucket = "b"\nendpoint = "https://me:secret@10.0.0.1"\n',
            "an endpoint holds no keys",
        ),
        (
            '[[tiers]]\nname = "cold"\nbucket = "b"\ncredentials = "AKIA:secret"\n',
            "tiers 'cold': credentials are default",
        ),
        ('[[tiers]]\nname = "cold"\nbucket = "b"\ncredentials = "profile:"\n', "profile:NAME"),
        ('[[tiers]]\nname = "cold"\ndirectory = "/x\\u0000y"\n', "the whole path"),
        ('[archive]\ndata = "/mnt/cold/a"\n[[tiers]]\nname = "cold"\ndirectory = "/mnt/cold"\n', "is in it"),
        (
            '[[tiers]]\nname = "a"\ndirectory = "/x/packs"\n[[tiers]]\nname = "b"\ndirectory = "/x"\n',
            "one is in the other",
        ),
        (COLD + COLD, "listed more than once"),
        (COLD + COLD.replace('"cold"', '"too"').replace("/mnt/", "/mnt//x/../"), "where tier 'cold' is"),
        ('[archive]\ndata = "/mnt"\n' + COLD, "in the data directory"),
        (COLD + RULE + 'action = "move"\n', "name at least one tier in `to`"),
        (
            COLD + RULE + 'action = "move"\nto = ["cool"]\n',
            "no tier 'cool'; there are hot, cold",
        ),
        (COLD + RULE + 'action = "pin"\nto = ["cold"]\n', "`to` is for move and copy"),
        (RULE + 'action = "pin"\ncompress = "zstd"\n', "`compress` is for"),
        (RULE + 'action = "recompress"\n', "say as what"),
        (RULE + 'action = "expire"\n', "keep_years"),
        (RULE + 'action = "pin"\nkeep_until_age = 3\n', "are for expire"),
        (RULE + 'action = "pin"\nfill_above = 0.5\nfill_until = 0.6\n', "fill_until is above"),
        (RULE + 'action = "pin"\nbytes_min = 5\nbytes_max = 4\n', "bytes_max is below"),
        (RULE + 'action = "pin"\npatient_age_min = 5\npatient_age_max = 4\n', "patient_age_max is below"),
        (RULE + 'action = "pin"\nmatch = { ImageType = "*" }\n', "tier_rules 'r' match"),
        (RULE + 'action = "pin"\nmatch = { NumberOfFrames = "7" }\n', "studies and series"),
        (RULE + 'action = "pin"\nmatch = { Modalit = "CT" }\n', "did you mean"),
    ],
)
def test_what_cannot_be_is_said(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match="tier") as caught:
        options_of(tmp_path, text)
    assert expected in str(caught.value)
    file = tmp_path / "config.toml"
    with pytest.raises(ConfigError):
        check_tiers(load_config(file))
    assert "secret" not in str(caught.value)
