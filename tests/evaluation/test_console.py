from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from fgvr.evaluation.console import findings_table, prediction_tables
from fgvr.types import Finding


def text(predictions) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    for part in prediction_tables(predictions):
        console.print(part)
    return console.export_text()


def test_the_runner_up_of_a_slow_answer_is_system_2s_second_choice_and_never_the_answer(run) -> None:
    slow = next(p for p in run(50, slow_rate=1.0) if p.slow and len(p.slow.probabilities) > 1)
    second, first = list(slow.slow.probabilities)[:2]
    likely = replace(slow, category=first, slow=replace(slow.slow, category=first, probabilities={first: 0.6, second: 0.4}))
    shown = replace(likely, names={first: "Answer", second: "Second"}, name="Answer")
    row = next(line for line in text([shown] * 4).splitlines() if slow.image in line)
    assert row.index("Answer") < row.index("Second")
    assert row.count("Answer") == 1


def test_few_images_are_shown_with_their_decision(run) -> None:
    (prediction,) = run(1, slow_rate=1.0)
    shown = text([prediction])
    assert "escalated to System 2: score" in shown
    assert "System 2" in shown


def test_a_long_cure_is_shown_to_its_end():
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(findings_table([Finding("files", False, "1 gone", f"take out images/{'x' * 120}/last.jpg")]))
    cells = [line.split("│")[-2].strip() for line in console.export_text().splitlines() if line.count("│") > 3]
    assert "".join(cells).replace(" ", "").endswith(f"images/{'x' * 120}/last.jpg")
