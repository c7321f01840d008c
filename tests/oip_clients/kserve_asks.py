"""Ask a gateway by KServe's own client, over gRPC and REST, and say what came. As triton.py."""

from __future__ import annotations

import asyncio
import json
import sys

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.utils.numpy_codec import from_np_dtype


def request(model, given, *, binary):
    made = []
    for name, array in given.items():
        each = InferInput(name, list(array.shape), from_np_dtype(array.dtype))
        each.set_data_from_numpy(array, binary_data=binary)
        made.append(each)
    return InferRequest(model_name=model, infer_inputs=made, request_id="5")


def keep(found, way, response):
    for each in response.outputs:
        found[f"{way}/{each.name}"] = each.as_numpy().reshape(each.shape)


async def ask(rpc, http, model, given):
    found, said = {}, {}
    client = InferenceGRPCClient(rpc)
    said["grpc"] = [
        await client.is_server_live(), await client.is_server_ready(),
        await client.is_model_ready(model),
    ]  # fmt: skip
    for binary in (True, False):
        way = f"grpc.{'binary' if binary else 'typed'}"
        keep(found, way, await client.infer(request(model, given, binary=binary)))
    try:
        await client.infer(request("absent", given, binary=True))
    except grpc.RpcError as error:
        said["grpc_error"] = [error.code().name, error.details()]
    await client.close()
    rest = InferenceRESTClient(RESTConfig(protocol="v2"))
    url = f"http://{http}"
    said["rest"] = [
        await rest.is_server_live(url), await rest.is_server_ready(url),
        await rest.is_model_ready(url, model),
    ]  # fmt: skip
    for binary in (True, False):
        way = f"rest.{'binary' if binary else 'json'}"
        asked = request(model, given, binary=binary)
        keep(found, way, await rest.infer(url, asked, model_name=model))
    try:
        asked = request("absent", given, binary=True)
        await rest.infer(url, asked, model_name="absent")
    except Exception as error:  # noqa: BLE001  httpx's, whose kinds differ between releases
        said["rest_error"] = str(error)
    await rest.close()
    return found, said


def main():
    rpc, http, model, given_at, found_at = sys.argv[1:]
    with np.load(given_at) as arrays:
        given = dict(arrays)
    found, said = asyncio.run(ask(rpc, http, model, given))
    np.savez(found_at, **found)
    print(json.dumps(said))


if __name__ == "__main__":
    main()
