"""Names that traces use, in one place because conventions move.

Sources: OpenTelemetry's semantic conventions for HTTP servers (stable) and for RPC servers
(release candidate). Those of our own begin with `tapster.`. What a model is has no stable
convention; wires of generative models will find their `gen_ai.` names here.
"""

from typing import Final

SERVICE_NAME: Final = "service.name"
SERVICE_VERSION: Final = "service.version"
SERVICE_INSTANCE: Final = "service.instance.id"

HTTP_METHOD: Final = "http.request.method"
HTTP_ROUTE: Final = "http.route"
HTTP_STATUS: Final = "http.response.status_code"
URL_SCHEME: Final = "url.scheme"
RPC_SYSTEM: Final = "rpc.system.name"
RPC_METHOD: Final = "rpc.method"
RPC_STATUS: Final = "rpc.response.status_code"
ERROR_TYPE: Final = "error.type"

REQUEST_ID: Final = "tapster.request.id"
TENANT: Final = "tapster.tenant"
ENDPOINT: Final = "tapster.endpoint"
VERSION: Final = "tapster.version"
ROWS: Final = "tapster.rows"
QUEUE_SECONDS: Final = "tapster.queue.seconds"
RUN_SECONDS: Final = "tapster.run.seconds"

# The spans within a request's span.
READ: Final = "read"
QUEUE: Final = "queue"
RUN: Final = "run"
WRITE: Final = "write"
