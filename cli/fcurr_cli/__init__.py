"""The command line of fcurr."""
