"""CrypTen over our link and our dealer. The only room that imports CrypTen."""
