"""Attach a transformers model to a session: its own layers run, selection and KV go elsewhere."""

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import nn
from typing_extensions import Unpack

from hisparse_kernels.index_rows import quantize_index_q
from hisparse_sidecar.config import ModelShape
from hisparse_sidecar.config.sequence import OpenOptions
from hisparse_sidecar.engines.transformers.cache import SidecarCache
from hisparse_sidecar.engines.transformers.family import (
    EngineModule,
    ModelFamily,
    attention_modules,
    family_of,
)
from hisparse_sidecar.engines.transformers.index_rows import index_rows
from hisparse_sidecar.engines.transformers.mla import hidden_of_latents, mla_rows
from hisparse_sidecar.engines.transformers.model_shape import model_shape
from hisparse_sidecar.engines.transformers.patches import ForwardPatches
from hisparse_sidecar.engines.transformers.requests import checked_call, with_own_cache_name
from hisparse_sidecar.errors import InvalidArgument
from hisparse_sidecar.layer_io import LayerInputs, LayerOutputs
from hisparse_sidecar.sidecar import Session

# layer, what it handed over, what it got back
LayerObserver = Callable[[int, LayerInputs, LayerOutputs], None]


def attach(
    model: nn.Module, session: Session, *, on_layer: LayerObserver | None = None
) -> "Attachment":
    """Routes every attention layer of `model` through `session`, until `detach`.

    One forward of the model is one step: all rows of the batch get the same number of new tokens,
    and a forward that raises rolls every sequence back.

    Args:
        model: `DeepseekV32ForCausalLM` or `GlmMoeDsaForCausalLM`, in eval mode.
        session: built for this model's `model_shape`.
        on_layer: called after each layer, with what went in and came out.

    Raises:
        InvalidArgument: another class, training mode, or a session built for another shape.
        WrongState: the model is attached already.
    """
    family = family_of(model)
    _require_eval(model)
    _require_same_shape(model_shape(model.config), session.config.model)
    return Attachment(model, family, session, on_layer)


class Attachment:
    """A model whose forwards are steps of a session. `detach` (or `with`) gives the model back.

    Attributes:
        model: the attached model.
        session: where its selection and KV are.
    """

    def __init__(
        self,
        model: nn.Module,
        family: ModelFamily,
        session: Session,
        on_layer: LayerObserver | None,
    ) -> None:
        self.model, self.session = model, session
        self._family, self._on_layer = family, on_layer
        self._quantizes = session.config.index_layout == "fp8"
        self._patches = ForwardPatches()
        shape = session.config.model
        for layer, attention in enumerate(attention_modules(model)):
            _require_layer(layer, attention, shape)
            self._patches.replace(attention, self._attention_forward(layer, attention))
        self._patches.replace(model, self._model_forward(model.forward))

    def open(
        self,
        prompt_tokens: int,
        max_new_tokens: int,
        *,
        batch_size: int = 1,
        **options: Unpack[OpenOptions],
    ) -> SidecarCache:
        """A cache with one open sequence for each row of a batch; see `SidecarCache.open`."""
        return SidecarCache.open(
            self.session,
            prompt_tokens,
            max_new_tokens,
            batch_size=batch_size,
            **options,
        )

    def open_prompt(
        self,
        prompt_ids: torch.Tensor | Sequence[int],
        max_new_tokens: int,
        *,
        tenant: str = "",
        **options: Unpack[OpenOptions],
    ) -> SidecarCache:
        """A cache with what any tier has of the prompts; see `SidecarCache.open_prompt`.

        For `model.generate(prompt_ids, past_key_values=cache)`, which prefills the rest; with
        `prefill_chunk_size` too from transformers 5.21 on, before it is refused where tokens are
        cached. Pages that the forwards fill are found by later prompts; `inputs_embeds` end that.
        """
        return SidecarCache.open_prompt(
            self.session, prompt_ids, max_new_tokens, tenant=tenant, **options
        )

    def detach(self) -> None:
        """Gives the model back as it was; open sequences stay. A second call does nothing."""
        self._patches.restore()

    def __enter__(self) -> "Attachment":
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _model_forward(self, stock: Callable[..., Any]) -> Callable[..., Any]:
        """The model's forward as one step."""
        signature = inspect.signature(stock)

        @wraps(stock)
        def forward(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            _require_eval(self.model)
            bound = signature.bind(*args, **with_own_cache_name(kwargs, signature))
            call = checked_call(bound.arguments, self.model, self.session)
            bound.arguments.update(call.arguments)
            rows = call.cache.step_rows(call.num_rows)
            self.session.begin_step(rows, call.kind, token_ids=call.token_ids)
            try:
                with torch.no_grad():
                    result = stock(*bound.args, **bound.kwargs)
                self.session.end_step()
            except BaseException:
                self.session.abort_step()
                raise
            call.cache.advance(call.num_rows)
            return result

        return forward

    def _attention_forward(self, layer: int, attention: EngineModule) -> Callable[..., Any]:
        """One attention module's forward, through the session."""

        def forward(
            hidden_states: torch.Tensor,
            position_embeddings: tuple[torch.Tensor, torch.Tensor],
            **_: Any,  # noqa: ANN401
        ) -> tuple[Any, ...]:
            hidden = hidden_states.flatten(0, 1)  # [rows, hidden_size], batch row after batch row
            cos, sin = (table.flatten(0, 1) for table in position_embeddings)
            inputs = self._layer_inputs(layer, attention, hidden, cos, sin)
            outputs = self.session.run_layer(layer, inputs)
            if self._on_layer is not None:
                self._on_layer(layer, inputs, outputs)
            result = hidden_of_latents(attention, outputs.out.to(hidden.device))
            return self._family.attention_result(result.view(hidden_states.shape))

        return forward

    def _layer_inputs(
        self,
        layer: int,
        attention: EngineModule,
        hidden: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
    ) -> LayerInputs:
        rows = mla_rows(attention, hidden, cos, sin, self._family.rotate_rows)
        if not self.session.config.model.is_anchor(layer):
            return LayerInputs(query=rows.query, kv=rows.kv)
        index = index_rows(
            attention.indexer, hidden, rows.q_resid, cos, sin, self._family.rotate_index
        )
        index_q, index_weights = index.index_q, index.index_weights
        if self._quantizes:
            index_q, index_weights = quantize_index_q(index_q, index_weights)
        return LayerInputs(
            query=rows.query,
            kv=rows.kv,
            index_q=index_q,
            index_weights=index_weights,
            index_k=index.index_k,
        )


def _require_eval(model: nn.Module) -> None:
    if model.training:
        raise InvalidArgument("model is in training mode, need eval mode: call model.eval() first")


def _require_same_shape(found: ModelShape, built_for: ModelShape) -> None:
    for name in ("num_layers", "anchor_of", "index_heads", "topk"):
        ours, theirs = getattr(found, name), getattr(built_for, name)
        if ours != theirs:
            raise InvalidArgument(f"{name} of the model is {ours}, the session's is {theirs}")
    _require_scale("the model", found.softmax_scale, built_for.softmax_scale)


def _require_layer(layer: int, attention: EngineModule, shape: ModelShape) -> None:
    if shape.is_anchor(layer) and attention.indexer is None:
        raise InvalidArgument(f"layer {layer} selects, but its model layer has no indexer")
    _require_scale(f"layer {layer}", float(attention.scaling), shape.softmax_scale)


def _require_scale(what: str, found: float, built_for: float) -> None:
    if abs(found - built_for) > 1e-6 * built_for:
        raise InvalidArgument(f"softmax scale of {what} is {found}, the session's is {built_for}")
