"""Whether this server tells of spans, decided once at start. Without the extra `otel` no part of it is imported."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Final

from storage.clock import Clock
from web.server.settings import SettingsError, Tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

    from web.server.spans import Spans

EXPORTERS: Final = "opentelemetry_traces_exporter"
"""The entry points of what takes spans away."""

EXPORTER_VARIABLE: Final = "OTEL_TRACES_EXPORTER"
PROTOCOL_VARIABLES: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def open_spans(tracing: Tracing, clock: Clock) -> Spans | None:
    """What tells of spans; `None`: nobody wants to know.

    Raises:
        SettingsError: they are wanted, and what makes them is not installed.
    """
    if tracing == "off":
        return None
    try:
        from opentelemetry import trace  # noqa: PLC0415 - the extra

        from web.server.spans import Spans  # noqa: PLC0415 - as it imports that
    except ImportError:
        if tracing == "on":
            raise SettingsError(
                "tracing is on, but the OpenTelemetry API is not installed: pip install opentelemetry-sdk"
            ) from None
        return None
    if tracing == "on":
        return Spans(_provider(), clock)
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None
    return Spans(provider, clock)


def _provider() -> TracerProvider:
    """The SDK's, as its variables (`OTEL_...`) configure it; it gives what it holds away when the process ends."""
    try:
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - the operator's
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - as above
    except ImportError:
        raise SettingsError("tracing is on, but no SDK is installed: pip install opentelemetry-sdk") from None
    provider = TracerProvider()
    for name in os.environ.get(EXPORTER_VARIABLE, "otlp").split(","):
        if name.strip() != "none":
            provider.add_span_processor(BatchSpanProcessor(_exporter(name.strip())))
    return provider


def _exporter(name: str) -> SpanExporter:
    """What takes spans away, by its name; `otlp` by its protocol."""
    if name == "otlp":
        protocol = next((os.environ[one] for one in PROTOCOL_VARIABLES if one in os.environ), "http/protobuf")
        name = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    found = next(iter(entry_points(group=EXPORTERS, name=name)), None)
    if found is None:
        raise SettingsError(
            f"tracing is on, but no exporter {name!r} is installed ({EXPORTER_VARIABLE}): "
            "pip install opentelemetry-exporter-otlp-proto-http, or name another one"
        )
    exporter: SpanExporter = found.load()()
    return exporter
