"""The bugs that `make mutants` plants fit the tree: whoever changes a line in which one is planted hears of it here."""

from __future__ import annotations

import pytest

from tests.mutants.planted import PLANTED, Planted
from tests.programs import ROOT


@pytest.mark.parametrize("one", PLANTED, ids=lambda one: one.what.replace(" ", "-"))
def test_a_planted_bug_fits_the_tree(one: Planted) -> None:
    source = (ROOT / one.file).read_text()
    assert source.count(one.right) == 1
    compile(source.replace(one.right, one.wrong), one.file, "exec")
    assert all((ROOT / test).is_file() for test in one.tests)
