"""The gallium command; one subcommand, one file."""
