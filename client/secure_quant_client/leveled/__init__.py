"""Leveled homomorphic encryption: the client's half. A session's key lives here."""
