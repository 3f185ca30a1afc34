"""TurboQuant-compressed KV caches for mlx-lm models.

``make_prompt_cache(model, "turbo0v4")`` returns a list for ``mlx_lm.stream_generate(..., prompt_cache=...)``.
Names are imported on first use, so that schemes and reports load without MLX.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqchat.kv.cache import SchemeCache as SchemeCache
    from tqchat.kv.calibration import forget_queries as forget_queries
    from tqchat.kv.calibration import needs_queries as needs_queries
    from tqchat.kv.calibration import observe_queries as observe_queries
    from tqchat.kv.conversion import convert as convert
    from tqchat.kv.conversion import convert_in_place as convert_in_place
    from tqchat.kv.memory import LayerReport as LayerReport
    from tqchat.kv.memory import MemoryReport as MemoryReport
    from tqchat.kv.memory import predict_bytes as predict_bytes
    from tqchat.kv.mlx_lm_caches import use_scheme as use_scheme
    from tqchat.kv.prompt_cache import make_prompt_cache as make_prompt_cache
    from tqchat.kv.prompt_cache import use_placeholders as use_placeholders
    from tqchat.kv.report import memory_report as memory_report
    from tqchat.kv.scheme import SCHEMES as SCHEMES
    from tqchat.kv.scheme import Scheme as Scheme
    from tqchat.kv.scheme import UnknownScheme as UnknownScheme
    from tqchat.kv.scheme import parse_scheme as parse_scheme
    from tqchat.kv.snapshot import CacheFileError as CacheFileError
    from tqchat.kv.snapshot import load as load
    from tqchat.kv.snapshot import save as save

_MODULE_OF = {
    "SchemeCache": "cache",
    "LayerReport": "memory",
    "MemoryReport": "memory",
    "predict_bytes": "memory",
    "convert": "conversion",
    "convert_in_place": "conversion",
    "make_prompt_cache": "prompt_cache",
    "use_placeholders": "prompt_cache",
    "memory_report": "report",
    "SCHEMES": "scheme",
    "Scheme": "scheme",
    "UnknownScheme": "scheme",
    "parse_scheme": "scheme",
    "forget_queries": "calibration",
    "needs_queries": "calibration",
    "observe_queries": "calibration",
    "use_scheme": "mlx_lm_caches",
    "CacheFileError": "snapshot",
    "load": "snapshot",
    "save": "snapshot",
}

__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_MODULE_OF[name]}")
    if _MODULE_OF[name] not in ("memory", "scheme"):  # which load without MLX
        import_module(f"{__name__}.mlx_lm_caches").register()
    return getattr(module, name)
