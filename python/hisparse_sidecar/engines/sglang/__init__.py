"""SGLang's attention backend `hisparse`: DSA attention whose tokens our selectors choose."""

from hisparse_sidecar.engines.sglang.plugin import register
from hisparse_sidecar.engines.sglang.settings import SglangSettings, read_settings

__all__ = ["SglangSettings", "read_settings", "register"]
