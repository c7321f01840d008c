"""The client's half: shares, keys, encryption and decryption. The only room that holds user secrets."""
