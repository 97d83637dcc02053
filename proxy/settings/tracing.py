"""Where spans are sent: `tracing.otlp_endpoint`, or the variables that OpenTelemetry has for it."""

from collections.abc import Mapping
from importlib.util import find_spec
from urllib.parse import urlsplit

from proxy.settings.model import SettingsModel
from proxy.settings.sources import Report

_KEY = "tracing.otlp_endpoint"
# The first one names the very URL, the other what the path of each signal is put behind.
VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PATH = "/v1/traces"
_NEEDED = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


def read_tracing(model: SettingsModel, *, environ: Mapping[str, str], report: Report) -> str | None:
    """The whole URL that spans are sent to; None where there are none."""
    url = model.tracing.otlp_endpoint or ""
    named = ""
    if not url:
        named = next((name for name in VARIABLES if environ.get(name)), "")
        url = environ.get(named, "")
        if not url or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
            return None
        report.origins[_KEY] = f"environment {named}"
    if not _is_installed():
        hint = (
            "pip install '.[otel]' in the folder of its source; "
            "with its wheel alone: pip install './nomba_proxy-….whl[otel]'"
        )
        if named:  # whoever set it may have meant others on this machine
            report.warnings.append(f"{named} is set, and tracing is not installed: {hint}")
        else:
            report.problem(_KEY, "needs packages that are not installed", hint=hint)
        return None
    if not _is_base(url):
        report.problem(
            _KEY,
            "is no address of a collector",
            hint="Write http://HOST:4318, or https://; what it asks for goes into "
            "OTEL_EXPORTER_OTLP_HEADERS.",
        )
        return None
    if named == VARIABLES[0] or urlsplit(url).path.endswith(_PATH):
        return url
    return url.rstrip("/") + _PATH


def _is_installed() -> bool:
    try:
        return all(find_spec(one) is not None for one in _NEEDED)
    except ModuleNotFoundError:
        return False


def _is_base(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    plain = url.isascii() and url.isprintable() and " " not in url
    return (
        plain
        and parts.scheme in {"http", "https"}
        and bool(parts.hostname)
        and port != 0
        and "@" not in parts.netloc
        and not parts.query
        and not parts.fragment
    )
