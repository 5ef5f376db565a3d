"""`python -m gallium`: the same as the program `gallium`."""

from gallium.cli.main import main

main()
