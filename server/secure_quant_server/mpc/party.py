"""One of the two parties of secret sharing: a gRPC server in front of lanes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from secure_quant.errors import ConfigError
from secure_quant.mpc.protocol.bundle import load_party
from secure_quant.mpc.protocol.party import PartyProgram
from secure_quant.mpc.runtime.options import LaneOptions
from secure_quant.transport import FreshCredentials, Security, ServerPair, Tls
from secure_quant.wire.gen import (
    share_inference_pb2,
    share_inference_pb2_grpc,
    share_progress_pb2,
    share_progress_pb2_grpc,
)
from secure_quant_server.common import (
    Access,
    Bundle,
    GrpcServer,
    Requests,
    Tokens,
    budgets_of,
    on_stop_signal,
)
from secure_quant_server.common.workers import Template
from secure_quant_server.mpc.batching import Batcher
from secure_quant_server.mpc.board import Board
from secure_quant_server.mpc.config import LaneConfig
from secure_quant_server.mpc.kinds import lane_kind
from secure_quant_server.mpc.lanes import Lanes
from secure_quant_server.mpc.messages import Place
from secure_quant_server.mpc.service import PROGRESS, SERVICE, ShareInference, ShareProgress
from secure_quant_server.mpc.watches import Watches
from secure_quant_server.options import PartyOptions

if TYPE_CHECKING:
    from secure_quant_server.common.web import WebFront

__all__ = ["Front", "PartyOptions", "serve_party"]

CERTIFICATES_S = 1.0
AROUND = 2**12
"""What a request holds besides the share, at most."""


async def serve_party(
    bundles: Sequence[str | os.PathLike[str] | bytes],
    *,
    listen: str,
    link: str,
    dealer: str,
    tls: Security,
    template: Template | None = None,
    **options: Any,
) -> None:
    """Serve a party until SIGTERM or SIGINT; which one, its bundles say.

    bundles  paths, or bytes. ``options`` are those of PartyOptions.
    template  of ``lane_kind(border, worker_memory)``, where the caller has launched it ahead.
    Raises ConfigError, ModelError, InsecureRefused and the errors of ``Tls.load``.
    """
    chosen = PartyOptions(listen=listen, security=tls, link=link, dealer=dealer, **options)
    stop = on_stop_signal()
    front = Front([Bundle(bundle) for bundle in bundles], chosen, template)
    await front.start()
    try:
        await stop.wait()
    finally:
        await front.stop()


class Front:
    """A party's process: its gRPC server, its lanes, and what stands between them."""

    def __init__(
        self, bundles: Sequence[Bundle], options: PartyOptions, template: Template | None
    ) -> None:
        programs = [load_party(bundle.whole(), weights=False) for bundle in bundles]
        parties = {program.party for program in programs}
        if len(parties) != 1:
            raise ConfigError("bundles", got=f"parties {sorted(parties)}", expected="of one party")
        self.party = parties.pop()
        if options.party not in (None, self.party):
            got, expected = f"party {self.party}'s", f"party {options.party}'s"
            raise ConfigError("bundle", got=got, expected=expected)
        self.models = {program.model_hash: program for program in programs}
        if len(self.models) != len(programs):
            raise ConfigError("bundles", expected="a different model each")
        self.options = options
        tokens = Tokens.from_file(options.tokens) if options.tokens is not None else None
        served = [SERVICE] if self.party else [SERVICE, PROGRESS]
        access = Access({name: frozenset({"client"}) for name in served}, tokens)
        self._grpc = GrpcServer(
            options, access, served, role=f"party{self.party}",
            request_bytes=_request_bytes(programs, options.batch),
        )  # fmt: skip
        self.requests = Requests(self._grpc.metrics)
        self.budgets = budgets_of(options, f"party{self.party}", self._grpc.metrics)
        self.board = Board(options.pending, options.pending * 2**20)
        self._following: asyncio.Task[None] | None = None
        place = Place(party=self.party, lane=0, link=options.link, dealer=options.dealer)
        config = LaneConfig(
            place=place, options=LaneOptions.of(options), security=options.security,
            bundles=tuple(bundles),
        )  # fmt: skip
        self.lanes = Lanes(
            config, options.lanes,
            board=self.board, changed=self._lanes_changed,
            template=template or Template(lane_kind(options.border, options.worker_memory)),
        )  # fmt: skip
        self.watches = Watches(self.models, self.lanes.watch, options.pending)
        self.lanes.on_step(self.watches.stepped)
        self.batcher = Batcher(self.lanes, samples=options.batch, wait_s=options.batch_wait_s)
        # Party 0's wait for a lane and in it, party 1's on its board.
        waits = self.board.__len__ if self.party else lambda: self.batcher.waiting
        self._grpc.metrics.registry.register(self.lanes.workers(waits))
        servicer = ShareInference(self)
        share_inference_pb2_grpc.add_ShareInferenceServiceServicer_to_server(
            servicer, self._grpc.server
        )
        watching = None if self.party else ShareProgress(self.watches)
        if watching is not None:
            share_progress_pb2_grpc.add_ShareProgressServiceServicer_to_server(
                watching, self._grpc.server
            )
        self._web = (
            None if options.http_listen is None else _web(servicer, watching, options, self._grpc)
        )

    async def start(self) -> None:
        await self._grpc.start()
        try:
            if self._web is not None:
                await self._web.start()
        except BaseException:
            await self._grpc.stop()
            raise
        self.lanes.start()
        if isinstance(self.options.security, Tls):
            fresh = FreshCredentials(self.options.security)
            self._following = asyncio.create_task(self._follow(fresh))

    async def stop(self) -> None:
        if self._following is not None:
            self._following.cancel()
        if self._web is not None:
            await self._web.stop(self.options.grace_s)
        await self._grpc.stop()
        await self.lanes.stop()
        await self.budgets.close()

    async def _follow(self, fresh: FreshCredentials) -> None:
        """Lanes see no files: certificates that were replaced are handed to them."""
        while True:
            await asyncio.sleep(CERTIFICATES_S)
            found = fresh.look()
            if found is not None:
                self.lanes.certify(found)

    def _lanes_changed(self, ready: bool) -> None:
        self._grpc.set_serving(ready)


def _web(
    servicer: object, watching: object | None, options: PartyOptions, grpc: GrpcServer
) -> WebFront:
    from secure_quant_server.common.web import WebFront, methods_of  # an extra of its own

    pair = None
    if options.http_cert is not None and options.http_key is not None:
        pair = ServerPair(options.http_cert, options.http_key)
    methods = methods_of(
        share_inference_pb2.DESCRIPTOR.services_by_name["ShareInferenceService"], servicer
    )
    if watching is not None:
        progress = share_progress_pb2.DESCRIPTOR.services_by_name["ShareProgressService"]
        methods = {**methods, **methods_of(progress, watching)}
    return WebFront(
        grpc.guard, methods,
        listen=options.http_listen or "", security=options.security, pair=pair,
        plaintext=options.http_plaintext, origins=options.http_origins,
        has_tokens=options.tokens is not None, request_bytes=grpc.request_bytes,
        max_connections=options.max_connections,
    )  # fmt: skip


def _request_bytes(programs: Sequence[PartyProgram], batch: int) -> int:
    """The longest request that any model here takes."""
    return AROUND + batch * max(prod(program.graph.input.shape) for program in programs)
