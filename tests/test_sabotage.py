"""Known faults in a copy of the package change the verdicts that should see them, for real."""

from pathlib import Path

import pytest

import chatbot_arch.measure.claims as claims
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
    return sabotage.judge_build(
        None, sorted({claim for each in COUNTED for claim, _ in each.moves})
    )


@pytest.mark.parametrize("each", COUNTED, ids=lambda each: each.name)
def test_counted_fault_moves_its_claims(each: sabotage.Sabotage, before: dict[str, dict]) -> None:
    after = sabotage.judge_build(each, [claim for claim, _ in each.moves])
    for claim, verdict in each.moves:
        assert before[claim]["verdict"] == verdicts.HOLDS
        assert after[claim]["verdict"] == verdict == verdicts.FAILS
