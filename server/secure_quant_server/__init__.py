"""Servers of every role: a common port, and one package per engine that runs behind it."""
