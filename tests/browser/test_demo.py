"""The page of the demo in a real browser: whatever its buttons do, every number comes once, or a gap names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser.chromium import Tab, chromium
from tests.cli.demos import demo

pytestmark = pytest.mark.timeout(240)

NO_HOLE = "None is missing, none came twice."


async def press(tab: Tab, label: str, group: str) -> None:
    """Press a button, and wait until it has been answered."""
    await tab.run(
        "window.pressed = [...document.querySelectorAll('.group')]"
        f".find((one) => one.querySelector('h3').textContent === '{group}').querySelectorAll('button');"
        f"window.pressed = [...window.pressed].find((one) => one.textContent === '{label}'); window.pressed.click()"
    )
    await tab.until("window.pressed.ariaBusy !== 'true'")


async def until_status(tab: Tab, name: str) -> None:
    await tab.until(f"document.getElementById('status').dataset.status === '{name}'")


async def until_it_moves(tab: Tab) -> None:
    """Until an update has come that was not there before."""
    await tab.run("window.newest = document.getElementById('strip').firstChild?.textContent")
    await tab.until("document.getElementById('strip').firstChild.textContent !== window.newest")


async def test_the_numbers_go_on_without_a_hole_whatever_is_pressed(tmp_path: Path) -> None:
    async with chromium(tmp_path / "profile") as browser, demo() as (shown, _):
        tab = await browser.open(f"{shown.http.base_url}/demo".replace("//demo", "/demo"))
        await until_status(tab, "live")
        for kind in ("recommendation", "effectiveness", "feedback"):
            await press(tab, kind, "Publish")
        await press(tab, "crash it", "Actor")
        await until_it_moves(tab)
        await press(tab, "restart it", "Actor")
        await press(tab, "restart it", "Server")
        await until_status(tab, "offline")
        await until_status(tab, "live")
        await until_it_moves(tab)
        assert (await tab.run("document.getElementById('account').textContent")).endswith(NO_HOLE)
        await tab.until("document.getElementById('actor').textContent.includes('crash')")
        await press(tab, "take it offline", "This page")
        await press(tab, "120 at once", "Publish")
        await press(tab, "bring it back", "This page")
        await until_status(tab, "live")
        await until_it_moves(tab)
        account = await tab.run("document.getElementById('account').textContent")
        assert "no longer kept, named in a gap" in account
        assert account.endswith(NO_HOLE)
        assert await tab.run("document.querySelectorAll('#strip li.gone').length") == 1
        assert await tab.run("document.querySelectorAll('#strip li.late').length") >= 100
        await tab.close()


async def test_a_button_has_a_name_of_its_own_and_keeps_the_focus_while_it_is_answered(tmp_path: Path) -> None:
    async with chromium(tmp_path / "profile") as browser, demo() as (shown, _):
        tab = await browser.open(f"{shown.http.base_url}/demo".replace("//demo", "/demo"))
        await until_status(tab, "live")
        names = await tab.run("[...document.querySelectorAll('[data-post]')].map((one) => one.ariaLabel).join()")
        assert len(set(names.split(","))) == 7
        await tab.run("window.button = document.querySelector('[data-post]'); button.focus(); button.click()")
        assert await tab.run("document.activeElement === button")
        await tab.until("button.ariaBusy === 'false'")
        assert await tab.run("document.activeElement === button")
