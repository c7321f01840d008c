"""Ask a gateway by NVIDIA's own client, over gRPC and HTTP in every form, and say what came.

    python triton.py GRPC HTTP MODEL GIVEN.npz FOUND.npz

Runs in an environment of its own (tools/oip.txt): its protobuf is not ours. FOUND.npz gets the
outputs of each way to ask as WAY/OUTPUT; what was said besides goes to standard output as JSON.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype


def inputs(kind, given, *, binary):
    made = []
    for name, array in given.items():
        each = kind.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        if kind is tritonclient.http:
            each.set_data_from_numpy(array, binary_data=binary)
        else:
            each.set_data_from_numpy(array)
        made.append(each)
    return made


def outputs(kind, names, *, binary):
    if kind is tritonclient.http:
        return [kind.InferRequestedOutput(name, binary_data=binary) for name in names]
    return [kind.InferRequestedOutput(name) for name in names]


def ways(kind):
    """Way -> (binary inputs, options of infer)."""
    found = {"binary": (True, {}), "timed": (True, {"timeout": 20_000_000, "request_id": "9"})}
    if kind is tritonclient.http:
        found["json"] = (False, {})
        found["gzip"] = (True, {"request_compression_algorithm": "gzip"})
        found["deflate"] = (False, {"request_compression_algorithm": "deflate"})
    return found


def ask(kind, url, model, given, found, said):
    name = kind.__name__.rpartition(".")[2]
    with kind.InferenceServerClient(url) as client:
        about = client.get_model_metadata(model)
        about = about if isinstance(about, dict) else json.loads(as_json(about))
        names = [each["name"] for each in about["outputs"]]
        said[name] = {
            "live": client.is_server_live(), "ready": client.is_server_ready(),
            "model_ready": client.is_model_ready(model), "inputs": about["inputs"],
            "outputs": about["outputs"], "versions": about["versions"],
        }  # fmt: skip
        for way, (binary, options) in ways(kind).items():
            result = client.infer(model, inputs(kind, given, binary=binary), **options)
            for each in names:
                found[f"{name}.{way}/{each}"] = result.as_numpy(each)
        chosen = outputs(kind, names[:1], binary=False)
        result = client.infer(model, inputs(kind, given, binary=True), outputs=chosen)
        found[f"{name}.chosen/{names[0]}"] = result.as_numpy(names[0])
        assert all(result.as_numpy(each) is None for each in names[1:])
        said[name]["errors"] = errors(kind, client, model, given)
        result = client.infer(model, inputs(kind, given, binary=True))
        found[f"{name}.after/{names[0]}"] = result.as_numpy(names[0])


def errors(kind, client, model, given):
    """What it raises for requests that are wrong: [status, message] each."""
    first = next(iter(given))
    short = given | {first: given[first][..., :-1].copy()}
    found = []
    for name, arrays, options in (
        ("absent", given, {}), (model, short, {}), (model, given, {"model_version": "1"}),
        (model, given, {"sequence_id": 5, "sequence_start": True}),
    ):  # fmt: skip
        try:
            client.infer(name, inputs(kind, arrays, binary=True), **options)
        except InferenceServerException as error:
            found.append([error.status(), error.message()])
    return found


def as_json(message):
    from google.protobuf.json_format import MessageToJson

    return MessageToJson(message)


def main():
    rpc, http, model, given_at, found_at = sys.argv[1:]
    with np.load(given_at) as arrays:
        given = dict(arrays)
    found, said = {}, {}
    ask(tritonclient.grpc, rpc, model, given, found, said)
    ask(tritonclient.http, http, model, given, found, said)
    np.savez(found_at, **found)
    print(json.dumps(said))


if __name__ == "__main__":
    main()
