import gzip
import random
from pathlib import Path

import pytest

from tools.tiny_dsa.documents import Source, collect, read_documents
from tools.tiny_dsa.prepare import encode, needle_words, train_tokenizer

SENTENCE = "Every ray keeps the colour that it had when it left the prism. "


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("page.html", "<head>gone</head><p>{}</p>"),
        ("share/man/man1/tool.1", '.\\" a comment\n.SH {}\n.ft gone\n'),
        ("plain.txt", "{}"),
    ],
)
def test_markup_is_gone_and_the_text_stays(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content.format(SENTENCE * 10))
    assert read_documents(str(path)) == [(SENTENCE * 10).strip()]


@pytest.mark.parametrize("text", ["short", "\u00e6" * 500, ""])
def test_short_and_foreign_files_are_no_documents(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file.txt"
    path.write_text(text)
    assert read_documents(str(path)) == []


def test_an_unreadable_file_is_no_document(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gz"
    broken.write_bytes(b"not gzip")
    assert read_documents(str(broken)) == []
    assert read_documents(str(tmp_path / "missing.txt")) == []


def test_a_dictionary_becomes_parts(tmp_path: Path) -> None:
    path = tmp_path / "words.dict.dz"
    path.write_bytes(gzip.compress((SENTENCE * 1000).encode()))
    parts = read_documents(str(path))
    assert len(parts) > 1
    assert "".join(parts) == (SENTENCE * 1000).strip()


def test_equal_documents_are_collected_once_and_the_cap_holds(tmp_path: Path) -> None:
    folder = tmp_path / "x" / "package"
    folder.mkdir(parents=True)
    for number in range(4):
        (folder / f"{number}.txt").write_text(f"{number % 2} " + SENTENCE * 10)
    for number in range(40):
        (folder / f"long{number}.txt").write_text(f"{number} " + SENTENCE * 2000)
    sources = [Source("x/pack*", r"/\d\.txt$", 1), Source("x/package", r"/long\d+\.txt$", 1)]

    documents, sizes = collect(tmp_path, random.Random(0), sources)

    assert sizes["pack"] == 2 * len(f"0 {SENTENCE * 10}".strip())
    assert 1e6 < sizes["package"] < 1e6 + 200_000
    assert sum(map(len, documents)) == sum(sizes.values())


def test_each_digit_is_a_token_and_decoding_gives_the_text_back() -> None:
    documents = [SENTENCE * 20 + "The number is 48213.\n"] * 3
    tokenizer = train_tokenizer(documents, vocab_size=400)
    tokens = encode(tokenizer, documents)
    assert (tokens == 0).sum() == 3
    assert tokenizer.decode(tokens[: len(tokens) // 3 - 1].tolist()) == documents[0]
    assert [tokenizer.decode([i]) for i in tokenizer.encode("48213").ids] == list("48213")
    assert set(needle_words(documents, random.Random(0))) <= set(SENTENCE.lower().split()) | {
        "number"
    }
