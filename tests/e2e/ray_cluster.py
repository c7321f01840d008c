"""A Ray cluster of two nodes on this machine with the application of deploy/ray; run by a Python
that has Ray.

    python ray_cluster.py PORT ARGUMENTS

ARGUMENTS: of the application, as JSON.

Says `ready` once it answers. Then one command a line on standard input: `kill` ends the process of
a replica, `node` the second node with all that runs on it, `state` says the replicas that run, by
node, `end`. Each is answered by a line of JSON behind `>`; Ray writes what it likes between.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import ray
import ray._private.state
import yaml
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.schema import ServeDeploySchema

CONFIG = Path(__file__).parents[2] / "deploy" / "ray" / "serve.yaml"


def replicas() -> list[dict]:
    # The public API of this needs the dashboard, which starts slowly.
    return [
        {"pid": each["Pid"], "node": each["Address"]["NodeID"]}
        for each in ray._private.state.actors().values()
        if each["State"] == "ALIVE" and "HomomorphicLinear" in each["ActorClassName"]
    ]


def say(answer: object) -> None:
    print(f"\n>{json.dumps(answer)}", flush=True)


def main() -> None:
    port, arguments = int(sys.argv[1]), json.loads(sys.argv[2])
    config = ServeDeploySchema.parse_obj(yaml.safe_load(CONFIG.read_text()))
    (application,) = config.applications
    module, _, function = application.import_path.partition(":")
    build = getattr(importlib.import_module(module), function)
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
    )
    second = cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, logging_level="error", log_to_driver=False)
    functions = config.grpc_options.grpc_servicer_functions
    serve.start(
        proxy_location="HeadOnly", http_options={"port": 0},
        grpc_options={"port": port, "grpc_servicer_functions": functions},
    )  # fmt: skip
    made = build(arguments)
    serve.run(made, name=application.name, route_prefix=application.route_prefix)
    print("\nready", flush=True)
    for line in sys.stdin:
        match line.strip():
            case "kill":
                chosen = replicas()[0]
                os.kill(chosen["pid"], signal.SIGKILL)
                say(chosen)
            case "node":
                cluster.remove_node(second)
                say({"left": len(ray.nodes())})
            case "state":
                say(replicas())
            case "end":
                break
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()
    time.sleep(0.1)
    print("ended", flush=True)


if __name__ == "__main__":
    main()
