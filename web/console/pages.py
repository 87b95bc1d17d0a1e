"""`GET /console`: the page for operators, its style, its icon and the modules of its script, as they lie in `page/`.

Anybody may have the page: it shows nothing until somebody gives it a token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from web.contract.errors import Problem
from web.contract.exchange import Answer, Handler, Handlers, Request
from web.contract.operations import CSS, HTML, JAVASCRIPT, SVG
from web.http.bodies import StaticContent

PAGE: Final = Path(__file__).with_name("page")

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
"""The page loads and asks nothing elsewhere, runs no script that is not a file of this server, and makes no text into
HTML (Content Security Policy Level 3, Trusted Types)."""

HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def console_page() -> Handlers:
    """The operations. Reads the files, once."""
    modules = {one.stem: _content(one.name, JAVASCRIPT) for one in sorted(PAGE.glob("*.js"))}

    def showing(name: str, media_type: str) -> Handler:
        content = _content(name, media_type)

        async def show(asked: Request) -> Answer:
            return _answer(content, asked)

        return show

    async def show_module(asked: Request) -> Answer:
        content = modules.get(asked.parameters["module"])
        if content is None:
            raise Problem("not_found", "the console has no such module")
        return _answer(content, asked)

    return {
        "getConsole": showing("console.html", HTML),
        "getConsoleStyle": showing("console.css", CSS),
        "getConsoleIcon": showing("icon.svg", SVG),
        "getConsoleModule": show_module,
    }


def _content(name: str, media_type: str) -> StaticContent:
    return StaticContent((PAGE / name).read_bytes(), media_type)


def _answer(content: StaticContent, asked: Request) -> Answer:
    found = content.answer(asked)
    found.headers.update(HEADERS)
    return found
