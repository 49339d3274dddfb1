"""One word per concept, and the word that the field uses: earlier private ones do not come back."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("app", "bench", "tests", "tools", "docs", "README.md", "run.py")
KINDS = (".py", ".md", ".js", ".html")

STANDARD = {
    "unkillable": r"(?i:undead)",
    "Exchange": r"(?i:errands?\b)",
    "guard": r"(?i:at_the_door)|AT_THE_DOOR",
    "time-out sweep": r"(?i:patrols?\b)",
    "wait for exit": r"(?i:burial|corpses?\b|bury\b)",
    "port closed": r"(?i:deaf(en|ness)?\b)",
    "read_pause_s": r"(?i:breath(_s)?\b)",
    "reconcile": r"look_again",
    "ModelChanged": r"Touched\b",
    "preempted_at": r"yielded_at",
    "reclaiming_mb": r"settling_mb",
    "LoadHistory": r"LearnedFootprints",
    "reject_waiting, check_failed": r"turn_away|unfit\(",
    "kill_unresponsive": r"end_hung",
    "chaos run": r"(?i:storms?\b)",
    "snapshot": r"(?i:frozen pictures?)|_picture\(",
    "unmet_need, why_not_writable, preflight": r"(?i:obstacles?\b)",
    "round_is_due": r"_?hurry\b",
}
"""The standard word, and the pattern of those that it replaced."""

ALLOWED = {
    ("app/api/health.py", "unkillable"): "/health tells both names for one release",
    ("docs/upgrading.md", "unkillable"): "which is written there",
    ("tests/test_unkillable.py", "unkillable"): "and tested",
}


def texts() -> dict[str, str]:
    listed = ["git", "ls-files", *FOLDERS]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    paths = {name: ROOT / name for name in names if name.endswith(KINDS) and name != "tests/test_words.py"}
    return {name: path.read_text(encoding="utf-8") for name, path in paths.items() if path.exists()}


@pytest.mark.parametrize("word", STANDARD)
def test_an_earlier_word_is_not_used_again(word: str) -> None:
    pattern = re.compile(rf"(?<![a-zA-Z])(?:{STANDARD[word]})")
    hits = [
        f"{name}: {found[0]}"
        for name, text in texts().items()
        if (name, word) not in ALLOWED and (found := pattern.search(text))
    ]
    assert not hits, f"say {word}"
