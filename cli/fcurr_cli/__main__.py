"""`python -m fcurr_cli`, for torchrun: `torchrun --nproc-per-node 2 -m fcurr_cli run config.toml`."""

from fcurr_cli.main import main

main()
