"""The converted pt2e graph -> the integer graph. Torch is left behind here."""
