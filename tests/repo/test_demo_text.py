from tokenizers import Tokenizer

from tests.repo.repository import ROOT


def test_the_demo_text_fills_the_demo_and_the_stated_counts_are_true() -> None:
    tokenizer = Tokenizer.from_file(str(ROOT / "models/tiny-dsa/tokenizer.json"))
    path = ROOT / "examples/text/opticks.txt"
    num_tokens = len(tokenizer.encode(path.read_text(encoding="utf-8")).ids)
    licence = (ROOT / "examples/text/LICENSE.md").read_text()
    assert num_tokens >= 13_000
    assert f"{num_tokens:,} with the tokenizer" in licence
    assert f"{path.stat().st_size:,} bytes" in licence
