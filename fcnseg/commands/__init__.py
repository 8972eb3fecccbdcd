"""Commands of the runtime; each file is one subcommand of `fcnseg`."""
