"""Homomorphic encryption: the client's half. Keys are made and used here."""
