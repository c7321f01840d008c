"""The HE server as an application of Ray Serve: an evaluator a replica, gRPC as the way in.

    serve run deploy/ray/serve.yaml        # or: serve build, serve deploy

A call of SecureInferenceService is unary and carries all that it needs, so any replica answers any
call, and clients are ours as they are. Serve's proxy knows nothing of callers' certificates: what
checks them, README.md says.
"""

from __future__ import annotations

import logging
import secrets
import time
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.grpc_util import RayServegRPCContext
from ray.util.metrics import Counter, Histogram

from secure_quant.errors import (
    InternalError,
    MalformedMessage,
    ModelNotFound,
    SecureQuantError,
    ServiceError,
)
from secure_quant.he.bundle import load_server
from secure_quant.he.plan import MAX_BATCH
from secure_quant.wire import info_to_proto, to_status
from secure_quant.wire.gen.secure_inference_pb2 import (
    EvaluateLinearRequest,
    EvaluateLinearResponse,
    EvaluateModelRequest,
    EvaluateModelResponse,
    GetModelRequest,
    GetModelResponse,
)

__all__ = ["HomomorphicLinear", "build"]

_LOG = logging.getLogger("ray.serve")
AUTOSCALING = {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 1}
SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5]


@serve.deployment(
    num_replicas="auto",
    # One call at a time: TenSEAL holds Python's lock, and a process is what Serve adds.
    max_ongoing_requests=2,
    ray_actor_options={"num_cpus": 1},
    health_check_period_s=5,
    autoscaling_config=AUTOSCALING,
)
class HomomorphicLinear:
    """bundle: path of the server bundle that ``secure-quant split --engine he`` made, on every node
    that may have a replica."""

    def __init__(self, bundle: str) -> None:
        self._evaluator = load_server(Path(bundle).read_bytes())
        graph, plan = self._evaluator.graph, self._evaluator.plan
        self._info = info_to_proto(graph, plan.to_json())
        tags = {"model": graph.hash}
        self._samples = Counter("secure_quant_samples", "Samples.", tag_keys=("model",))
        self._bytes = Counter(
            "secure_quant_bytes", "Ciphertexts in and out.", tag_keys=("model", "way")
        )
        self._seconds = Histogram(
            "secure_quant_evaluate_seconds", "Of a layer.", SECONDS, tag_keys=("model", "step")
        )
        self._samples.set_default_tags(tags)
        self._bytes.set_default_tags(tags)
        self._seconds.set_default_tags(tags)
        for step in range(len(plan.steps)):
            self._evaluator.prepare(step, 1)  # the first call is no slower than the second

    def GetModel(  # noqa: N802 - the protocol's names
        self, request: GetModelRequest, grpc_context: RayServegRPCContext
    ) -> GetModelResponse:
        """The public graph and plan."""
        return _answered(
            grpc_context, GetModelResponse, lambda: GetModelResponse(info=self._asked(request))
        )

    def EvaluateLinear(  # noqa: N802
        self, request: EvaluateLinearRequest, grpc_context: RayServegRPCContext
    ) -> EvaluateLinearResponse:
        """One linear layer on ciphertexts."""
        return _answered(grpc_context, EvaluateLinearResponse, lambda: self._evaluate(request))

    def EvaluateModel(  # noqa: N802
        self, request: EvaluateModelRequest, grpc_context: RayServegRPCContext
    ) -> EvaluateModelResponse:
        """Of leveled models, whose sessions live at one server."""

        def refused() -> EvaluateModelResponse:
            hint = "serve he, on a host of its own"
            raise ServiceError("sessions of leveled models", got="Ray Serve", hint=hint)

        return _answered(grpc_context, EvaluateModelResponse, refused)

    def check_health(self) -> None:
        """Serve starts the replica anew where this raises."""
        if not self._evaluator.plan.steps:
            raise RuntimeError("no layer is served")

    def _asked(self, request: Any) -> Any:
        if request.model_hash not in ("", self._info.model_hash):
            raise ModelNotFound(
                "model", got=ascii(request.model_hash[:64]), expected=self._info.model_hash
            )
        return self._info

    def _evaluate(self, request: EvaluateLinearRequest) -> EvaluateLinearResponse:
        self._asked(request)
        steps = len(self._evaluator.plan.steps)
        if request.step >= steps:
            raise MalformedMessage("step", got=request.step, expected=f"< {steps}")
        if not 1 <= request.batch <= MAX_BATCH:
            raise MalformedMessage("batch", got=request.batch, expected=f"1 to {MAX_BATCH}")
        start = time.perf_counter()
        made = self._evaluator.evaluate(request.step, request.batch, request.ciphertexts)
        self._seconds.observe(time.perf_counter() - start, tags={"step": str(request.step)})
        self._samples.inc(request.batch)
        self._bytes.inc(len(request.ciphertexts), tags={"way": "in"})
        self._bytes.inc(len(made), tags={"way": "out"})
        return EvaluateLinearResponse(ciphertexts=made)


def _answered(context: RayServegRPCContext, empty: Any, answer: Any) -> Any:
    """What ``answer`` returns; its errors become the call's status, as at our own server. What is
    let out otherwise Serve would tell the caller, with its traceback."""
    try:
        return answer()
    except SecureQuantError as error:
        code, text, metadata = to_status(error)
    except Exception as error:  # noqa: BLE001  the border: it is logged by an id
        incident = secrets.token_hex(8)
        _LOG.error("call failed: %s, incident %s", type(error).__name__, incident)
        named = InternalError("the server failed", hint=f"incident {incident} in its log")
        code, text, metadata = to_status(named)
    context.set_code(code)
    context.set_details(text)
    context.set_trailing_metadata(list(metadata))
    return empty()


def build(arguments: dict[str, Any]) -> serve.Application:
    """``bundle``: see HomomorphicLinear. ``replicas``: a fixed number, in place of autoscaling.
    ``autoscaling``: fields of Serve's AutoscalingConfig, over ours."""
    deployment = HomomorphicLinear
    if "autoscaling" in arguments:
        deployment = deployment.options(
            autoscaling_config=AUTOSCALING | dict(arguments["autoscaling"])
        )
    if "replicas" in arguments:
        deployment = deployment.options(
            num_replicas=int(arguments["replicas"]), autoscaling_config=None
        )
    application: serve.Application = deployment.bind(str(arguments["bundle"]))
    return application
