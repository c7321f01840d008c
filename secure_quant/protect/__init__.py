"""The client's half: shares, keys, encryption. The only room that holds user secrets."""
