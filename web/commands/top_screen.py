"""The terminal of `top`, driven by curses of the standard library.

Curses is told of a new size and of Ctrl-Z, and knows how each kind of terminal is left as it was found.
"""

from __future__ import annotations

import contextlib
import curses
import locale
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import Final, NoReturn

from web.commands.failures import CommandFailed
from web.commands.top_view import Feed, View, rows_of_screen

TICK_MS: Final = 200
"""Longest time until news is drawn that comes while no key is pressed."""

ESCAPE_MS: Final = 25
"""How long the rest of a key's sequence is waited for. Beyond: it was Escape itself."""

_NAMES: Final = {
    curses.KEY_UP: "up",
    curses.KEY_DOWN: "down",
    curses.KEY_PPAGE: "page up",
    curses.KEY_NPAGE: "page down",
    curses.KEY_HOME: "home",
    curses.KEY_END: "end",
    curses.KEY_BACKSPACE: "backspace",
    curses.KEY_ENTER: "enter",
    "\x7f": "backspace",
    "\b": "backspace",
    "\n": "enter",
    "\r": "enter",
    "\x1b": "escape",
}

_COLOURS: Final = {"red": curses.COLOR_RED, "green": curses.COLOR_GREEN, "yellow": curses.COLOR_YELLOW}


@contextlib.contextmanager
def terminal(*, colour: bool) -> Iterator[curses.window]:
    """Take the terminal over, and give it back however the context ends; also by SIGTERM and SIGHUP.

    Raises:
        CommandFailed: it cannot place its cursor, or nobody knows how it does.
    """
    locale.setlocale(locale.LC_CTYPE, "")
    # Curses ends the process where it cannot draw: the terminal is asked first.
    try:
        curses.setupterm()
        can_draw = curses.tigetstr("cup") is not None
    except curses.error:
        can_draw = False
    if not can_draw:
        raise CommandFailed(f"cannot draw on this terminal (TERM={os.environ.get('TERM', '')!a})")
    with _signals_raised():
        try:
            yield _opened(colour=colour)
        finally:
            with contextlib.suppress(curses.error):  # it was not taken over yet
                curses.endwin()


@contextlib.contextmanager
def _signals_raised() -> Iterator[None]:
    """Have SIGTERM and SIGHUP end the command as an exception does: by way of what puts the terminal back."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    former = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _opened(*, colour: bool) -> curses.window:
    curses.set_escdelay(ESCAPE_MS)
    screen = curses.initscr()
    curses.noecho()
    curses.cbreak()
    screen.keypad(True)
    screen.timeout(TICK_MS)
    with contextlib.suppress(curses.error):  # a terminal whose cursor is always seen
        curses.curs_set(0)
    if colour:
        with contextlib.suppress(curses.error):  # a terminal without colours
            curses.start_color()
            curses.use_default_colors()
            for pair, number in enumerate(_COLOURS.values(), start=1):
                curses.init_pair(pair, number, -1)
    return screen


def show(screen: curses.window, feed: Feed, view: View) -> None:
    """Draw what comes and obey keys, until one of them ends it."""
    attributes = _attributes()
    while True:
        height, width = screen.getmaxyx()
        # The last column stays free: a terminal may scroll when it is written to at the end.
        _draw(screen, view.lines(feed.latest(), width=width - 1, height=height, now=time.monotonic()), attributes)
        key = _key(screen)
        if key is not None and not view.pressed(key, rows_of_screen(height)):
            return


def _attributes() -> dict[str, int]:
    """How each look is drawn; without colours the names of colours look like nothing."""
    attributes = {"": curses.A_NORMAL, "bold": curses.A_BOLD, "dim": curses.A_DIM, "inverse": curses.A_REVERSE}
    for pair, name in enumerate(_COLOURS, start=1):
        try:
            attributes[name] = curses.color_pair(pair)
        except curses.error:
            attributes[name] = curses.A_NORMAL
    return attributes


def _draw(screen: curses.window, lines: list[list[tuple[str, str]]], attributes: dict[str, int]) -> None:
    screen.erase()
    for number, line in enumerate(lines):
        with contextlib.suppress(curses.error):  # the terminal has become smaller
            screen.move(number, 0)
            for text, name in line:
                screen.addstr(text, attributes[name])
    screen.refresh()


def _key(screen: curses.window) -> str | None:
    """The next key, `None`: none was pressed within a tick, or the terminal has another size now."""
    try:
        key = screen.get_wch()
    except curses.error:
        return None
    if key == curses.KEY_RESIZE:
        screen.clear()  # terminals differ in what they keep: everything is drawn anew
        return None
    name = _NAMES.get(key)
    return name if name is not None or isinstance(key, int) else key
