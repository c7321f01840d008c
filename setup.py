"""The list of packages, which pyproject.toml cannot find by itself: four roots with Python in them,
and the protos, which have none. Everything else stands in pyproject.toml."""

from setuptools import find_packages, setup

ROOTS = (".", "server", "client", "cli")

setup(
    packages=[
        *(name for root in ROOTS for name in find_packages(root, include=["secure_quant*"])),
        "secure_quant.v1",
        "secure_quant.open_inference",
    ]
)
