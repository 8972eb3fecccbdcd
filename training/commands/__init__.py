"""Commands of the training package; each file is one subcommand of `fcnseg`."""
