"""An experiment as data: what a config means, what it becomes, and what its editor should know."""
