"""One engine in a process of its own: `python -m benchmarks.engine.child WORK RESULT`.

WORK is JSON: "engine", the arguments of `sglang.Engine`; "prompts" to be answered all at once by
"new_tokens" tokens each, greedily; and "loads", each [context tokens, requests, new tokens].
RESULT, JSON, has "answers", token ids of each prompt, and "loads", each with "seconds_between", of
all pairs of neighbouring tokens while all requests decoded, and "tokens_per_second" of that time.
"""

import asyncio
import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

# short prompts take FA3 otherwise, a large library
os.environ.setdefault("SGLANG_DSA_PREFILL_DENSE_ATTN_KV_LEN_THRESHOLD", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
_TAIL_TOKENS = 64  # in which the requests of a load differ
_VOCABULARY = 1000


def _greedy(new_tokens: int) -> dict[str, Any]:
    return {"max_new_tokens": new_tokens, "temperature": 0, "ignore_eos": True}


def _prompt(context: int, request: int) -> list[int]:
    """A shared head, and a tail of its own."""
    head = [(7 * at + at // 911) % _VOCABULARY + 2 for at in range(context - _TAIL_TOKENS)]
    return head + [(13 * at + 101 * request) % _VOCABULARY + 2 for at in range(_TAIL_TOKENS)]


async def _stream(engine: Any, prompt: list[int], new_tokens: int) -> list[float]:  # noqa: ANN401
    """When each token came."""
    times, known = [], 0
    stream = await engine.async_generate(
        input_ids=prompt, sampling_params=_greedy(new_tokens), stream=True
    )
    async for chunk in stream:
        tokens = chunk["meta_info"]["completion_tokens"]
        times += [time.perf_counter()] * (tokens - known)
        known = tokens
    return times


async def _load(engine: Any, context: int, requests: int, new_tokens: int) -> dict[str, Any]:  # noqa: ANN401
    prompts = [_prompt(context, request) for request in range(requests)]
    all_times = await asyncio.gather(*(_stream(engine, one, new_tokens) for one in prompts))
    first, last = max(times[0] for times in all_times), min(times[-1] for times in all_times)
    within = [[at for at in times if first <= at <= last] for times in all_times]
    between = [b - a for times in within for a, b in itertools.pairwise(times)]
    tokens = sum(max(0, len(times) - 1) for times in within)
    return {
        "seconds_between": between,
        "tokens_per_second": tokens / max(last - first, 1e-9),
    }


def main(work_file: Path, result_file: Path) -> None:
    """Serves the work; what is known so far is in the result file at any time."""
    work: dict[str, Any] = json.loads(work_file.read_text())
    if work["engine"].get("dsa_topk_backend") == "torch":  # as SGLang asks
        os.environ["SGLANG_DSA_FUSE_TOPK"] = "false"
    import sglang

    engine = sglang.Engine(**work["engine"])
    result: dict[str, Any] = {"answers": [], "loads": []}
    if work["prompts"]:
        sampling = _greedy(work["new_tokens"])
        answers = engine.generate(input_ids=work["prompts"], sampling_params=sampling)
        result["answers"] = [one["output_ids"][: work["new_tokens"]] for one in answers]
        result_file.write_text(json.dumps(result))
    run = engine.loop.run_until_complete
    for context, requests, new_tokens in work["loads"]:
        run(_load(engine, context, 1, 8))  # compiles, and caches the shared head
        result["loads"].append(run(_load(engine, context, requests, new_tokens)))
        result_file.write_text(json.dumps(result))
    engine.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
