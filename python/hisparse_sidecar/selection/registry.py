"""From a selection's configuration to the selector that carries it out."""

from hisparse_sidecar.config import SelectionConfig
from hisparse_sidecar.errors import InvalidArgument
from hisparse_sidecar.selection.adaptive import AdaptiveHisaSelector
from hisparse_sidecar.selection.contract import Selector
from hisparse_sidecar.selection.flat import FlatSelector
from hisparse_sidecar.selection.hisa import HisaSelector
from hisparse_sidecar.selection.misa import MisaDaggerSelector, MisaSelector
from hisparse_sidecar.selection.ratio import RatioHisaSelector


def selector_for(selection: SelectionConfig) -> Selector:
    """The selector of `selection`.

    Raises:
        InvalidArgument: for "given", whose positions come with the step's inputs.
    """
    match selection.index_source:
        case "flat":
            return FlatSelector()
        case "hisa":
            return _hisa(selection)
        case "misa":
            return MisaSelector(selection.routed_heads)
        case "misa_dagger":
            return MisaDaggerSelector(selection.routed_heads, selection.candidates)
        case _:
            raise InvalidArgument(f"index_source {selection.index_source!r} has no selector")


def _hisa(selection: SelectionConfig) -> Selector:
    kept, most = selection.num_kept_blocks, selection.max_blocks
    match selection.budget:
        case "fixed":
            stages = selection.routed_stages
            if stages == "none":
                return HisaSelector(kept)
            routed = selection.routed_heads
            return HisaSelector(kept, routed, stages != "tokens", stages != "blocks")
        case "ratio":
            return RatioHisaSelector(kept, most)
        case "adaptive":
            return AdaptiveHisaSelector(kept, most, selection.tail_share)
