"""The list of planted bugs keeps up with the code: each can still be planted."""

from collections import Counter

from mutations import BUGS, ROOT


def test_every_bug_has_its_place():
    lost = [
        bug.name
        for bug in BUGS
        if (ROOT / "textdiff" / bug.file).read_text(encoding="utf-8").count(bug.right) != 1
    ]
    assert not lost
    assert all(
        (ROOT / "tests" / f"test_{name}.py").is_file() for bug in BUGS for name in bug.tests.split()
    )
    assert [name for name, count in Counter(bug.name for bug in BUGS).items() if count > 1] == []
