"""docs/migration.md: its tables of names, held to the code by the tests of what they list."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "migration.md"


def rows(section):
    """{name: "works", "another meaning" or "not"} of the table of names in a section."""
    text = PAGE.read_text(encoding="utf-8")
    body = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    found = {}
    for line in body.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and cells[1] in ("works", "another meaning", "not"):
            found |= dict.fromkeys(re.findall(r"`(\w+)`", cells[0]), cells[1])
    return found


def test_the_table_of_image_processors_says_what_to_do_instead():
    text = PAGE.read_text(encoding="utf-8")
    assert len(rows("Image processors")) > 30
    assert not re.search(r"\| (not|another meaning) \| *\|", text)
