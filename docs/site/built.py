"""Looks through the built site: every link within it leads somewhere, and a page loads nothing from elsewhere.

python docs/site/built.py build/site
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

LOADED: Final = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href", "object": "data"}
"""What a browser fetches without being asked, by the attribute that names it."""


class Page(HTMLParser):
    """The anchors of a page, its links, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        of = {name: value for name, value in attrs if value is not None}
        self.anchors |= {of[name] for name in ("id", "name") if name in of}
        if tag == "a" and "href" in of:
            self.links.add(of["href"])
        if (attribute := LOADED.get(tag)) is not None and attribute in of:
            self.loaded.add(of[attribute])


def faults(site: Path) -> list[str]:
    """What is wrong with a site, one line each."""
    pages = {file.resolve(): Page(file.read_text()) for file in sorted(site.rglob("*.html"))}
    found = [] if pages else [f"{site} has no page"]
    for file, page in pages.items():
        name = file.relative_to(site.resolve())
        for target in sorted(page.loaded | page.links):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                if target in page.loaded and parts.scheme != "data":
                    found.append(f"{name} loads {target}")
                continue
            to = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            if not to.is_file():
                found.append(f"{name}: {target} is not there")
            elif parts.fragment and to in pages and unquote(parts.fragment) not in pages[to].anchors:
                found.append(f"{name}: {target} has no such anchor")
    styles = [file for file in sorted(site.rglob("*.css")) if "url(http" in file.read_text().replace('"', "")]
    return found + [f"{file.relative_to(site)} loads something from elsewhere" for file in styles]


if __name__ == "__main__":
    wrong = faults(Path(sys.argv[1]))
    sys.exit("\n".join(wrong) or None)
