"""Writes the tables of docs/llama-server.md from the code: `python -m tools.flag_reference`."""

from __future__ import annotations

from pathlib import Path

from app.llama.flags import FLAGS, VARIABLES

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "llama-server.md"
BEGIN = "<!-- flags: python -m tools.flag_reference -->"
END = "<!-- end of the flags -->"


def reference() -> str:
    """Every flag and variable, with what it does to answers."""
    rows = ["| flag | value | decided by | changes answers |", "|---|---|---|---|"]
    rows += [_row(f"`{flag.names[0]}`", flag.value, _key(flag.setting), flag.effect) for flag in FLAGS]
    rows += ["", "| variable | value | changes answers |", "|---|---|---|"]
    rows += [_row(_code(v.name), v.value or "removed", v.effect) for v in VARIABLES]
    return "\n".join(rows) + "\n"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _key(setting: str) -> str:
    return f"`{setting}`" if setting else ""


def _code(name: str) -> str:
    return name if "`" in name else f"`{name}`"


def main() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text(f"{before}{BEGIN}\n{reference()}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
