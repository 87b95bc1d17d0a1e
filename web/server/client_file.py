"""`GET /client.js`: the JavaScript client, which a page imports from the server that it follows.

`client.js` beside this file is a link to the one of `clients/javascript`; a wheel has the file itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from web.contract.exchange import Answer, Handlers, Request
from web.contract.operations import JAVASCRIPT
from web.http.bodies import StaticContent

FILE: Final = Path(__file__).with_name("client.js")


def client_file() -> Handlers:
    """The operation. Reads the file, once."""
    content = StaticContent(FILE.read_bytes(), JAVASCRIPT)

    async def show(asked: Request) -> Answer:
        return content.answer(asked)

    return {"getClient": show}
