"""Commands of the runtime: a file for each subcommand of `fcnseg`, and files for what some of them share or show."""
