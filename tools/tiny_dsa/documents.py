"""Clean text documents out of unpacked Debian packages and Python wheels."""

import glob
import gzip
import hashlib
import html
import multiprocessing
import os
import random
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

MIN_DOCUMENT_CHARS = 400
MAX_DOCUMENT_CHARS = 200_000
DICTIONARY_PART_CHARS = 20_000
MAX_FOREIGN_SHARE = 0.02  # of characters beyond ASCII


@dataclass(frozen=True)
class Source:
    """Files under `folder` (a glob) whose path matches `pattern`, up to `cap_megabytes` of text."""

    folder: str
    pattern: str
    cap_megabytes: int

    @property
    def name(self) -> str:
        """The folder without its place and pattern."""
        return os.path.basename(self.folder).rstrip("*")

    def files(self, work: Path) -> list[str]:
        """Matching files, in a fixed order."""
        return [
            path
            for folder in sorted(glob.glob(os.path.join(work, self.folder)))
            for path in sorted(glob.glob(folder + "/**/*", recursive=True))
            if re.search(self.pattern, path) and os.path.isfile(path)
        ]


_RUST_BOOKS = "book|reference|nomicon|cargo|embedded-book|rust-by-example|edition-guide|rustc"
_RUST_UNWANTED = "print|.*first-edition|.*2018-edition|.*second-edition"

# licences: models/tiny-dsa/NOTICE. x/ holds unpacked packages, w/ unpacked wheels.
SOURCES = (
    Source(
        "x/linux-doc-6.1*",
        r"/Documentation/(?!translations|output|.*ABI/).*\.(rst|txt)(\.gz)?$",
        30,
    ),
    Source("x/debian-handbook*", r"/en-US/.*\.html$", 8),
    Source("x/debian-policy*", r"\.txt(\.gz)?$", 3),
    Source("x/debian-reference-en*", r"\.html$", 3),
    Source("x/developers-reference*", r"\.html$", 3),
    Source("x/dict-foldoc*", r"\.dz$", 6),
    Source("x/dict-gcide*", r"\.dz$", 26),
    Source("x/dict-jargon*", r"\.dz$", 2),
    Source("x/dict-wn*", r"\.dz$", 14),
    Source("x/gimp-help-en*", r"/en/.*\.html$", 6),
    Source("x/gnucash-docs*", r"/C/.*\.xml$", 6),
    Source("x/libreoffice-help*", r"\.html$", 8),
    Source("x/manpages*", r"/man\d/.*\.gz$", 8),
    Source("x/git-doc*", r"\.txt$", 6),
    Source("x/perl-doc*", r"\.pod$", 8),
    Source("x/postgresql-doc*", r"\.html$", 14),
    Source("x/python3.11-doc*", r"_sources/.*\.txt$", 12),
    Source("x/r-doc-html*", r"\.html$", 4),
    Source("x/bash-doc*", r"\.(html|txt|gz)$", 2),
    Source("x/rust-doc*", rf"html/({_RUST_BOOKS})/(?!{_RUST_UNWANTED}).*\.html$", 8),
    Source("/usr/lib/python3.11", r"^(?!.*(/test/|lib2to3|pydoc_data|encodings)).*\.py$", 10),
    Source("w/django", r"\.py$", 5),
    Source("w/networkx", r"\.py$", 5),
    Source("w/sqlalchemy", r"\.py$", 7),
    Source("w/sympy", r"\.py$", 6),
    Source("w/scipy", r"\.py$", 6),
    Source("w/statsmodels", r"\.py$", 5),
    Source("w/scikit_learn", r"\.py$", 6),
)


def collect(
    work: Path, rng: random.Random, sources: Iterable[Source] = SOURCES
) -> tuple[list[str], dict[str, int]]:
    """Every document once, shuffled by `rng`, and the characters taken from each source."""
    seen: set[bytes] = set()
    documents: list[str] = []
    sizes: dict[str, int] = {}
    with multiprocessing.Pool() as pool:
        for source in sources:
            files = source.files(work)
            rng.shuffle(files)
            groups = pool.imap(read_documents, files, chunksize=16)
            kept = list(_keep_unseen(groups, seen, source.cap_megabytes))
            documents += kept
            sizes[source.name] = sum(map(len, kept))
    rng.shuffle(documents)
    return documents, sizes


def read_documents(path: str) -> list[str]:
    """The clean documents of one file; none if it is unreadable, short or not English."""
    try:
        raw = Path(path).read_bytes()
        if path.endswith((".gz", ".dz")):
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error):
        return []
    text = _tidy(_strip_markup(raw.decode("utf-8", "ignore"), path))
    foreign = sum(ord(char) > 126 for char in text)
    if len(text) < MIN_DOCUMENT_CHARS or foreign > MAX_FOREIGN_SHARE * len(text):
        return []
    if path.endswith(".dz"):
        starts = range(0, len(text), DICTIONARY_PART_CHARS)
        return [text[start : start + DICTIONARY_PART_CHARS] for start in starts]
    return [text[:MAX_DOCUMENT_CHARS]]


def _keep_unseen(groups: Iterable[list[str]], seen: set[bytes], cap: int) -> Iterator[str]:
    size = 0
    for document in (document for group in groups for document in group):
        digest = hashlib.md5(document[:3000].encode()).digest()
        if digest in seen or size > cap * 1e6:
            continue
        seen.add(digest)
        size += len(document)
        yield document


def _strip_markup(text: str, path: str) -> str:
    base = path.removesuffix(".gz")
    if base.endswith((".html", ".htm", ".xml")):
        return _strip_html(text)
    return _strip_roff(text) if re.search(r"/man/man\d/", path) else text


def _strip_html(text: str) -> str:
    text = re.sub(r"(?is)<(script|style|head|nav|footer|svg)\b.*?</\1>", " ", text)
    breaks = r"(?i)<(br|/p|/div|/li|/tr|/h\d|/pre|/dt|/dd|/section)\b[^>]*>"
    text = re.sub(breaks, "\n", text)
    return html.unescape(re.sub(r"(?s)<[^>]{0,2000}>", "", text))


def _strip_roff(text: str) -> str:
    text = re.sub(r'(?m)^[.\']\\".*\n', "", text)
    kept = "SH|SS|TH|TP|PP|IP|B|I|BR|BI|IR|RB|RI|IB|nf|fi|RS|RE|EX|EE|in|P|sp|br"
    text = re.sub(rf"(?m)^\.({kept})\b ?", "", text)
    text = re.sub(r"\\f[A-Z]|\\f\(..|\\&|\\c|^\.\w+.*$", "", text, flags=re.MULTILINE)
    return text.replace("\\-", "-").replace("\\e", "\\")


def _tidy(text: str) -> str:
    text = re.sub(r"[ \t]+\n", "\n", text.replace("\r", ""))
    text = re.sub(r"[ \t]{12,}", "        ", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()
