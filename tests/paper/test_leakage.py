"""`examples.leakage` on few owners: what it builds, forgets, attacks and writes."""

from __future__ import annotations

import re

from examples.leakage import SETTINGS, main, measure, table


def test_the_page_has_a_table_for_each_choice_of_tasks(tmp_path, capsys):
    page = tmp_path / "leakage.md"
    page.write_text("# Leaks\n\n<!-- The tables below are written by examples/leakage.py. -->\nold", encoding="utf-8")
    main(
        [
            *("--work", str(tmp_path / "work"), "--output", str(page)),
            *("--settings", "demo", "--presets", "per-task", "--num-tasks", "3"),
        ]
    )
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Leaks\n")
    assert "old" not in text
    assert text.count("After and rebuilt: equal in every digit.") == 2
    assert "digits of 3 owners" in text
    assert "One task is forgotten" in text
    assert "2 tasks are forgotten" in text
    parts = text.split("**Preset")[1:]
    for part in parts:
        rows = [line.split(" | ") for line in part.splitlines() if line.startswith("| ")]
        cells = {tuple(row[:2]): row[2:] for row in rows}
        assert cells["| after", "global"] == cells["| rebuilt without them", "global"]
        assert cells["| after", "worst mask"] == cells["| rebuilt without them", "worst mask"]
        assert {"| base model", "| before", "| before and after"} <= {row[0] for row in rows}
        # A figure and its interval in every cell.
        for row in rows[2:]:
            assert all(re.match(r"(\d\.\d\d|\?) \[\d\.\d\d, \d\.\d\d\]", cell) for cell in row[2:]), row
    assert "Preset `per-task`" in capsys.readouterr().out


def test_a_table_is_that_of_its_report(tmp_path):
    setting = SETTINGS["demo"](tmp_path, 3, None)
    (report,) = measure(setting, setting.arguments["per-task"], [setting.tasks.task_ids[:1]])
    assert report.equals_rebuilt
    found = report.models["before"]["served"].membership["loss"].auc
    assert f"| before | its mask | {found.value:.2f} [{found.low:.2f}, {found.high:.2f}] |" in table(report)
