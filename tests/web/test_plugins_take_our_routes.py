"""Routes of plugins lie below their own names, and nowhere else."""

from __future__ import annotations

import pytest
from starlette.routing import Route

from hounsfield.archive.errors import ConfigError
from hounsfield.archive.web.plugin_routes import PluginRoutes


def test_a_plugin_of_the_name_of_our_routes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"plugins\.dicom-web: the archive's own routes"):
        PluginRoutes({"dicom-web": []}, {"dicom-web", "metrics"})


@pytest.mark.parametrize(
    ("path", "is_theirs"),
    [("/mine", True), ("/mine/", True), ("/mine/a/b", True), ("/mineral", False), ("/", False), ("", False)],
)
def test_only_what_lies_below_the_name_is_theirs(path: str, is_theirs: bool) -> None:
    assert PluginRoutes({"mine": [Route("/", print)]}, ()).has(path) is is_theirs
    assert not PluginRoutes({}, ()).has(path)
