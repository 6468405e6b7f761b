"""The command line: one module for each group of subcommands. What a command needs is imported when it runs."""
