"""What looks through the built site finds what is wrong with it; `make docs` builds the site itself."""

from __future__ import annotations

from pathlib import Path

from docs.site.built import faults


def test_a_site_whose_links_lead_somewhere_has_no_fault(tmp_path: Path) -> None:
    (tmp_path / "one.html").write_text(
        '<a id="here"></a><a href="two.html#there">2</a><a href="#here">1</a><a href="https://example.org/">elsewhere</a>'
    )
    (tmp_path / "two.html").write_text('<h1 id="there"></h1><link href="site.css"><img src="data:image/png;base64,">')
    (tmp_path / "site.css").write_text("h1 { background: url(data:image/png;base64,) }")
    assert faults(tmp_path) == []


def test_links_that_lead_nowhere_and_what_is_loaded_from_elsewhere_are_found(tmp_path: Path) -> None:
    (tmp_path / "one.html").write_text(
        '<a href="no.html">a</a><a href="#no">b</a><a href="two.html#no">c</a>'
        '<script src="https://example.org/a.js"></script><link href="//example.org/b.css">'
    )
    (tmp_path / "two.html").write_text("")
    (tmp_path / "site.css").write_text('@font-face { src: url("https://example.org/c.woff") }')
    assert faults(tmp_path) == [
        "one.html: #no has no such anchor",
        "one.html loads //example.org/b.css",
        "one.html loads https://example.org/a.js",
        "one.html: no.html is not there",
        "one.html: two.html#no has no such anchor",
        "site.css loads something from elsewhere",
    ]


def test_a_site_without_pages_is_a_fault(tmp_path: Path) -> None:
    assert faults(tmp_path) == [f"{tmp_path} has no page"]
