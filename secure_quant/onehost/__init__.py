"""Exact inference between a client and one host, without a dealer: ``docs/spec/one-host.md``."""
