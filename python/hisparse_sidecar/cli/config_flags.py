"""The flags of `hisparse serve` that set fields of `SidecarConfig`."""

import argparse
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class _Flag:
    """One flag: `--host-pages` sets `host_pages`; a dotted field lies in a nested object."""

    field: str
    kind: type
    help: str

    @property
    def name(self) -> str:
        return "--" + self.field.rpartition(".")[2].replace("_", "-")


_FLAGS = {
    "model": (
        _Flag("model.num_layers", int, "attention layers"),
        _Flag("model.anchor_of", list, "for each layer the layer whose selection it uses: 0,0,2,2"),
        _Flag("model.index_heads", int, "heads of the indexer"),
        _Flag("model.topk", int, "tokens that attention reads for each row"),
        _Flag("model.softmax_scale", float, "factor on q . k before the softmax"),
    ),
    "capacity": (
        _Flag("host_pages", int, "pages of 64 tokens in the host pool"),
        _Flag("max_sequences", int, "sequences open at once"),
        _Flag("hot_slots", int, "KV rows of a sequence and layer on the device (2 * topk)"),
        _Flag(
            "window_blocks", int, "index-key blocks of a sequence and anchor layer on the device"
        ),
        _Flag("max_step_rows", int, "most rows of a sequence in a decode step"),
        _Flag("warm_rows", int, "last rows of a chunk whose selection stays on the device (0)"),
        _Flag("stage_rows", int, "device rows through which a prefill chunk streams"),
        _Flag("block_tokens", int, "tokens of a block, a multiple of 64"),
    ),
    "layout and device": (
        _Flag("kv_layout", str, "fp8_ds_mla, bf16, fp8 or fp32"),
        _Flag("index_layout", str, "fp8 or fp32"),
        _Flag("device", str, "where the device tier lives: cpu, cuda or cuda:N"),
        _Flag("backend", str, "auto, reference, triton, gluon_sm100 or flash_mla"),
        _Flag("split_keys", int, "keys of a split of decode attention (256 or 128; 0: none)"),
        _Flag("overlap_rows", int, "rows whose copies run beside attention to others (0)"),
        _Flag("huge_pages", bool, "ask for huge pages under the host pool"),
        _Flag("numa_node", int, "bind the host pool to this NUMA node"),
    ),
    "lower tiers": (
        _Flag("tiers.file_directory", str, "directory of the file tier; none without it"),
        _Flag("tiers.file_bytes", int, "most bytes of its files"),
        _Flag("tiers.segment_bytes", int, "bytes of one file"),
        _Flag("tiers.strict_recovery", bool, "refuse to start on damaged files"),
        _Flag("tiers.remote_master", str, "host:port of a Mooncake master; none without it"),
        _Flag("tiers.remote_segment_bytes", int, "memory that is lent to the remote store"),
        _Flag("tiers.secret_file", str, "32 bytes that page names are made with"),
        _Flag("tiers.model_name", str, "names the weights: pages are shared between equal names"),
        _Flag("tiers.free_share", float, "share of the host pool that is kept free"),
        _Flag("tiers.io_threads", int, "threads that move pages"),
        _Flag("tiers.staging_bytes", int, "most bytes of pages on their way"),
        _Flag("tiers.load_seconds", float, "most that opening a prompt waits for lower tiers"),
        _Flag("tiers.call_seconds", float, "most that one call of a tier takes"),
        _Flag("tiers.probe_seconds", float, "most that measuring the tiers takes; 0: do not"),
        _Flag("tiers.recompute_tokens_per_second", float, "what loading has to beat (measured)"),
    ),
    "default selection": (
        _Flag("selection.index_source", str, "flat, hisa, misa, misa_dagger or given"),
        _Flag("selection.num_kept_blocks", int, "HISA: blocks whose tokens are scored"),
        _Flag("selection.routed_heads", int, "MISA: heads that score every token"),
        _Flag("selection.candidates", int, "MISA-dagger: tokens that all heads rank again"),
        _Flag("selection.routed_stages", str, "HISA: none, blocks, tokens or both by MISA's heads"),
        _Flag("selection.budget", str, "HISA: fixed, ratio (a quarter of the blocks) or adaptive"),
        _Flag("selection.max_blocks", int, "HISA by ratio or adaptive: most blocks of a row"),
        _Flag("selection.tail_share", float, "HISA, adaptive: share of the worst to double at"),
        _Flag("selection.gate", str, "HISA: auto (flat where measured to be faster) or off"),
        _Flag("selection.audit_one_in", int, "one row in so many is also scored flat (0: none)"),
        _Flag("layer_profile", str, "TOML or JSON file of what single layers change"),
    ),
}


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Add one flag for each field; a flag that is not given leaves the field alone."""
    for title, flags in _FLAGS.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            _add_flag(group, flag)


def values_of_flags(args: argparse.Namespace) -> dict[str, Any]:
    """Nested plain values of the flags that were given, as `build_config` takes them."""
    values: dict[str, Any] = {}
    for flag in (flag for flags in _FLAGS.values() for flag in flags):
        given = getattr(args, flag.field)
        if given is None:
            continue
        outer, _, name = flag.field.rpartition(".")
        target = values.setdefault(outer, {}) if outer else values
        target[name] = given
    return values


def _add_flag(group: "argparse._ArgumentGroup", flag: _Flag) -> None:
    if flag.kind is bool:
        action = argparse.BooleanOptionalAction
        group.add_argument(flag.name, dest=flag.field, action=action, help=flag.help)
        return
    kind = _parse_integers if flag.kind is list else flag.kind
    metavar = flag.kind.__name__.upper()
    group.add_argument(flag.name, dest=flag.field, type=kind, metavar=metavar, help=flag.help)


def _parse_integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]
