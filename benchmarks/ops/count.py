"""Operations and bytes of each op, counted from its shapes."""

from benchmarks.ops.work import Work
from hisparse_kernels.layouts import INDEX_DIM, PAGE_TOKENS, KvLayout

INDEX_ROW_BYTES = 132
LATENT_DIM, QUERY_DIM = 512, 576
_SUM_BYTES = 4 * INDEX_DIM


def prefill_pairs(rows: int, keys: int) -> int:
    """Pairs of a query and a key that it may see, for `rows` queries at the end of `keys` keys."""
    return rows * keys - rows * (rows - 1) // 2


def moved_work(count: int, *bytes_each: int) -> Work:
    """So many things, each read and written in parts of so many bytes."""
    return Work(device_bytes=float(count * sum(bytes_each)))


def logits_work(pairs: int, rows: int, heads: int, keys_read: int) -> Work:
    """Index logits: e4m3 products, each key read once, each logit written once."""
    query_bytes = rows * heads * (INDEX_DIM + 4)
    return Work(
        operations=2.0 * heads * INDEX_DIM * pairs,
        device_bytes=float(query_bytes + keys_read * INDEX_ROW_BYTES + 4 * pairs),
    )


def selection_work(pairs: int, rows: int, heads: int, keys_read: int, topk: int) -> Work:
    """Whole selections: as index logits, but only what is chosen is written."""
    logits = logits_work(pairs, rows, heads, keys_read)
    return Work(logits.operations, logits.device_bytes - 4 * pairs + rows * 4 * topk)


def topk_work(rows: int, columns: int, k: int) -> Work:
    """Choose: each score read once, each choice written once."""
    return moved_work(rows, 4 * columns, 4 * k)


def append_work(rows: int, sequences: int, closed_blocks: int) -> Work:
    """Index rows read and written; each sequence's open sum too; closed blocks written."""
    moved_bytes = rows * 2 * INDEX_ROW_BYTES + sequences * 2 * _SUM_BYTES
    return Work(device_bytes=float(moved_bytes + closed_blocks * INDEX_ROW_BYTES))


def append_rows_work(rows: int, row_bytes: int, heads: int) -> Work:
    """One row of each sequence packed and sent over the link; of no heads the KV row alone.

    Else its index row too, which is also written to the window; its sum, and the index inputs read.
    """
    moved_bytes, sent_bytes = 2 * QUERY_DIM + row_bytes, row_bytes
    if heads:
        moved_bytes += 2 * INDEX_DIM + heads * (INDEX_DIM + 4) + INDEX_ROW_BYTES + 2 * _SUM_BYTES
        sent_bytes += INDEX_ROW_BYTES
    return Work(device_bytes=float(rows * moved_bytes), to_host_bytes=float(rows * sent_bytes))


def rebuild_work(tokens: int, block_tokens: int) -> Work:
    """Every index row read, one pooled row written for each block."""
    return Work(device_bytes=float(INDEX_ROW_BYTES * (tokens + tokens // block_tokens)))


def resum_work(sequences: int, open_tokens: int) -> Work:
    """The rows of each open block read, its sum written."""
    return moved_work(sequences, open_tokens * INDEX_ROW_BYTES, _SUM_BYTES)


def route_work(rows: int, heads: int, blocks: int, group_blocks: int, sequences: int) -> Work:
    """Pooled keys read once, one product of every head with every group of them."""
    read_bytes = rows * heads * (INDEX_DIM + 4) + sequences * blocks * INDEX_ROW_BYTES
    return Work(
        operations=2.0 * rows * heads * INDEX_DIM * (blocks // group_blocks),
        device_bytes=float(read_bytes),
    )


def swap_in_work(misses: int, row_bytes: int, items: int = 0) -> Work:
    """Missed rows over the link and into device memory; each item read and its slot written."""
    copied = float(misses * row_bytes)
    return Work(device_bytes=copied + 8.0 * items, to_device_bytes=copied)


def swap_in_blocks_work(misses: int, block_tokens: int) -> Work:
    """Whole blocks of index rows over the link and into device memory."""
    return swap_in_work(misses * block_tokens // PAGE_TOKENS, PAGE_TOKENS * INDEX_ROW_BYTES)


def resolve_work(items: int, slots: int, misses: int) -> Work:
    """Each item, its table entry and its slot; every slot's stamp; what hits and misses change."""
    item_bytes, miss_bytes = 4 + 2 + 4 + 4, 4 + 2 + 2 + 2 * 4
    return Work(device_bytes=float(items * item_bytes + slots * 4 + misses * miss_bytes))


def release_work(slots: int) -> Work:
    """Every slot's item read, and it, its stamp and its table entry written."""
    return moved_work(slots, 4, 4 + 4 + 2)


def spill_work(rows: int, row_bytes: int) -> Work:
    """Rows read in device memory and sent over the link."""
    return Work(device_bytes=float(rows * row_bytes), to_host_bytes=float(rows * row_bytes))


def attention_work(rows: int, heads: int, topk: int, rows_read: int, layout: KvLayout) -> Work:
    """Sparse MLA: bf16 products, each KV row that is listed at all read once."""
    per_query = 2 * heads * (QUERY_DIM + LATENT_DIM)
    return Work(
        operations=2.0 * rows * heads * (QUERY_DIM + LATENT_DIM) * topk,
        device_bytes=float(rows * (per_query + 4 * topk) + rows_read * layout.row_bytes),
        precision="bf16",
    )
