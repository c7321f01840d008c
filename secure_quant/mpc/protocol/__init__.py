"""What the two parties and the dealer compute: gates, plans, material. No I/O, no torch."""
