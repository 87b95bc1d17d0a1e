"""The help that people read: every command has examples, and every example is a command line."""

from __future__ import annotations

import argparse
import io
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.programs import program
from tests.server.process import COMMAND
from web import cli
from web.commands import line
from web.commands.helping import SHELLS
from web.demo import command as demo


def parsers(parser: argparse.ArgumentParser, *names: str) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Every command, and those above it."""
    yield names, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, one in action.choices.items():
                yield from parsers(one, *names, name)


EVERY = dict(parsers(line.parser(demo)))


@pytest.mark.parametrize("names", EVERY, ids=" ".join)
def test_every_help_has_examples_that_are_command_lines(
    names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("new.json", "old.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(SystemExit) as ended:
        cli.main(["help", *names])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    examples = re.findall(r"^  avicenna-live (.*)", shown.partition("\nexamples:\n")[2], re.MULTILINE)
    assert examples
    for example in examples:
        words = shlex.split(re.split(r" [<>] ", example)[0])
        assert tuple(words[: len(names)]) == names
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"{}")))
        line.parser(demo).parse_args(words)
    with pytest.raises(SystemExit):
        cli.main([*names, "--help"])
    assert capsys.readouterr().out == shown


def test_help_of_no_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["help", "tokn"])
    assert ended.value.code == 2
    assert "invalid choice: 'tokn'" in capsys.readouterr().err


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_completes_every_command_and_option(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for name in {word for names in EVERY for word in names}:
        assert name in script
    for option in ("--drop-damaged", "--token-file", "--dry-run"):
        # Fish names long options without dashes.
        assert option.removeprefix("--") in script
    program = shutil.which(shell)
    if program is not None:
        file = tmp_path / "script"
        file.write_text(script)
        subprocess.run([program, "-n", file], check=True, timeout=60)


def test_bash_completes_with_it() -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    script = f"""
source <({COMMAND} completion bash)
function completed {{
  COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
  _shtab_avicenna_live; echo "${{COMPREPLY[*]}}"
}}
completed avicenna-live revo
completed avicenna-live actors list --state q
completed avicenna-live backup --dat
"""
    done = subprocess.run([bash, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == ["revoke revocations", "quarantined", "--data"]


COMPLETED_BY_ZSH = r"""
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "PS1=; fpath=(${(q)1} \$fpath); autoload -Uz compinit; compinit -u -D; echo rea''dy"
zpty -r shell said '*ready*'
function completed {
  zpty -w -n shell $'\C-u'"$1"$'\t'
  zpty -r shell said "*$2*"
  print -r -- "$2"
}
completed 'avicenna-live doc' 'avicenna-live doctor'
completed 'avicenna-live actors list --state q' 'quarantined'
completed 'avicenna-live backup --dat' '--data'
"""
"""Types words and a Tab into a shell of its own, until what is expected stands on the line."""


def test_zsh_completes_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zsh = program("zsh")
    assert cli.main(["completion", "zsh"]) == 0
    (tmp_path / "_avicenna-live").write_text(capsys.readouterr().out)
    command = [zsh, "-f", "-c", COMPLETED_BY_ZSH, "zsh", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == ["avicenna-live doctor", "quarantined", "--data"], done.stderr


def test_fish_completes_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fish = program("fish")
    assert cli.main(["completion", "fish"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    asked = ("avicenna-live revo", "avicenna-live actors list --state q", "avicenna-live backup --dat")
    script = "source $HOME/script; " + "; ".join(f'complete -C "{one}"' for one in asked)
    environment = os.environ | {"HOME": str(tmp_path)}
    done = subprocess.run(
        [fish, "--no-config", "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    offered = dict(one.split("\t") for one in done.stdout.splitlines())
    assert set(offered) == {"revoke", "revocations", "quarantined", "--data"}
    assert offered["revoke"] == "refuse tokens before their time", "its line in the list of commands"
