"""`python -m fcnseg` is the command `fcnseg`."""

from fcnseg.cli import main

main()
