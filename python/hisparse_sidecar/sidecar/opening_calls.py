"""How sequences are opened: admitted by the core first, then made ready on the device.

What may wait for lower tiers is in the first half, which any thread may call at any time, also
while a step is open: it touches nothing of a step, nor of the device.
"""

from collections.abc import Sequence
from contextlib import suppress

from typing_extensions import Unpack

from hisparse_sidecar.backends import runs_on_its_device
from hisparse_sidecar.config import SelectionConfig
from hisparse_sidecar.config.sequence import (
    AdmittedSequence,
    OpenedPrompt,
    OpenOptions,
    SequenceOptions,
)
from hisparse_sidecar.errors import StaleHandle
from hisparse_sidecar.sidecar.restore import restore_sequence
from hisparse_sidecar.sidecar.state import SidecarState


class OpeningCalls(SidecarState):
    """The calls of `Sidecar` that open sequences; `open` and `open_prompt` are both halves."""

    @runs_on_its_device
    def open(
        self,
        prompt_tokens: int,
        max_new_tokens: int,
        *,
        selection: SelectionConfig | None = None,
        hot_slots: int | None = None,
        window_blocks: int | None = None,
    ) -> int:
        """Admits a sequence: host pages for prompt + max_new_tokens and its device ranges.

        Args:
            prompt_tokens: tokens that prefill will append.
            max_new_tokens: most tokens that decoding will append.
            selection: how its top-k is found; default: the config's.
            hot_slots: KV rows on the device, a layer; default: the config's.
            window_blocks: index-key blocks on the device, an anchor layer; default: the config's.

        Returns:
            The handle of the sequence.

        Raises:
            InvalidArgument: a count is out of range or too small for the selection.
            HostPoolFull, DeviceArenaFull: not admitted; nothing is held.
        """
        options = OpenOptions(selection=selection, hot_slots=hot_slots, window_blocks=window_blocks)
        return self._adopt_or_discard(self.admit(prompt_tokens, max_new_tokens, **options)).sequence

    @runs_on_its_device
    def open_prompt(
        self,
        token_ids: Sequence[int],
        max_new_tokens: int,
        *,
        tenant: str = "",
        selection: SelectionConfig | None = None,
        hot_slots: int | None = None,
        window_blocks: int | None = None,
    ) -> OpenedPrompt:
        """As `open`, on what any tier has of the beginning of the prompt.

        Pages are found that sequences of the same tenant have left: whole ones, and never the
        whole prompt. Prefill goes on after them. What the sequence appends is found by others in
        its turn if `begin_step` is told its token ids.

        Args:
            token_ids: the prompt's, 0 to 2**32 - 1 each.
            max_new_tokens: see `open`.
            tenant: whose pages may be found, see `add_tenant`; "" is there from the start.
            selection: see `open`.
            hot_slots: see `open`.
            window_blocks: see `open`.

        Raises:
            InvalidArgument: no such tenant, and see `open`.
            TierFull: the tenant's share of the host pool has no room.
            HostPoolFull, DeviceArenaFull: not admitted; nothing is held.
            WrongState: a step is open.
        """
        self._require_open()
        self._require_no_step("open a prompt")
        options = OpenOptions(selection=selection, hot_slots=hot_slots, window_blocks=window_blocks)
        return self._adopt_or_discard(
            self.admit_prompt(token_ids, max_new_tokens, tenant=tenant, **options)
        )

    def admit(
        self, prompt_tokens: int, max_new_tokens: int, **options: Unpack[OpenOptions]
    ) -> AdmittedSequence:
        """The first half of `open`, from any thread; nobody's until `adopt` or `discard`."""
        wanted = SequenceOptions.of_open(self.config, options)
        self._require_open()
        sequence = self._tiers.lower.open_sequence(
            prompt_tokens, max_new_tokens, wanted.device_slots(self.config)
        )
        return AdmittedSequence(sequence, None, wanted)

    def admit_prompt(
        self,
        token_ids: Sequence[int],
        max_new_tokens: int,
        *,
        tenant: str = "",
        **options: Unpack[OpenOptions],
    ) -> AdmittedSequence:
        """The first half of `open_prompt`, from any thread; nobody's until `adopt` or `discard`."""
        wanted = SequenceOptions.of_open(self.config, options)
        self._require_open()
        sequence, cached_tokens = self._tiers.lower.open_prompt(
            tenant, token_ids, max_new_tokens, wanted.device_slots(self.config)
        )
        return AdmittedSequence(sequence, cached_tokens, wanted)

    @runs_on_its_device
    def adopt(self, admitted: AdmittedSequence) -> OpenedPrompt:
        """The second half of `open` and of `open_prompt`: the sequence is ready for steps.

        Raises:
            WrongState: a step is open, and the sequence is a prompt's.
        """
        self._require_open()
        if admitted.cached_tokens is not None:
            self._require_no_step("open a prompt")
        restore_sequence(self._tiers, admitted.sequence)
        self._options[admitted.sequence] = admitted.options
        return OpenedPrompt(admitted.sequence, admitted.cached_tokens or 0)

    def _adopt_or_discard(self, admitted: AdmittedSequence) -> OpenedPrompt:
        try:
            return self.adopt(admitted)
        except BaseException:
            self.discard(admitted)
            raise

    def discard(self, admitted: AdmittedSequence) -> None:
        """Gives back what was admitted, unless it was adopted: `close_sequence` is for that."""
        if admitted.sequence not in self._options:
            with suppress(StaleHandle):  # adopted, and closed since
                self._manager.close(admitted.sequence)
                self._tiers.lower.wake()
