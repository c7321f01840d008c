"""The ``secure-quant`` command. One module per subcommand; heavy imports wait until one runs."""
