"""The command line: one module for each group of subcommands. Heavy imports are inside the commands that need them."""
