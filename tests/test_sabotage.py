"""Known faults in a copy of the package change the verdicts that should see them, for real."""

import io
from pathlib import Path

import pandas as pd
import pytest
from committed import committed_results, read_committed

import chatbot_arch.measure.claims as claims
import chatbot_arch.measure.evidence as evidence
import chatbot_arch.measure.sabotage as sabotage
import chatbot_arch.measure.verdicts as verdicts

COUNTED = [each for each in sabotage.SABOTAGES if each.counted]
ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("each", sabotage.SABOTAGES, ids=lambda each: each.name)
def test_sabotage_fits_the_code_of_today(each: sabotage.Sabotage, tmp_path: Path) -> None:
    sabotage.build(each, tmp_path)
    broken = (tmp_path / "chatbot_arch" / each.file).read_text(encoding="utf-8")
    compile(broken, each.file, "exec")
    assert broken != (ROOT / "chatbot_arch" / each.file).read_text(encoding="utf-8")
    known = {claim.number for claim in claims.CLAIMS}
    assert set(each.claims) <= known


@pytest.fixture(scope="module")
def before() -> dict[str, dict]:
    """Judge what the counted faults should move, in a copy without a fault."""
    judged, _ = sabotage.judge_build(
        None, sorted({claim for each in COUNTED for claim, _ in each.moves})
    )
    return judged


@pytest.mark.parametrize("each", COUNTED, ids=lambda each: each.name)
def test_counted_fault_moves_its_claims(each: sabotage.Sabotage, before: dict[str, dict]) -> None:
    after, _ = sabotage.judge_build(each, [claim for claim, _ in each.moves])
    for claim, verdict in each.moves:
        assert before[claim]["verdict"] == verdicts.HOLDS
        assert after[claim]["verdict"] == verdict == verdicts.FAILS


TABLE = committed_results("sabotage")["table"]


def test_committed_table_has_every_fault_and_its_controls_stayed() -> None:
    assert {row["sabotage"] for row in TABLE} == {each.name for each in sabotage.SABOTAGES}
    assert len(TABLE) == sum(len(each.claims) for each in sabotage.SABOTAGES)
    assert {row["as expected"] for row in TABLE} == {"yes"}
    page = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    for line in pd.DataFrame(TABLE).to_markdown(index=False).splitlines():
        assert line in page


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row['sabotage']}, {row['claim']}")
def test_recorded_rows_of_a_fault_get_its_verdicts(row: dict[str, str]) -> None:
    rows = pd.read_csv(io.StringIO(read_committed("sabotage.csv")))
    [claim] = sabotage.with_fake([row["claim"]])
    for build, verdict in ((sabotage.NO_FAULT, row["before"]), (row["sabotage"], row["after"])):
        assert evidence.judge(rows[rows.sabotage == build], claim).verdict == verdict
