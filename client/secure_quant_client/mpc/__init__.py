"""Secret sharing: the client's half. Shares are made and opened here."""
