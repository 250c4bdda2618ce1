from pathlib import Path

import pytest

from tests.tools.tiny_corpus import write_corpus
from tools.tiny_dsa.corpus import Corpus


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def corpus(corpus_folder: Path) -> Corpus:
    return Corpus.load(corpus_folder)
