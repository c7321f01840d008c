"""Native values <-> protobuf, and named errors <-> gRPC status; nothing else speaks protobuf."""

from secure_quant.wire.connect import connect_end, connect_error
from secure_quant.wire.models import (
    ReceivedModel,
    graph_from_proto,
    graph_to_proto,
    info_from_proto,
    info_to_proto,
)
from secure_quant.wire.sharing import SHARING, check_sharing
from secure_quant.wire.status import TAKEN, from_abort, from_status, raised, to_abort, to_status

__all__ = [
    "SHARING",
    "TAKEN",
    "ReceivedModel",
    "check_sharing",
    "connect_end",
    "connect_error",
    "from_abort",
    "from_status",
    "graph_from_proto",
    "graph_to_proto",
    "info_from_proto",
    "info_to_proto",
    "raised",
    "to_abort",
    "to_status",
]
