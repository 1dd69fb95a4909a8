"""The ``lumos`` command: one file per subcommand, dispatched by :mod:`lumos_engine.cli.main`."""
