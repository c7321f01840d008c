"""The command line with the engine that protects nothing: ``python -m plain_insecure ...``."""

import sys

from plain_insecure import ENGINE
from secure_quant.engines import registered
from secure_quant_cli.main import main

with registered(ENGINE):
    sys.exit(main())
