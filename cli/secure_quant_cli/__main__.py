"""``python -m secure_quant_cli``."""

from secure_quant_cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
