"""The answers of transformers in fp32: `python -m benchmarks.engine.reference WORK RESULT`.

WORK and RESULT are those of `benchmarks.engine.child`, of which it reads the model's path.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

_CHUNK_TOKENS = 1024  # index scores of a chunk fit beside the model


def main(work_file: Path, result_file: Path) -> None:
    """Answers one prompt after the other, greedily."""
    work: dict[str, Any] = json.loads(work_file.read_text())
    model: Any = AutoModelForCausalLM.from_pretrained(
        work["engine"]["model_path"], dtype="float32", attn_implementation="sdpa"
    )
    model = model.eval().cuda()
    with torch.inference_mode():
        answers = [_answer(model, prompt, work["new_tokens"]) for prompt in work["prompts"]]
    result_file.write_text(json.dumps({"answers": answers, "loads": []}))


def _answer(model: Any, prompt: list[int], new_tokens: int) -> list[int]:  # noqa: ANN401
    cache, answer = DynamicCache(config=model.config), []
    ids = torch.tensor([prompt], device="cuda")
    chunks = ids.split(_CHUNK_TOKENS, dim=1)
    for chunk in chunks:
        logits = model(chunk, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    for _ in range(new_tokens):
        token = logits[:, -1].argmax(dim=-1, keepdim=True)
        answer.append(int(token))
        logits = model(token, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    return answer


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
