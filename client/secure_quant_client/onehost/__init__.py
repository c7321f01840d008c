"""The client's secrets with one host: its halves of items, the keys they are made with, its share
of every answer."""
