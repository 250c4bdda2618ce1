"""A corpus folder like `prepare` writes, made from what the repository ships."""

import json
import lzma
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from tools.tiny_dsa.config import ModelConfig

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "tiny-dsa"
TEXT = ROOT / "examples" / "text" / "opticks.txt"

TOY = replace(
    ModelConfig(),
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=2,
    q_lora_rank=32,
    kv_lora_rank=48,
    qk_nope_head_dim=16,
    qk_rope_head_dim=8,
    v_head_dim=16,
    index_n_heads=16,  # with few heads many scores are exactly 0: ties
    index_head_dim=16,
    index_topk=32,
)


def write_corpus(folder: Path) -> Path:
    """The demo text as held-out tokens, the words and the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(MODEL / "tokenizer.json", folder)
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    tokens = np.array(tokenizer.encode(TEXT.read_text()).ids, dtype=np.uint16)
    with lzma.open(folder / "val.u16.xz", "wb", preset=0) as stream:
        stream.write(tokens.tobytes())
    words = json.loads((MODEL / "needle_words.json").read_text())
    (folder / "meta.json").write_text(json.dumps({"words": words["train"] + words["test"]}))
    return folder
