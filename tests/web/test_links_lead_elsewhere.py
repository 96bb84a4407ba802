"""Links in answers: right behind a proxy that is trusted, and never what a stranger says they should be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hounsfield.archive.config.load import ConfigError, load_config
from hounsfield.archive.config.safety import check_safety
from hounsfield.archive.web.forwarded import Forwarded
from hounsfield.archive.web.limits import WebSettings
from hounsfield.archive.web.urls import base_url

PROXY = "10.0.0.9"
TRUSTED = ("10.0.0.0/24", "2001:db8::/32")
EVIL = "evil.example"


async def seen(client: str = PROXY, **lines: str) -> str:
    found: list[str] = []

    async def app(scope, receive, send) -> None:
        found.append(base_url(scope, ""))

    scope = {
        "type": "http",
        "client": (client, 1234),
        "server": ("10.0.0.1", 8042),
        "scheme": "http",
        "headers": [(b"host", b"inner:8042")]
        + [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in lines.items()],
    }
    await Forwarded(app, TRUSTED)(scope, None, None)
    return found[0]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ({}, "http://inner:8042"),
        ({"forwarded": "for=192.0.2.1;proto=https;host=pacs.example"}, "https://pacs.example"),
        (
            {"forwarded": 'For="[2001:db9::1]:99"; Proto=HTTPS; Host="pacs.example:444"'},
            "https://pacs.example:444",
        ),
        ({"forwarded": "proto=https"}, "https://inner:8042"),
        ({"x_forwarded_proto": "https", "x_forwarded_host": "pacs.example"}, "https://pacs.example"),
        (
            {
                "x_forwarded_proto": "https",
                "x_forwarded_host": "pacs.example",
                "x_forwarded_prefix": "/pacs/",
            },
            "https://pacs.example/pacs",
        ),
        # The client's own header, to which a proxy adds.
        ({"forwarded": f"host={EVIL};proto=http, for=192.0.2.1;host=pacs.example"}, "http://pacs.example"),
        ({"x_forwarded_host": f"{EVIL}, pacs.example"}, "http://pacs.example"),
        # Two of our own proxies: the outer one knows what the client asked for.
        (
            {"forwarded": f"host={EVIL}, for=192.0.2.1;host=pacs.example;proto=https, for=10.0.0.8;host=b"},
            "https://pacs.example",
        ),
        ({"forwarded": 'for="[2001:db8::7]";host=pacs.example'}, "http://pacs.example"),
        # What cannot be a host or a path never gets into a link.
        ({"x_forwarded_host": 'a"><script>'}, "http://inner:8042"),
        ({"x_forwarded_host": "a/../b"}, "http://inner:8042"),
        ({"x_forwarded_proto": "javascript"}, "http://inner:8042"),
        ({"x_forwarded_prefix": "//evil.example"}, "http://inner:8042"),
        ({"x_forwarded_prefix": "pacs"}, "http://inner:8042"),
        ({"forwarded": "nonsense, =;", "x_forwarded_host": "pacs.example"}, "http://pacs.example"),
        ({"forwarded": "for=1;" * 5000 + "host=x"}, "http://x"),
        ({"forwarded": "host=a," * 100}, "http://inner:8042"),
    ],
)
async def test_what_a_trusted_proxy_says(lines, expected):
    assert await seen(**lines) == f"{expected}/dicom-web"


@pytest.mark.parametrize("client", ["192.0.2.1", "10.0.1.9", "::1", "not an address", "2001:db9::1"])
async def test_what_others_say_is_not_looked_at(client):
    said = {"forwarded": f"host={EVIL}", "x_forwarded_host": EVIL, "x_forwarded_prefix": "/evil"}
    assert await seen(client, **said) == "http://inner:8042/dicom-web"


async def test_addresses_in_other_words():
    for client in ("::ffff:10.0.0.9", "2001:db8::1%eth0", "2001:0db8:0::1"):
        assert await seen(client, x_forwarded_host="pacs.example") == "http://pacs.example/dicom-web"


@given(st.text(st.characters(max_codepoint=255, exclude_categories=["Cc"])))
def test_nothing_breaks_a_request(text):
    import trio

    for name in ("forwarded", "x_forwarded_host", "x_forwarded_prefix", "x_forwarded_proto"):
        url = trio.run(lambda name=name: seen(**{name: text}))
        assert url.endswith("/dicom-web")
        assert not set(url) & set(' "<>\\')


async def test_links_of_answers_over_a_connection(archives, sample, tmp_path):
    said = {"x-forwarded-proto": "https", "x-forwarded-host": "pacs.example", "x-forwarded-prefix": "/a"}
    for name, settings, expected in (
        ("trusted", WebSettings(trusted_proxies=("127.0.0.1",)), "https://pacs.example/a"),
        ("stranger", WebSettings(trusted_proxies=("192.0.2.1",)), None),
        ("nobody", WebSettings(), None),
        (
            "configured",
            WebSettings(base_url="https://fixed.example/", trusted_proxies=("127.0.0.1",)),
            "https://fixed.example",
        ),
    ):
        async with (
            archives(directory=tmp_path / name, settings=settings) as archive,
            archive.client() as client,
        ):
            result = await archive.put(sample["CT_small.dcm"])
            (one,) = (await client.get("/dicom-web/studies", headers=said)).json()
            base = f"{expected or archive.origin}/dicom-web/studies/{result.study_uid}"
            assert one["00081190"]["Value"] == [base]
            (model,) = (
                await client.get(f"/dicom-web/studies/{result.study_uid}/metadata", headers=said)
            ).json()
            assert model["7FE00010"]["BulkDataURI"].startswith(base)


def test_a_name_is_no_address():
    with pytest.raises(ConfigError, match="trusted_proxies"):
        check_safety(load_config(None, ['http.trusted_proxies=["proxy.example"]']))
