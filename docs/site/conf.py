"""How `make docs` builds the site: Sphinx reads the pages where they lie, and a link that leads nowhere ends it.

The pages stay plain Markdown that a git host shows, too: the navigation stands here, not in them.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT: Final = Path(__file__).parents[2]

START: Final = "docs/README"
"""The page that the site begins with."""

NAVIGATION: Final = {
    "Begin": ["Overview </README>", "docs/TUTORIAL", "examples/README", "docs/GLOSSARY"],
    "How to": [
        "docs/guides/behind-a-proxy",
        "docs/guides/keys",
        "docs/guides/backup",
        "docs/guides/upgrade",
        "docs/guides/service",
        "docs/guides/monitoring",
        "docs/guides/sizing",
        "docs/guides/erasure",
        "docs/TROUBLESHOOTING",
    ],
    "Look up": [
        "docs/QUICK_REFERENCE",
        "docs/PROTOCOL",
        "docs/SETTINGS",
        "docs/LIMITS",
        "docs/METRICS",
        "docs/LOG",
        "docs/DEPLOYMENT",
        "JavaScript client </clients/javascript/README>",
        "Python client </clients/python/README>",
        "Rules for clients </clients/README>",
    ],
    "Understand": [
        "docs/GUARANTEES",
        "docs/SECURITY",
        "docs/COMPARISON",
        "docs/RELIABILITY",
        "docs/BENCHMARKS",
        "docs/HOW_IT_WORKS",
        "docs/ARCHITECTURE",
        "docs/decisions/README",
    ],
    "The project": ["CONTRIBUTING", "docs/COVERAGE", "CHANGELOG"],
}
"""The pages by what a reader needs. Whatever is not named here, and is no decision, makes the build fail."""

project = "Avicenna Live"
author = "the authors of Avicenna Live"
release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
extensions = ["myst_parser"]
root_doc = START
include_patterns = [
    "*.md",
    "docs/*.md",
    "docs/decisions/*.md",
    "docs/guides/*.md",
    "clients/*.md",
    "clients/*/*.md",
    "examples/*.md",
    "examples/*/*.md",
]
exclude_patterns = ["**/.venv/**", "**/node_modules/**"]
nitpicky = True
myst_heading_anchors = 6
"""Every heading has the anchor that GitHub gives it."""

html_theme = "furo"
html_title = "Avicenna Live"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_last_updated_fmt = None
html_theme_options = {"navigation_with_keys": False}
pygments_style = "default"
pygments_dark_style = "native"

_CONVERSATION: Final = re.compile(r"^```conversation$", re.MULTILINE)


def _toctrees() -> str:
    """The navigation, as the start page has it."""
    blocks = [
        "\n".join(
            [
                "```{toctree}",
                ":hidden:",
                f":caption: {caption}",
                "",
                *(page if "<" in page else f"/{page}" for page in pages),
                "```",
            ]
        )
        for caption, pages in NAVIGATION.items()
    ]
    return "\n\n".join(["", *blocks, ""])


def _decisions() -> str:
    """The decisions, below their index."""
    return "\n\n```{toctree}\n:hidden:\n:glob:\n\n/docs/decisions/0*\n```\n"


def _read(app: Sphinx, name: str, content: list[str]) -> None:
    """Adds the navigation; an example of PROTOCOL is a conversation, which no highlighter knows."""
    content[0] = _CONVERSATION.sub("```text", content[0])
    if name == START:
        content[0] += _toctrees()
    elif name == "docs/decisions/README":
        content[0] += _decisions()


def setup(app: Sphinx) -> None:
    app.connect("source-read", _read)
