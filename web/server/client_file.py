"""`GET /client.js`: the JavaScript client, which a page imports from the server that it follows.

`client.js` beside this file is a link to the one of `clients/javascript`; a wheel has the file itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from quart import Blueprint, Response

from web.contract.operations import JAVASCRIPT
from web.http.bodies import StaticContent

FILE: Final = Path(__file__).with_name("client.js")


def client_file() -> Blueprint:
    """The route. Reads the file, once."""
    blueprint = Blueprint("client_file", __name__)
    content = StaticContent(FILE.read_bytes(), JAVASCRIPT)

    @blueprint.get("/client.js")
    async def show() -> Response:
        return content.answer()

    return blueprint
