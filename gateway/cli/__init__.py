"""The command line: ``frame`` runs a command, ``terminal`` prints what it answers, the rest are the commands."""
